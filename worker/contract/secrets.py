"""Masks the secrets of a request in every text that may quote it (contract §4: no reply ever holds a secret).

Public are the values of known public fields: names, ids, flags, and the endpoint URL without its query. Every
other string of the body counts as a secret, whatever its field is called.

Texts are compared by their letters and digits alone, in one case. So it makes no difference where a quoted
secret was broken, escaped or stripped of its special characters.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any, Final, Self
from urllib.parse import quote, quote_plus, urlsplit, urlunsplit

from worker.contract.platforms import (
    ATTRIBUTES,
    ENDPOINT_URL,
    FIELDS,
    PLATFORM_NAME,
    PLATFORMS,
    PUBLIC_FIELDS,
)

MASK: Final = "***"
# So many letters and digits of a secret are masked wherever they stand. A secret of fewer is masked as it is
# written, one that is shorter than this only where it stands alone.
PIECE: Final = 6
# Plain words may stand in a secret too: they are masked where they are most of it.
MOST: Final = 0.75
# A body with more secrets than this is hostile, and searching for all takes too long: whole texts are masked.
MANY: Final = 500
MUCH: Final = 20_000  # characters
LONGEST_WORD: Final = 24  # letters of a word that counts as plain
LONGEST_NUMBER: Final = 6  # digits of a number that counts as plain
LONGEST_CHANCE: Final = 3  # digits that may stand in a secret by chance

_KNOWN_WORDS = frozenset(map(str.casefold, (*PLATFORMS, PLATFORM_NAME, ATTRIBUTES, *FIELDS)))
_WORD = re.compile(r"[^\W_]+")
_NO_WORD = re.compile(r"[\W_]+")
# So many numbers in a row may be the bytes of a secret, whatever their base.
_NUMBERS = re.compile(r"(?<!\d)\d++(?:[\W_]++\d++){7,}")
_APART = re.compile(r"[^\W_]|\s")
_CAMEL_CASE = re.compile(r"[A-Z]{0,2}[a-z]+(?:[A-Z][a-z]{2,})*")
_URL_PARTS = re.compile(r"[&;=#?@:]")

Span = tuple[int, int]


def without_query(url: str) -> str:
    """The URL without its user, query and fragment, which may hold a token. Text that is no URL is masked."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
    except ValueError:
        return MASK


class SecretMask:
    """Masks words that hold secrets: `PIECE` letters and digits of one, as they are, or escaped for JSON,
    URLs or HTML, or in base64, hexadecimal or numbers. Each word of `public` may be shown."""

    def __init__(self, secrets: Iterable[str], public: Iterable[str] = ()) -> None:
        self._secrets = list(islice(filter(None, secrets), MANY))
        self._masks_all = len(self._secrets) == MANY or sum(map(len, self._secrets)) > MUCH
        self._public = public

    @classmethod
    def of_body(cls, body: bytes, *more: str) -> Self:
        """Masks `more` and all values of a request's body that are not public. A body that is not JSON is one
        secret."""
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            document = body.decode(errors="replace")
        public: dict[str, Any] = {}
        if isinstance(document, dict):
            if isinstance(document.get(PLATFORM_NAME), str):
                del document[PLATFORM_NAME]
            attributes = document.get(ATTRIBUTES)
            if isinstance(attributes, dict):
                public = {k: v for k, v in attributes.items() if k in PUBLIC_FIELDS and _is_simple(v)}
                document[ATTRIBUTES] = {k: v for k, v in attributes.items() if k not in public}
                if isinstance(url := public.get(ENDPOINT_URL), str):
                    public[ENDPOINT_URL] = without_query(url)
                    document[ATTRIBUTES][ENDPOINT_URL] = _secret_parts(url)
        return cls(chain(more, _strings(document)), map(str, public.values()))

    def __call__(self, text: str) -> str:
        """The text with its secrets masked."""
        return MASK if self._masks_all else _masked(text, self._spans(text), len(text))

    def upstream(self, text: str, limit: int | None = None) -> str:
        """Mask the text of an upstream: only words that cannot be a secret are shown. These are plain words,
        short numbers, names of fields, and what the request makes public. What stands behind `limit` is left
        out: it only helps to find a secret that begins before."""
        if self._masks_all:
            return MASK
        doubtful = (word.span() for word in _WORD.finditer(text) if not self._is_plain(word[0]))
        numbers = (found.span() for found in _NUMBERS.finditer(text))
        return _masked(text, chain(doubtful, numbers, self._spans(text)), limit or len(text))

    def _is_plain(self, word: str) -> bool:
        if word.casefold() in self._public_words:
            return True
        if word.isdecimal():
            is_part = len(word) > LONGEST_CHANCE and word in self._all_plain
            return len(word) <= LONGEST_NUMBER and not is_part
        is_of_one_case = word == word.lower() or word == word.upper() or word.istitle()
        return (
            len(word) <= LONGEST_WORD
            and word.isalpha()
            and (is_of_one_case or _CAMEL_CASE.fullmatch(word) is not None)
        )

    @cached_property
    def _public_words(self) -> frozenset[str]:
        public = (word[0].casefold() for text in self._public for word in _WORD.finditer(text))
        return _KNOWN_WORDS.union(public)

    @cached_property
    def _plain(self) -> list[str]:
        """The letters and digits of the secrets."""
        return list(map(_letters, self._secrets))

    @cached_property
    def _all_plain(self) -> str:
        """All of them in one text: one search for all."""
        return "\0".join(self._plain)

    @cached_property
    def _pieces(self) -> dict[str, int]:
        """The pieces of the secrets as they are, each with the length of the shortest such secret; and of
        their other forms, with 0."""
        forms = {_letters(form) for secret in self._secrets for form in _forms(secret)}
        pieces = {piece: 0 for form in forms for piece in _pieces(form)}
        for secret in sorted(self._plain, key=len, reverse=True):
            pieces |= dict.fromkeys(_pieces(secret), len(secret))
        return pieces

    @cached_property
    def _short(self) -> set[str]:
        """The forms of secrets that have too few letters for a piece."""
        short = (secret for secret in self._secrets if len(_letters(secret)) < PIECE)
        return {form.lower() for secret in short for form in _forms(secret)} - {""}

    def _spans(self, text: str) -> Iterator[Span]:
        """Where secrets stand, or words that hold a part of one."""
        if not self._secrets:
            return
        words = [(word.span(), _letters(word[0])) for word in _WORD.finditer(text)]
        letters = "".join(part for _, part in words)
        of = [span for span, part in words for _ in part]  # the word that each letter stands in
        for start, end, whole in _runs(letters, self._pieces):
            held = {*of[start:end]}
            if end - start >= MOST * whole or not all(self._is_plain(text[a:b]) for a, b in held):
                yield from held
        lower = text.lower() if len(text.lower()) == len(text) else text
        for form in self._short:
            for at in _found(lower, form):
                end = at + len(form)
                beside = text[max(0, at - 1) : at] + text[end : end + 1]
                if len(form) >= PIECE or not re.search(r"\w", beside):
                    yield at, end


