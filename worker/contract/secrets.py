"""Masks the secrets of a request in every text that may quote it (contract §4: no reply holds a secret).

The values of known public fields are public: names, ids, flags, and the endpoint URL without its query. Every
other string of the body counts as a secret, whatever its field's name."""

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, groupby, islice, takewhile
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
SHORT: Final = 6  # characters; a shorter secret is masked only as a whole word
MOST: Final = 0.75  # share of a secret's consecutive letters and digits that is masked like the whole
# A body with more secrets is hostile, and searching for all of them takes too long: whole texts are masked.
MANY: Final = 100
MUCH: Final = 20_000  # characters
# In an upstream's text:
LONGEST_WORD: Final = 24  # letters of a plain word
LONGEST_NUMBER: Final = 6  # digits of a plain number
LONGEST_CHANCE: Final = 3  # digits that a secret may contain by chance

_KNOWN_WORDS = frozenset(map(str.casefold, (*PLATFORMS, PLATFORM_NAME, ATTRIBUTES, *FIELDS)))
_WORD = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"[A-Z]{0,2}[a-z]+(?:[A-Z][a-z]{2,})*")
# A run of numbers or single letters may be a secret: its bytes, its spelling, or hexadecimal groups.
_PART = r"(?:\d++|x?[^\W_]{1,2})(?![^\W_])"
_GROUP = r"[0-9A-Fa-f]{4,}+(?![^\W_])"
_SPELLED = re.compile(rf"(?<![^\W_])(?:{_PART}(?:[\W_]++{_PART}){{7,}}|{_GROUP}(?:[\W_]++{_GROUP}){{2,}})")
_APART = re.compile(r"[^\W_]|\s")
_URL_PARTS = re.compile(r"[&;=#?@:]")

Span = tuple[int, int]


def split_url(url: str) -> tuple[str, list[str]]:
    """The URL without its user, query and fragment, and the parts of these, which may be secrets. Text that
    is not a URL is masked."""
    try:
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        public = urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
    except ValueError:
        return MASK, [url]
    return public, [piece for part in (user, parts.query, parts.fragment) for piece in _URL_PARTS.split(part)]


