"""Masks the secrets of a request in every text that may quote it (contract §4: no reply ever holds a secret).

Public are the values of known public fields: names, ids, flags, and the endpoint URL without its query. Every
other string of the body counts as a secret, whatever its field is called.
"""

import base64
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from worker.contract.platforms import ATTRIBUTES, ENDPOINT_URL, PLATFORM_NAME, PUBLIC_FIELDS, SECRET_FIELDS
from worker.contract.unescape import Plain, fold, unescape, without_cut_escape

MASK: Final = "***"
# The first characters of a secret are masked wherever they stand, and so is a shorter secret as a whole. One
# that is shorter than `SHORT` could be part of any word, so it is masked only where it stands alone.
BEGINNING: Final = 8  # characters
SHORT: Final = 6
TAIL: Final = 3  # characters of a secret's beginning that count where a text was cut
LONG_NAME: Final = 16  # characters; an unknown name this long may be a value in the wrong place
LONGEST: Final = 10_000  # characters of a secret that are compared; texts are much shorter
# A body with more secrets than this is hostile, and searching for all takes too long: whole texts are masked.
MANY: Final = 5_000
MUCH: Final = 200_000  # characters

_NAMES = frozenset({PLATFORM_NAME, ATTRIBUTES, *PUBLIC_FIELDS, *SECRET_FIELDS})
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_HEX = re.compile(r"[0-9A-Fa-f]{16,}")
_URL_PARTS = re.compile(r"[&;=#?@:]")
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


def without_query(url: str) -> str:
    """The URL without its user, query and fragment, which may hold a token. Text that is no URL is masked."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
    except ValueError:
        return MASK


def secrets_of(document: object) -> Iterator[str]:
    """Every string and number of a parsed body that is not public."""
    if not isinstance(document, dict):
        yield from _strings(document)
        return
    for name, value in document.items():
        yield from _name(name)
        if name == ATTRIBUTES and isinstance(value, dict):
            for attribute, inner in value.items():
                yield from _name(attribute)
                yield from _of_attribute(attribute, inner)
        elif name != PLATFORM_NAME or not isinstance(value, str):
            yield from _strings(value)


def _of_attribute(name: str, value: object) -> Iterator[str]:
    if name not in PUBLIC_FIELDS or isinstance(value, dict | list):
        yield from _strings(value)
    elif name == ENDPOINT_URL and isinstance(value, str):
        yield from _parts_that_are_secret(value)


def _parts_that_are_secret(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        yield url
        return
    user = parts.netloc.rpartition("@")[0]
    for part in (user, parts.query, parts.fragment):
        yield from (piece for piece in _URL_PARTS.split(part) if piece)


def _name(name: str) -> Iterator[str]:
    if len(name) >= LONG_NAME and name not in _NAMES:
        yield name


def _strings(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
            for name in value:
                yield from _name(name)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)


class SecretMask:
    """Masks secrets in texts that quote them: whole or their beginning, in any case, as they are or escaped
    for JSON, URLs or HTML, or in base64 or hexadecimal."""

    def __init__(self, secrets: Iterable[str]) -> None:
        given = [secret[:LONGEST] for secret in islice(secrets, MANY)]
        joined = "\0".join(given)
        self._masks_all = len(given) == MANY or len(joined) > MUCH
        if self._masks_all:
            joined = ""
        # Together, which is far quicker than one by one.
        folded = fold(unescape(joined)).text.split("\0")
        self._secrets = sorted(secret for secret in set(folded) if _has_content(secret))
        self._beginnings = frozenset(s[:BEGINNING] for s in self._secrets if len(s) >= BEGINNING)
        self._short: dict[int, set[str]] = {}  # by length
        for secret in self._secrets:
            if len(secret) < BEGINNING:
                self._short.setdefault(len(secret), set()).add(secret)

    @classmethod
    def of_body(cls, body: bytes) -> Self:
        """For all in a request's body that is not public. A body that is not JSON is one secret."""
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            document = body.decode(errors="replace")
        return cls(secrets_of(document))

    def __call__(self, text: str, *, was_cut: bool = False) -> str:
        """The text with its secrets masked. Where it `was_cut`, its end may be a secret's beginning."""
        if self._masks_all:
            return MASK
        if not self._secrets:
            return text
        plain = unescape(text)
        folded = fold(plain)
        spans = [*self._quoted(folded), *self._encoded(plain)]
        if was_cut and (start := self._tail(folded)) is not None:
            spans.append((start, len(text)))
        return _masked(text, spans)

    def _quoted(self, folded: Plain, shortest: int = 1) -> Iterator[tuple[int, int]]:
        """Where secrets of at least `shortest` characters stand, in the original text."""
        text, at = folded.text, 0
        while at < len(text):
            length = self._match(text, at)
            if length >= shortest:
                yield folded.starts[at], folded.ends[at + length - 1]
            at += length or 1

    def _match(self, text: str, at: int) -> int:
        """Characters of a secret at this place."""
        if text[at : at + BEGINNING] in self._beginnings:
            rest = text[at : at + LONGEST]
            # Of a sorted list, the neighbours have the most in common with it.
            place = bisect_left(self._secrets, rest)
            return max(
                _common_length(secret, rest) for secret in self._secrets[max(0, place - 1) : place + 1]
            )
        for length, secrets in self._short.items():
            if text[at : at + length] in secrets and (length >= SHORT or _stands_alone(text, at, length)):
                return length
        return 0

    def _encoded(self, plain: Plain) -> Iterator[tuple[int, int]]:
        """Runs of base64 or hexadecimal that hold a secret."""
        for pattern, decode in ((_BASE64, _from_base64), (_HEX, _from_hexadecimal)):
            for run in pattern.finditer(plain.text):
                if any(self._is_in(decoded) for decoded in decode(run[0])):
                    yield plain.starts[run.start()], plain.ends[run.end() - 1]

    def _is_in(self, decoded: bytes) -> bool:
        folded = fold(unescape(decoded.decode(errors="replace")))
        return any(True for _ in self._quoted(folded, SHORT))

    def _tail(self, folded: Plain) -> int | None:
        """The position at which the text ends with the beginning of a secret."""
        text = without_cut_escape(folded.text)
        for at in range(len(text) - TAIL + 1):
            rest = text[at:]
            place = bisect_left(self._secrets, rest)
            if place < len(self._secrets) and self._secrets[place].startswith(rest):
                return folded.starts[at]
        return None


def _has_content(secret: str) -> bool:
    return len(secret) >= BEGINNING or _LETTER_OR_DIGIT.search(secret) is not None


def _common_length(one: str, other: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _stands_alone(text: str, at: int, length: int) -> bool:
    before, after = text[at - 1 : at] if at else "", text[at + length : at + length + 1]
    return not _is_word(before) and not _is_word(after)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _from_base64(run: str) -> Iterator[bytes]:
    """The decodings of a run, for each place at which the encoded text may begin."""
    standard = run.translate(_STANDARD_ALPHABET)
    for offset in range(4):
        whole = standard[offset:]
        whole = whole[: len(whole) - 1] if len(whole) % 4 == 1 else whole
        yield base64.b64decode(whole + "=" * (-len(whole) % 4))


def _from_hexadecimal(run: str) -> Iterator[bytes]:
    yield bytes.fromhex(run[: len(run) // 2 * 2])


def _masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    parts: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if end <= at:
            continue
        if start >= at:
            parts += (text[at:start], MASK)
        at = end
    parts.append(text[at:])
    return "".join(parts)
