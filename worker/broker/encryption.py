"""Encryption at rest of dead letters, because a request carries secrets (`OTT_DEAD_LETTER_KEYS`).

An encrypted body is a mark, the id of its key, a check of the key, a check of where it belongs, a nonce and
the AES-256-GCM text. It is bound to the request's id, account and time of arrival and to the queue, and
cannot be decrypted anywhere else. Headers and properties hold no secret and stay readable.

Bodies that earlier versions encrypted bear another mark. They are bound to id and queue alone, and are
decrypted as before.
"""

import hashlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from worker.amqp.properties import Properties
from worker.broker.topology import Topology
from worker.contract.words import (
    ACCOUNT_HEADER,
    ENCRYPTION_KEY_HEADER,
    RECEIVED_AT_HEADER,
    REQUEST_ID_HEADER,
)
from worker.errors import WorkerError
from worker.settings import Settings, parse_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# No JSON begins with these.
_MARK = b"\x00ott-sealed-2\x00"
_FIRST_MARK = b"\x00ott-sealed-1\x00"
_CHECK = 8  # bytes of a check
_NONCE = 12  # bytes
_TAG = 16  # bytes that AES-GCM adds


class DecryptionError(WorkerError):
    """An encrypted body that cannot be read; the text says why and what helps."""


class Encryptor:
    """Encrypts with the newest key, decrypts with all of them. The keys' file is read anew each time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read = ""
        self._keys: dict[str, bytes] = {}
        self._queue = Topology(settings.prefix).dead
        if settings.dead_letter_keys is not None:
            self._keys = parse_keys(settings.dead_letter_keys.get_secret_value())

    def encrypt(self, properties: Properties, body: bytes) -> tuple[Properties, bytes]:
        """The dead letter's properties and body as they are to be kept; without keys, as they are. A body
        that merely looks encrypted is encrypted again: publishers can forge the mark."""
        keys = self._current()
        if not keys:
            return properties, body
        name, key = next(iter(keys.items()))
        nonce, place = os.urandom(_NONCE), self._place(properties)
        text = _cipher(key).encrypt(nonce, body, place)
        head = _MARK + bytes((len(name),)) + name.encode() + _check(key, b"") + _check(key, place)
        return properties.changed({ENCRYPTION_KEY_HEADER: name}), head + nonce + text

    def decrypt(self, properties: Properties, body: bytes) -> bytes:
        """The request's body, of a dead letter that is encrypted or not. Raises DecryptionError."""
        if not looks_encrypted(body):
            return body
        sealed = _Sealed.parse(body)
        key = self._current().get(sealed.key_name)
        if key is None:
            raise DecryptionError(
                f"The dead letter is encrypted with the key {sealed.key_name}: add it to OTT_DEAD_LETTER_KEYS"
            )
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 # as for _cipher

        place = self._first_place(properties) if sealed.is_first else self._place(properties)
        try:
            return _cipher(key).decrypt(sealed.nonce, sealed.text, place)
        except (InvalidTag, ValueError):
            raise DecryptionError(_why_not(sealed, key, place)) from None

    def _current(self) -> dict[str, bytes]:
        given = self._settings.now("dead_letter_keys")
        if given != self._read:
            self._keys, self._read = parse_keys(given), given
        return self._keys

    def _place(self, properties: Properties) -> bytes:
        """The place that a letter is bound to."""
        headers = (REQUEST_ID_HEADER, ACCOUNT_HEADER, RECEIVED_AT_HEADER)
        return json.dumps([self._queue, *(str(properties.header(name)) for name in headers)]).encode()

    def _first_place(self, properties: Properties) -> bytes:
        return f"{properties.header(REQUEST_ID_HEADER)}\0{self._queue}".encode(errors="replace")


def _cipher(key: bytes) -> "AESGCM":
    """Imported where there are keys: the library takes a moment, which commands need not wait for."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(key)


class _Sealed(NamedTuple):
    """An encrypted body, taken apart."""

    key_name: str
    key_check: bytes
    place_check: bytes
    nonce: bytes
    text: bytes
    is_first: bool  # by an earlier version, without checks

    @classmethod
    def parse(cls, body: bytes) -> "_Sealed":
        """Raises DecryptionError where something is missing."""
        is_first = body.startswith(_FIRST_MARK)
        length = body[len(_MARK)] if len(body) > len(_MARK) else 0
        begin = len(_MARK) + 1
        sizes = [length, *((0, 0) if is_first else (_CHECK, _CHECK)), _NONCE]
        if len(body) < begin + sum(sizes) + _TAG:
            raise DecryptionError("The dead letter is damaged: its encrypted body was cut off")
        parts = []
        for size in sizes:
            parts.append(body[begin : begin + size])
            begin += size
        name, key_check, place_check, nonce = parts
        return cls(name.decode(errors="replace"), key_check, place_check, nonce, body[begin:], is_first)


def looks_encrypted(body: bytes) -> bool:
    """Whether a body bears the mark. Publishers can forge it: it counts only in a letter of the worker's own,
    or in an operator's replay."""
    return body.startswith((_MARK, _FIRST_MARK))


def _why_not(sealed: _Sealed, key: bytes, place: bytes) -> str:
    if sealed.is_first:
        return (
            f"The dead letter does not open with the key {sealed.key_name}: it was changed or moved to "
            "another queue, or the key is another one of the same name"
        )
    if sealed.key_check != _check(key, b""):
        return (
            f"The dead letter is encrypted with another key of the name {sealed.key_name} than the one in "
            "OTT_DEAD_LETTER_KEYS: restore the key that it was encrypted with"
        )
    if sealed.place_check != _check(key, place):
        return (
            "The dead letter does not belong here: it was encrypted for another request, account, time of "
            "arrival or queue"
        )
    return "The dead letter is damaged: its encrypted body was changed"


def _check(key: bytes, what: bytes) -> bytes:
    """A digest that shows whether two keys or places are the same, and nothing else."""
    return hashlib.blake2b(what, digest_size=_CHECK, key=key, person=b"ott-seal-check").digest()
