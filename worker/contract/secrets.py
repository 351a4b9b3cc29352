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
from collections.abc import Container, Iterable, Iterator
from functools import cached_property
from itertools import islice
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
NUMBERS: Final = 8  # in a row; so many may be the bytes of a secret

_NAMES = frozenset({PLATFORM_NAME, ATTRIBUTES, *PUBLIC_FIELDS, *SECRET_FIELDS})
_KNOWN_WORDS = frozenset(name.casefold() for name in (*_NAMES, *PLATFORMS))
_WORD = re.compile(r"[^\W_]+")
_NO_WORD = re.compile(r"[\W_]+")
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


def _public_texts(document: object) -> Iterator[str]:
    attributes = document.get(ATTRIBUTES) if isinstance(document, dict) else None
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        if name in PUBLIC_FIELDS and isinstance(value, str | int):
            yield without_query(str(value)) if name == ENDPOINT_URL else str(value)


class SecretMask:
    """Masks secrets in texts that quote them: pieces of `PIECE` letters and digits, as they are or escaped
    for JSON, URLs or HTML, or in base64, hexadecimal or numbers. Each word of `public` may be shown."""

    def __init__(self, secrets: Iterable[str], public: Iterable[str] = ()) -> None:
        self._given = list(islice(secrets, MANY))
        self._masks_all = len(self._given) == MANY or sum(map(len, self._given)) > MUCH
        self._public = public

    @classmethod
    def of_body(cls, body: bytes) -> Self:
        """For all in a request's body that is not public. A body that is not JSON is one secret."""
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            document = body.decode(errors="replace")
        return cls(secrets_of(document), _public_texts(document))

    def __call__(self, text: str, *, was_cut: bool = False) -> str:
        """The text with its secrets masked. Where it `was_cut`, its end may be a secret's beginning."""
        if self._masks_all:
            return MASK
        return _masked(text, self._spans(_Text(text), was_cut=was_cut)) if self._given else text

    def upstream(self, text: str, *, was_cut: bool = False) -> str:
        """Mask the text of an upstream: only words that cannot be a secret are shown. These are plain words,
        short numbers, the names of fields, and what the request itself makes public."""
        if self._masks_all:
            return MASK
        read = _Text(text)
        spans = self._spans(read, was_cut=was_cut) if self._given else []
        numbers: list[Span] = []
        for word in read.words:
            if not self._is_plain(word[0]):
                spans.append(word.span())
            if word[0].isdecimal():
                numbers.append(word.span())
            else:
                numbers = []
            if len(numbers) >= NUMBERS:
                spans.append((numbers[0][0], numbers[-1][1]))
        return _masked(text, _joined(text, spans))

    def _is_plain(self, word: str) -> bool:
        if word.casefold() in _KNOWN_WORDS or word.casefold() in self._public_words:
            return True
        if word.isdecimal():
            is_part = len(word) > TAIL and any(word in secret for secret in self._secrets)
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
    def _secrets(self) -> frozenset[str]:
        """The secrets' letters and digits."""
        return frozenset(filter(None, map(_letters, self._given)))

    @cached_property
    def _written(self) -> set[str]:
        """The letters and digits of all forms of the secrets."""
        written = {_letters(form) for secret in self._given if _letters(secret) for form in _forms(secret)}
        return written - {""}

    @cached_property
    def _short(self) -> list[str]:
        return [form for form in self._written if len(form) < PIECE]

    @cached_property
    def _forms(self) -> str:
        return "\0".join(form for form in self._written if len(form) >= PIECE)

    @cached_property
    def _pieces(self) -> Container[str]:
        """To be asked whether a piece is of a secret. Making a set pays where there is much."""
        if len(self._forms) < MUCH:
            return self._forms
        return frozenset(self._forms[at : at + PIECE] for at in range(len(self._forms) - PIECE + 1))

    def _spans(self, text: "_Text", *, was_cut: bool) -> list[Span]:
        """Where secrets stand."""
        letters, forms = text.letters, self._forms
        spans = [
            (place, place + len(each)) for each in self._literals for place in _places(text.folded, each)
        ]
        at = 0
        while forms and at <= len(letters) - PIECE:
            length = PIECE if letters[at : at + PIECE] in self._pieces else 0
            while length and at + length < len(letters) and letters[at : at + length + 1] in forms:
                length += 1
            if length:
                spans += self._span(text, at, length)
            at += max(1, length)
        for form in self._short:
            spans += (
                text.span(place, len(form))
                for place in _places(letters, form)
                if len(form) >= SHORT or text.stands_alone(place, len(form))
            )
        if was_cut and (start := self._tail(letters)) is not None:
            spans.append((text.span(start, 1)[0], len(text.original)))
        return spans

    @cached_property
    def _literals(self) -> set[str]:
        """Secrets that are special characters for the most part."""
        odd = (secret for secret in self._given if len(secret) >= PIECE > len(_letters(secret)))
        return {form.casefold() for secret in odd for form in _forms(secret)}

    def _span(self, text: "_Text", at: int, length: int) -> list[Span]:
        """The spans to mask for a matched piece of a secret: the words that it overlaps. None if all of them
        are plain words and the match is a small part of the secret."""
        start, end = text.span(at, length)
        words = [word for word in text.words if word.start() < end and word.end() > start]
        odd = [word for word in words if not self._is_plain(word[0])]
        if odd:
            return [(min(start, odd[0].start()), max(end, odd[-1].end()))]
        piece = text.letters[at : at + length]
        wholes = [len(secret) for secret in self._secrets if piece in secret]
        return [(start, end)] if not wholes or length >= MOST * min(wholes) else []

    def _tail(self, letters: str) -> int | None:
        """The position at which the text ends with the beginning of a secret."""
        for at in range(
            max(0, len(letters) - max(map(len, self._secrets), default=0)), len(letters) - TAIL + 1
        ):
            if any(secret.startswith(letters[at:]) for secret in self._secrets):
                return at
        return None