class SecretMask:
    """Masks secrets in texts: verbatim, escaped for JSON, URLs or HTML, or encoded in base64 or hexadecimal.
    The words of `public` may be shown in an upstream's text."""

    def __init__(self, secrets: Iterable[str], public: Iterable[str] = ()) -> None:
        self._secrets = list(islice(filter(None, secrets), MANY))
        self._masks_all = len(self._secrets) == MANY or sum(map(len, self._secrets)) > MUCH
        self._public = public

    @classmethod
    def of_body(cls, body: bytes, *more: str) -> Self:
        """Mask `more` and all values of a request's body that are not public. A body that is not JSON is one
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
                known = {name: attributes[name] for name in PUBLIC_FIELDS & attributes.keys()}
                public = {name: value for name, value in known.items() if not isinstance(value, dict | list)}
                secret = {name: value for name, value in attributes.items() if name not in public}
                if isinstance(url := public.get(ENDPOINT_URL), str):
                    public[ENDPOINT_URL], secret[ENDPOINT_URL] = split_url(url)
                document[ATTRIBUTES] = secret
        return cls(chain(more, _strings(document)), map(str, public.values()))

    def __call__(self, text: str) -> str:
        """The text with its secrets masked."""
        return MASK if self._masks_all else _masked(text, self._spans(text))

    def upstream(self, text: str, limit: int | None = None) -> str:
        """Mask an upstream's text: only words that cannot be a secret are shown. These are plain words, short
        numbers, field names, and the request's public values. The text is cut at `limit`, after the search: a
        secret may begin before it and end after it."""
        if self._masks_all:
            return MASK
        spelled = (found.span() for found in _SPELLED.finditer(text))
        return _masked(text, chain(self._doubtful(text), spelled, self._spans(text)), limit)

    def _doubtful(self, text: str) -> Iterator[Span]:
        """The words that are not plain, with adjacent plain ones that may be part of the same secret."""
        words = _WORD.finditer(text)
        for is_part, group in groupby(words, lambda word: _letters(word[0]) in self._all_letters):
            beside = list(group)
            doubtful = [word for word in beside if not self._is_plain(word[0])]
            yield from (word.span() for word in (beside if doubtful and is_part else doubtful))

    def _is_plain(self, word: str) -> bool:
        if word.casefold() in self._public_words:
            return True
        if word.isdecimal():
            is_part = len(word) > LONGEST_CHANCE and word in self._all_letters
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
    def _all_letters(self) -> str:
        """The letters and digits of all secrets in one text, so that one search covers all."""
        return "\0".join(map(_letters, self._secrets))

    @cached_property
    def _forms(self) -> set[str]:
        return {_lower(form) for secret in self._secrets for form in _forms(secret)} - {""}

    @cached_property
    def _written(self) -> set[str]:
        """The letters and digits of all forms."""
        return set(map(_letters, self._forms))

    def _spans(self, text: str) -> Iterator[Span]:
        """The spans of secrets, of words that are part of a secret and not plain, and of words that together
        contain most of a secret, whatever separates them."""
        lower = _lower(text)
        for form in self._forms:
            for at in _found(lower, form):
                end = at + len(form)
                beside = text[max(0, at - 1) : at] + text[end : end + 1]
                if len(form) >= SHORT or not re.search(r"\w", beside):
                    yield at, end
        words = [(word.span(), _letters(word[0])) for word in _WORD.finditer(text)]
        letters = "".join(part for _, part in words)
        of = [span for span, part in words for _ in part]  # the word of each letter
        for span, part in words:
            if len(part) >= SHORT and part in self._all_letters and not self._is_plain(text[slice(*span)]):
                yield span
        for form in self._written:
            most = max(SHORT, math.ceil(MOST * len(form)))
            if most > len(form):
                continue
            # A text that quotes this much of the form also quotes its middle.
            head, middle, tail = form[:-most], form[len(form) - most : most], form[most:]
            for at in _found(letters, middle):
                end = at + len(middle)
                start = at - _alike(head[::-1], letters[max(0, at - len(head)) : at][::-1])
                end += _alike(tail, letters[end : end + len(tail)])
                if end - start >= most:
                    yield of[start][0], of[end - 1][1]


def _strings(value: object) -> Iterator[str]:
    """Every string and number in a document."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield str(value)


def _lower(text: str) -> str:
    """The text in lower case, with the same length: lower() would make two characters of this letter."""
    return text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()


def _letters(text: str) -> str:
    return "".join(_WORD.findall(text.upper().casefold()))


def _found(text: str, wanted: str) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + len(wanted))


def _alike(one: str, other: str) -> int:
    """The length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _forms(secret: str) -> Iterator[str]:
    """The forms in which a text may quote a secret."""
    data, escaped = secret.encode(errors="replace"), json.dumps(secret)[1:-1]
    yield secret
    if not (secret.isascii() and secret.isalnum()):
        yield from (escaped, json.dumps(escaped)[1:-1], quote(escaped), escaped.replace("/", "\\/"))
        yield from (json.dumps(secret, ensure_ascii=False)[1:-1], html.escape(secret), repr(data)[2:-1])
        yield from (quote(secret, errors="replace"), quote_plus(secret, errors="replace"))
        yield from (once := quote(secret, safe="", errors="replace"), quote(once))
    for offset in range(3):
        # The characters at both ends depend on the bytes next to the secret.
        encoded = base64.b64encode(b"\0" * offset + data + b"\0" * (-(len(data) + offset) % 3))
        middle = encoded[-(-offset * 8 // 6) : len(encoded) - 1 - (-(len(data) + offset) % 3)].decode()
        yield from (middle, middle.translate({ord("+"): "-", ord("/"): "_"}))
    yield from (data.hex(), str(list(data))[1:-1], "".join(f"&#{ord(char)};" for char in secret))


def _masked(text: str, spans: Iterable[Span], limit: int | None = None) -> str:
    """The text up to `limit` with these spans masked. Spans separated only by special characters are
    joined."""
    joined: list[Span] = []
    for start, end in sorted(set(spans)):
        if joined and not _APART.search(text[joined[-1][1] : start]):
            first, last = joined.pop()
            joined.append((first, max(last, end)))
        elif limit is None or start < limit:
            joined.append((start, end))
    text = text[:limit]
    for start, end in reversed(joined):
        text = text[:start] + MASK + text[end:]
    return text
