"""Text without its escapes and in one case, and where each character of it came from.

Whoever quotes a text escapes it: for JSON, for a URL, for HTML, and often for one after the other.
"""

import html
import json
import re
from typing import NamedTuple

ROUNDS = 4  # escapes within escapes that are undone
_ESCAPE = re.compile(
    r"(?P<unicode>(?:\\u[0-9a-fA-F]{4})+)"
    r"|(?P<octets>(?:\\x[0-9a-fA-F]{2})+|(?:%[0-9a-fA-F]{2})+)"
    r"|(?P<backslash>\\[^u\0])"
    r"|(?P<html>&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,8}|[A-Za-z][A-Za-z0-9]{1,31});)",
    re.DOTALL,
)
# The beginning of an escape, where the text was cut within it.
_CUT_ESCAPE = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3})?|%[0-9a-fA-F]?|&#?[A-Za-z0-9]{0,8})\Z")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


class Plain(NamedTuple):
    """`text[i]` was written as `original[starts[i]:ends[i]]`."""

    text: str
    starts: list[int] | range
    ends: list[int] | range


def unescape(original: str) -> Plain:
    """The text with the escapes of JSON, URLs and HTML undone, again and again. Never raises."""
    plain = Plain(original, range(len(original)), range(1, len(original) + 1))
    for _ in range(ROUNDS):
        if not _ESCAPE.search(plain.text):
            break
        plain = _once(plain)
    return plain


def fold(plain: Plain) -> Plain:
    """The text in one case, and with the spaces that a form writes as `+`."""
    folded = plain.text.upper().casefold().replace("+", " ")
    if len(folded) == len(plain.text):
        return Plain(folded, plain.starts, plain.ends)
    # Some letters become two.
    origins = [i for i, character in enumerate(plain.text) for _ in character.upper().casefold()]
    return Plain(folded, [plain.starts[i] for i in origins], [plain.ends[i] for i in origins])


def without_cut_escape(text: str) -> str:
    """The text without the beginning of an escape at its end."""
    return _CUT_ESCAPE.sub("", text)


def _once(plain: Plain) -> Plain:
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for escape in _ESCAPE.finditer(plain.text):
        first, last = escape.span()
        meant = _meaning(escape)
        parts += (plain.text[at:first], meant)
        starts += plain.starts[at:first]
        ends += plain.ends[at:first]
        starts += [plain.starts[first]] * len(meant)
        ends += [plain.ends[last - 1]] * len(meant)
        at = last
    parts.append(plain.text[at:])
    starts += plain.starts[at:]
    ends += plain.ends[at:]
    return Plain("".join(parts), starts, ends)


def _meaning(escape: re.Match[str]) -> str:
    written = escape[0]
    if escape["unicode"]:
        return str(json.loads(f'"{written}"'))
    if escape["octets"]:
        return bytes.fromhex(written.replace("\\x", "").replace("%", "")).decode(errors="replace")
    if escape["backslash"]:
        return _CONTROL.get(written[1].lower(), written[1])
    return html.unescape(written)
