"""The text of headers and cells, without what spreadsheets add (contract §12)."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from worker.contract.platforms import ATTRIBUTES, FIELDS, PLATFORM_NAME
from worker.files.damage import ACCOUNT, Problem

# All kinds of white space, including zero-width characters, byte order marks and zero bytes.
WHITE: Final = (
    "\x00\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u200c\u200d\u200e\u200f"
    "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u202f\u205f\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068"
    "\u2069\u3000\u3164\ufeff\uffa0"
)
FLAGS: Final[dict[str, bool | int]] = {
    **dict.fromkeys(("true", "yes", "y", "on"), True),
    **dict.fromkeys(("false", "no", "n", "off"), False),
    "1": 1,
    "0": 0,
}
# Where a formula can begin: also after another locale's cell separator, and in full width.
_SIGN = "=+\\-@\uff1d\uff0b\uff0d\uff20\t\r"
_FORMULA = re.compile(rf"(^|[;\t|])(?=['\"\s]*[{_SIGN}])")
_GUARDED = re.compile(rf"(^|[;\t|])'(?=['\"\s]*[{_SIGN}])")
_AS_TEXT = re.compile(r'="((?:[^"]|"")*)"\Z')


def clean(cell: str) -> str:
    """The text without surrounding white space, `="…"` or a leading `'`. `\\N`, a database's null, becomes
    empty."""
    cell = cell.strip(WHITE)
    beginning = cell[:1]
    if beginning == "'":
        return cell[1:].strip(WHITE)
    if beginning == "=" and (wrapped := _AS_TEXT.match(cell)):
        return wrapped[1].replace('""', '"').strip(WHITE)
    return "" if cell == "\\N" else cell


def flag(cell: str) -> bool | int | str:
    """A clean cell as a flag. Other text is unchanged, and validation rejects it."""
    return FLAGS.get(cell.lower(), cell)


def plain(name: str) -> str:
    """A column's name in a normal form: without case, spaces, `_`, `-`, full width, and the prefix
    `ottPlatformAttributes.`."""
    name = unicodedata.normalize("NFKC", clean(name)).casefold().removeprefix(f"{ATTRIBUTES.casefold()}.")
    return "".join(c for c in name if c not in WHITE and c not in "_-")


def guard(cell: str) -> str:
    """The cell, escaped so that no spreadsheet reads it as a formula; `unguard` reverses it."""
    return _FORMULA.sub(r"\1'", cell)


def unguard(cell: str) -> str:
    """The cell as it was before `guard`."""
    return _GUARDED.sub(r"\1", cell)


def printable(text: str) -> str:
    """A file's name for one line of a terminal: control characters and bytes that are not UTF-8 are escaped
    (`\\x1b`, `\\xe9`)."""
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped).replace("\\udc", "\\x")


RawRow = tuple[int, int, list[str] | Problem]
"""The row's number in a spreadsheet, the line on which it begins, and its raw cells or why they cannot be
read."""

KNOWN: Final[Mapping[str, str]] = {
    **{plain(name): name for name in (PLATFORM_NAME, *FIELDS, ACCOUNT)},
    "mid": ACCOUNT,
}


def known_in(cells: Sequence[str]) -> int:
    """How many cells are names of attributes: this distinguishes a header from a title or data."""
    return sum(plain(cell) in KNOWN for cell in cells)