class _Text:
    """A text, its letters and digits in one case, and where each of them stands."""

    def __init__(self, original: str) -> None:
        self.original = original
        self.letters = _letters(original)
        folded = original.casefold()
        self.folded = folded if len(folded) == len(original) else original

    @cached_property
    def _at(self) -> list[int]:
        return [at for at, char in enumerate(self.original) for _ in _letters(char)]

    @cached_property
    def words(self) -> list[re.Match[str]]:
        return list(_WORD.finditer(self.original))

    def span(self, at: int, length: int) -> Span:
        """Where so many letters and digits stand in the original."""
        return self._at[at], self._at[at + length - 1] + 1

    def stands_alone(self, at: int, length: int) -> bool:
        """Whether no word goes on before or behind them."""
        start, end = self.span(at, length)
        around = self.original[start - 1 : start] + self.original[end : end + 1]
        return not any(char.isalnum() or char == "_" for char in around)


def _letters(text: str) -> str:
    return _NO_WORD.sub("", text.upper().casefold())


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is quoted; those that differ in special characters alone are left out."""
    data = secret.encode(errors="replace")
    yield secret
    if not (secret.isascii() and secret.isalnum()):
        escaped = json.dumps(secret)[1:-1]
        yield from (
            escaped,
            json.dumps(escaped)[1:-1],
            quote(escaped),
            json.dumps(secret, ensure_ascii=False)[1:-1],
        )
        yield from (
            quote(secret, errors="replace"),
            quote(secret, safe="", errors="replace"),
            quote_plus(secret, errors="replace"),
        )
        yield from (html.escape(secret), repr(data)[2:-1])
    for offset in range(3):
        # Characters at both ends depend on what stands beside the secret.
        encoded = base64.b64encode(b"\0" * offset + data + b"\0" * (-(len(data) + offset) % 3))
        yield encoded[-(-offset * 8 // 6) : len(encoded) - 1 - (-(len(data) + offset) % 3)].decode()
    yield data.hex()
    yield "".join(map(str, data))
    yield "".join(str(ord(char)) for char in secret)


def _places(text: str, wanted: str) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + len(wanted))


def _joined(text: str, spans: list[Span]) -> list[Span]:
    """Spans with nothing but special characters between them, as one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        between = text[joined[-1][1] : start] if joined else " "
        if not _WORD.search(between) and not any(map(str.isspace, between)):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _masked(text: str, spans: list[Span]) -> str:
    parts: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if start >= at:
            parts += (text[at:start], MASK)
        at = max(at, end)
    parts.append(text[at:])
    return "".join(parts)
