"""Encryption at rest of what dead letters hold, for a request carries secrets (`OTT_DEAD_LETTER_KEYS`).

A sealed body is a mark, the id of its key, a nonce and the AES-256-GCM text, bound to the request's id and
the queue, so that it opens nowhere else. Headers and properties hold no secret and stay readable.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.amqp.properties import Properties
from worker.broker.topology import Topology
from worker.contract.words import ENCRYPTION_KEY_HEADER, REQUEST_ID_HEADER
from worker.errors import SettingsError, WorkerError
from worker.settings import Settings, parse_keys

_MARK = b"\x00ott-sealed-1\x00"  # no JSON begins so
_NONCE = 12  # bytes


class CannotOpen(WorkerError):
    """A sealed body whose key is not given, or that was changed or moved."""


class Seals:
    """Seals with the newest key and opens with all of them. The keys' file is read anew each time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read = ""
        self._keys: dict[str, bytes] = {}
        self._queue = Topology(settings.prefix).dead
        if settings.dead_letter_keys is not None:
            self._keys = parse_keys(settings.dead_letter_keys.get_secret_value())

    def seal(self, properties: Properties, body: bytes) -> tuple[Properties, bytes]:
        """The dead letter's properties and body as they are to be kept; without keys, as they are."""
        keys = self._current()
        if not keys or is_sealed(body):
            return properties, body
        name, key = next(iter(keys.items()))
        nonce = os.urandom(_NONCE)
        text = AESGCM(key).encrypt(nonce, body, self._bound_to(properties))
        head = _MARK + bytes((len(name),)) + name.encode()
        return properties.changed({ENCRYPTION_KEY_HEADER: name}), head + nonce + text

    def open_body(self, properties: Properties, body: bytes) -> bytes:
        """The request's body, of a dead letter that is sealed or not. Raises CannotOpen."""
        if not is_sealed(body):
            return body
        name, rest = _parted(body)
        key = self._current().get(name)
        if key is None:
            raise CannotOpen(_no_key(name))
        try:
            return AESGCM(key).decrypt(rest[:_NONCE], rest[_NONCE:], self._bound_to(properties))
        except (InvalidTag, ValueError):
            raise CannotOpen(
                f"The dead letter does not open with the key {name}: it was changed or moved to another queue"
            ) from None

    def _current(self) -> dict[str, bytes]:
        given = self._settings.now("dead_letter_keys")
        if given != self._read:
            try:
                self._keys = parse_keys(given)
            except ValueError as error:
                if not self._keys:
                    raise SettingsError(f"OTT_DEAD_LETTER_KEYS {error}") from None
            self._read = given
        return self._keys

    def _bound_to(self, properties: Properties) -> bytes:
        return f"{properties.header(REQUEST_ID_HEADER)}\0{self._queue}".encode(errors="replace")


def is_sealed(body: bytes) -> bool:
    """Whether a body was sealed."""
    return body.startswith(_MARK)


def why_closed(body: bytes) -> str:
    """Why a body that is still sealed cannot be read, in one line; `""` where it is not sealed."""
    return _no_key(_parted(body)[0]) if is_sealed(body) else ""


def _no_key(name: str) -> str:
    return f"The dead letter is encrypted with the key {name}: add it to OTT_DEAD_LETTER_KEYS"


def _parted(body: bytes) -> tuple[str, bytes]:
    at = len(_MARK)
    length = body[at] if len(body) > at else 0
    return body[at + 1 : at + 1 + length].decode(errors="replace"), body[at + 1 + length :]
