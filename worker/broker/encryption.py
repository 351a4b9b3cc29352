"""Encryption of dead letters at rest (`OTT_DEAD_LETTER_KEYS`), because requests contain secrets.

An encrypted body consists of a mark, the key's name, a check of the key, a check of the context, a nonce and
the AES-256-GCM ciphertext. The context is the request's id, account and time of arrival, and the queue: with
another one it cannot be decrypted. Headers and properties hold no secret and stay readable."""

import hashlib
import json
import os
from io import BytesIO
from typing import TYPE_CHECKING

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

_MARK = b"\x00ott-sealed-2\x00"  # no JSON begins with it
_CHECK = 8  # bytes of a check
_NONCE = 12  # bytes


class DecryptionError(WorkerError):
    """An encrypted body cannot be read; the text says why and what to do."""


class Encryptor:
    """Encrypts with the first key, decrypts with all. The keys' file is read each time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue = Topology(settings.prefix).dead

    def encrypt(self, properties: Properties, body: bytes) -> tuple[Properties, bytes]:
        """The dead letter's properties and body, encrypted if there are keys. A body that merely looks
        encrypted is encrypted again: publishers can forge the mark."""
        keys = self._keys()
        if not keys:
            return properties, body
        name, key = next(iter(keys.items()))
        nonce, context = os.urandom(_NONCE), self._context(properties)
        text = _cipher(key).encrypt(nonce, body, context)
        head = _MARK + bytes((len(name),)) + name.encode() + _check(key, b"") + _check(key, context)
        return properties.changed({ENCRYPTION_KEY_HEADER: name}), head + nonce + text

    def decrypt(self, properties: Properties, body: bytes) -> bytes:
        """The request's body, from an encrypted or plain dead letter. Raises DecryptionError."""
        if not looks_encrypted(body):
            return body
        sealed = BytesIO(body.removeprefix(_MARK))
        name = sealed.read(int.from_bytes(sealed.read(1))).decode(errors="replace")
        key_check, context_check, nonce = (sealed.read(size) for size in (_CHECK, _CHECK, _NONCE))
        text = sealed.read()
        if not text:
            raise DecryptionError("The dead letter is damaged: its encrypted body was cut off")
        key = self._keys().get(name)
        if key is None:
            raise DecryptionError(
                f"The dead letter is encrypted with the key {name}: add it to OTT_DEAD_LETTER_KEYS"
            )
        if key_check != _check(key, b""):
            raise DecryptionError(
                f"The dead letter is encrypted with another key {name} than that in "
                "OTT_DEAD_LETTER_KEYS: restore the key that it was encrypted with"
            )
        context = self._context(properties)
        if context_check != _check(key, context):
            raise DecryptionError(
                "The dead letter does not belong here: it was encrypted for another request, account, time "
                "of arrival or queue"
            )
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 # as for _cipher

        try:
            return _cipher(key).decrypt(nonce, text, context)
        except InvalidTag:
            raise DecryptionError("The dead letter is damaged: its encrypted body was changed") from None

    def _keys(self) -> dict[str, bytes]:
        return parse_keys(self._settings.now("dead_letter_keys"))

    def _context(self, properties: Properties) -> bytes:
        """The associated data that binds a letter to its request and queue."""
        headers = (REQUEST_ID_HEADER, ACCOUNT_HEADER, RECEIVED_AT_HEADER)
        return json.dumps([self._queue, *(str(properties.header(name)) for name in headers)]).encode()


def _cipher(key: bytes) -> "AESGCM":
    """Imported only if there are keys, because importing the library is slow."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(key)


def looks_encrypted(body: bytes) -> bool:
    """Whether a body has the mark. Publishers can forge it, so trust it only in the worker's own letters and
    in operators' replays."""
    return body.startswith(_MARK)


def _check(key: bytes, what: bytes) -> bytes:
    """A keyed digest, by which keys and contexts can be compared."""
    return hashlib.blake2b(what, digest_size=_CHECK, key=key, person=b"ott-seal-check").digest()