def _is_simple(value: object) -> bool:
    return not isinstance(value, dict | list)


def _secret_parts(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return [url]
    user = parts.netloc.rpartition("@")[0]
    return [piece for part in (user, parts.query, parts.fragment) for piece in _URL_PARTS.split(part)]


def _strings(value: object) -> Iterator[str]:
    """Every string and number."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield str(value)


def _letters(text: str) -> str:
    return _NO_WORD.sub("", text.upper().casefold())


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is quoted; those that differ in special characters alone are left out."""
    data, escaped = secret.encode(errors="replace"), json.dumps(secret)[1:-1]
    yield secret
    if not (secret.isascii() and secret.isalnum()):
        yield from (escaped, json.dumps(escaped)[1:-1], quote(escaped))
        yield from (json.dumps(secret, ensure_ascii=False)[1:-1], html.escape(secret), repr(data)[2:-1])
        yield from (quote(secret, errors="replace"), quote_plus(secret, errors="replace"))
        yield quote(secret, safe="", errors="replace")
    for offset in range(3):
        # Characters at both ends depend on what stands beside the secret.
        encoded = base64.b64encode(b"\0" * offset + data + b"\0" * (-(len(data) + offset) % 3))
        yield encoded[-(-offset * 8 // 6) : len(encoded) - 1 - (-(len(data) + offset) % 3)].decode()
    yield from (data.hex(), "".join(map(str, data)), "".join(str(ord(char)) for char in secret))


def _found(text: str, wanted: str) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + len(wanted))


def _pieces(letters: str) -> list[str]:
    return [letters[at : at + PIECE] for at in range(len(letters) - PIECE + 1)]


def _runs(letters: str, pieces: dict[str, int]) -> list[tuple[int, int, int]]:
    """The longest stretches of pieces that overlap, each with the least number that one of them has."""
    runs: list[tuple[int, int, int]] = []
    for at, piece in enumerate(_pieces(letters)):
        if piece in pieces:
            begins = not runs or at >= runs[-1][1]
            start, _, least = (at, 0, pieces[piece]) if begins else runs.pop()
            runs.append((start, at + PIECE, min(least, pieces[piece])))
    return runs


def _masked(text: str, spans: Iterable[Span], limit: int) -> str:
    """The text up to `limit` without these spans; those with nothing but special characters between them are
    one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and not _APART.search(text[joined[-1][1] : start]):
            first, last = joined.pop()
            joined.append((first, max(last, end)))
        elif start < limit:
            joined.append((start, end))
    text = text[:limit]
    for start, end in reversed(joined):
        text = text[:start] + MASK + text[end:]
    return text
