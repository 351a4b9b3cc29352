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
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any, Final, Self
from urllib.parse import quote, quote_plus, urlsplit, urlunsplit

from worker.contract.platforms import (
    ATTRIBUTES,
    ENDPOINT_URL,
    PLATFORM_NAME,
    PLATFORMS,
    PUBLIC_FIELDS,
    SECRET_FIELDS,
)

MASK: Final = "***"
# So many characters of a secret are masked wherever they stand; a shorter secret only where it stands alone,
# and from `SHORT` characters on as a part of a word too.
PIECE: Final = 8
SHORT: Final = 6
TAIL: Final = 3  # characters of a secret's beginning that count where a text was cut
# Plain words may stand in a secret too: they are masked where they are most of it.
MOST: Final = 0.75
LONG_NAME: Final = 16  # characters; an unknown name this long may be a value in the wrong place
# A body with more secrets than this is hostile, and searching for all takes too long: whole texts are masked.
MANY: Final = 500
MUCH: Final = 20_000  # characters
LONGEST_WORD: Final = 24  # letters of a word that counts as plain
LONGEST_NUMBER: Final = 6  # digits of a number that counts as plain

_NAMES = frozenset({PLATFORM_NAME, ATTRIBUTES, *PUBLIC_FIELDS, *SECRET_FIELDS})
_KNOWN_WORDS = frozenset(name.casefold() for name in (*_NAMES, *PLATFORMS))
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
    """Masks secrets in texts that quote them: pieces of `PIECE` letters and digits, as they are or escaped
    for JSON, URLs or HTML, or in base64, hexadecimal or numbers. Each word of `public` may be shown."""

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

    def __call__(self, text: str, *, was_cut: bool = False) -> str:
        """The text with its secrets masked. Where it `was_cut`, its end may be a secret's beginning."""
        return MASK if self._masks_all else _masked(text, self._spans(text, was_cut=was_cut))

    def upstream(self, text: str, *, was_cut: bool = False) -> str:
        """Mask the text of an upstream: only words that cannot be a secret are shown. These are plain words,
        short numbers, the names of fields, and what the request itself makes public."""
        if self._masks_all:
            return MASK
        doubtful = [word.span() for word in _WORD.finditer(text) if not self._is_plain(word[0])]
        numbers = [found.span() for found in _NUMBERS.finditer(text)]
        return _masked(text, [*doubtful, *numbers, *self._spans(text, was_cut=was_cut)])

    def _is_plain(self, word: str) -> bool:
        if word.casefold() in _KNOWN_WORDS or word.casefold() in self._public_words:
            return True
        if word.isdecimal():
            is_part = len(word) > TAIL and word in self._all_plain
            return len(word) <= LONGEST_NUMBER and not is_part
        is_of_one_case = word == word.lower() or word == word.upper() or word.istitle()
        return (
            len(word) <= LONGEST_WORD
            and word.isalpha()
            and (is_of_one_case or _CAMEL_CASE.fullmatch(word) is not None)
        )

    @cached_property
    def _public_words(self) -> frozenset[str]:
        return frozenset(word[0].casefold() for text in self._public for word in _WORD.finditer(text))

    @cached_property
    def _plain(self) -> list[str]:
        """The letters and digits of the secrets."""
        return list(filter(None, map(_letters, self._secrets)))

    @cached_property
    def _all_plain(self) -> str:
        """All of them in one text, each behind a mark: one search for all."""
        return "".join(f"\0{secret}" for secret in self._plain)

    @cached_property
    def _written(self) -> set[str]:
        """The letters and digits of all forms of the secrets."""
        forms = {_letters(form) for secret in self._secrets if _letters(secret) for form in _forms(secret)}
        return forms - {""}

    @cached_property
    def _pieces(self) -> set[str]:
        return {form[at : at + PIECE] for form in self._written for at in range(len(form) - PIECE + 1)}

    @cached_property
    def _short(self) -> list[str]:
        return [form for form in self._written if len(form) < PIECE]

    @cached_property
    def _symbols(self) -> set[str]:
        """Secrets that are special characters for the most part."""
        odd = (secret for secret in self._secrets if len(secret) >= PIECE > len(_letters(secret)))
        return {form for secret in odd for form in _forms(secret)}

    def _spans(self, text: str, *, was_cut: bool) -> Iterator[Span]:
        """Where secrets stand."""
        if not self._secrets:
            return
        # Each letter and digit in one case, and where it stands.
        folded = [(char, at) for at, original in enumerate(text) for char in _letters(original)]
        letters, places = "".join(char for char, _ in folded), [at for _, at in folded]
        words = list(_WORD.finditer(text))
        for start, end in _runs(letters, self._pieces):
            yield from self._words(words, (places[start], places[end - 1] + 1), letters[start:end])
        for form in self._short:
            for at in _found(letters, form):
                start, end = places[at], places[at + len(form) - 1] + 1
                around = text[max(0, start - 1) : start] + text[end : end + 1]
                if len(form) >= SHORT or not re.search(r"\w", around):
                    yield start, end
        for form in self._symbols:
            yield from ((at, at + len(form)) for at in _found(text, form))
        if was_cut:
            longest = max(map(len, self._plain), default=0)
            for at in range(max(0, len(letters) - longest), len(letters) - TAIL + 1):
                if f"\0{letters[at:]}" in self._all_plain:
                    yield places[at], len(text)

    def _words(self, all_words: list[re.Match[str]], span: Span, piece: str) -> Iterator[Span]:
        """The words to mask for a piece of a secret. None if all of them are plain words and the piece is a
        small part of the secret."""
        first = bisect_right(all_words, span[0], key=re.Match.end)
        words = all_words[first : bisect_left(all_words, span[1], key=re.Match.start)]
        wholes = [len(secret) for secret in self._plain if piece in secret]
        is_most = not wholes or len(piece) >= MOST * min(wholes)
        if is_most or not all(self._is_plain(word[0]) for word in words):
            yield span
            yield from (word.span() for word in words)


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
    """Every string and number, and the names that may be values."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            yield from (name for name in value if len(name) >= LONG_NAME and name not in _NAMES)
        elif isinstance(value, list):
            waiting += value
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


def _runs(letters: str, pieces: set[str]) -> list[Span]:
    """The longest stretches that consist of pieces which overlap."""
    runs: list[Span] = []
    for at in range(len(letters) - PIECE + 1):
        if letters[at : at + PIECE] in pieces:
            begins = not runs or at >= runs[-1][1]
            start = at if begins else runs.pop()[0]
            runs.append((start, at + PIECE))
    return runs


def _masked(text: str, spans: Iterable[Span]) -> str:
    """The text without these spans; those with nothing but special characters between them are one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and not _APART.search(text[joined[-1][1] : start]):
            first, last = joined.pop()
            joined.append((first, max(last, end)))
        else:
            joined.append((start, end))
    for start, end in reversed(joined):
        text = text[:start] + MASK + text[end:]
    return text
