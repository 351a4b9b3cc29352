"""Detects damage by a spreadsheet or a shifted row before a row is sent (contract §12)."""

import json
import re
import unicodedata
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from worker.contract.platforms import ID_FIELDS, NAME_FIELDS, PLATFORMS, SECRET_FIELDS
from worker.contract.secrets import MASK

ACCOUNT: Final = "accountId"
RESOURCE_IDS: Final = frozenset(platform.id_field for platform in PLATFORMS.values())
IDS: Final = frozenset(ID_FIELDS) | {ACCOUNT}
EXACT_DIGITS: Final = 15  # digits of a number that a spreadsheet keeps
LONGEST_SHOWN: Final = 40  # characters

_DIGITS = "digits only (0 to 9)"
_AS_TEXT = "Format the column as Text, then enter the id again as its source has it."


class Kind(NamedTuple):
    """One kind of problem: what is wrong, what is allowed, and what to do in the spreadsheet. `what` of a
    validation error is a whole sentence."""

    what: str
    allowed: str
    advice: str
    is_sentence: bool = False


SCIENTIFIC: Final = Kind("is in scientific notation, which has lost digits", _DIGITS, _AS_TEXT)
DECIMAL: Final = Kind("ends in .0", _DIGITS, "Format the column as Text and remove the .0.")
NOT_DIGITS: Final = Kind("has characters other than digits", _DIGITS, "Remove every other character.")
ROUNDED: Final = Kind(
    "ends in zeros and stands in several rows: a spreadsheet has rounded different ids to one",
    "each page or channel with its own id",
    _AS_TEXT,
)
ERROR_VALUE: Final = Kind(
    "is a spreadsheet's error value", "a value", "Correct the formula, or enter the value itself."
)
CELL_COUNT: Final = Kind(
    "has another number of cells than the header",
    "a cell for each column of the header",
    "Look for a split or missing cell. A value that contains the delimiter needs quotation marks.",
)
SECRET_AS_ID: Final = Kind(
    "is the same as one of its row's secrets", _DIGITS, "Look for cells that moved to another column."
)
QUOTING: Final = Kind(
    "has broken quotation marks",
    "quotation marks around the whole cell, and doubled within it",
    "Save the file again from the spreadsheet.",
)

_TEXT = ("the value as text", "Format the column as Text, then enter the value again as its source has it.")
NUMBER: Final = Kind("is a number with more digits than a spreadsheet keeps", *_TEXT)
DATE: Final = Kind("is a date to the spreadsheet", *_TEXT)


class SpoiltCell(str):  # noqa: SLOT000 (it has an attribute)
    """A cell that a workbook does not store as text, and may have changed."""

    kind: Kind

    def __new__(cls, text: str, kind: Kind) -> Self:
        cell = super().__new__(cls, text)
        cell.kind = kind
        return cell


PLACEHOLDER: Final = Kind(
    "is a mask or a placeholder, not a value", "the value itself", "Enter the value as its source has it."
)
LOST: Final = Kind(
    "has lost characters (\ufffd)", "the value itself", "Save the file as UTF-8 from its source."
)
ALL_END_IN_0: Final = Kind(
    "ends in 0, as every id of 16 and more digits in its column does: a spreadsheet has rounded them",
    "the exact id",
    _AS_TEXT,
)
SHIFTED: Final = (CELL_COUNT, QUOTING)  # no value of the row stands where it belongs
# These count as damage in every file format.
EVERYWHERE: Final = frozenset({SCIENTIFIC, DECIMAL, ERROR_VALUE, SECRET_AS_ID, PLACEHOLDER, LOST})

_PLACEHOLDER = re.compile(
    r"""(?ix) [*•●∙·.?_-]+ | x{3,} | <[^<>]*> | \{\{.*\}\} | \$\{.*\} | .*… | \[object\ object\]
    | [\[(<]? (?:null|nil|(?-i:None|NONE)|nan|undefined|n/a|tbd|tba|todo|redacted|changeme) [\])>]?"""
)
_SCIENTIFIC = re.compile(r"[+-]?\d+(?:[.,]\d+)?E[+-]?\d+\Z", re.IGNORECASE)
_DECIMAL = re.compile(r"\d+[.,]0+\Z")
# In English, then as German, French, Spanish, Italian, Dutch and Portuguese spreadsheets save them.
_ERRORS = """
#N/A #N/A! #REF! #VALUE! #NAME? #DIV/0! #NULL! #NUM! #SPILL! #CALC! #FIELD! #BLOCKED! #CONNECT! #BUSY!
#UNKNOWN! #EXTERNAL! #PYTHON! #GETTING_DATA #ERROR!
#NV #BEZUG! #WERT! #ZAHL! #ÜBERLAUF! #N/D #VALEUR! #NOM? #NOMBRE! #NUL! #¡REF! #¡VALOR! #¿NOMBRE? #¡DIV/0!
#¡NULO! #¡NUM! #RIF! #VALORE! #NOME? #N/B #WAARDE! #NAAM? #VERW! #GETAL! #LEEG! #VALOR! #N/DISP
"""
_ERROR_VALUES = frozenset(_ERRORS.split())
_OTHER_ERROR = re.compile(r"#{3,}\Z|Err:\d{3}\Z")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a row. `field` is the attribute of a cell, and `column` its name in the header. `value`
    may be shown."""

    kind: Kind
    field: str = ""
    column: str = ""
    value: str = ""
    remark: str = ""

    def __str__(self) -> str:
        if self.kind.is_sentence:
            return self.kind.what
        subject = f"{self.column} {self.value}".strip() or "The row"
        remark = f" ({self.remark})" if self.remark else ""
        return f"{subject} {self.kind.what}{remark}; allowed: {self.kind.allowed}"

    @property
    def spoils_id(self) -> bool:
        """Whether the row's resource id may be wrong, or a secret in the wrong column."""
        return self.kind in SHIFTED or (self.field in RESOURCE_IDS and self.kind is not ROUNDED)

    @property
    def about(self) -> str:
        """The column, the value and the remark, as text after the row's position."""
        column = f", column {self.column}" if self.column else ""
        value = f": {self.value}" if self.value else ""
        return f"{column}{value}{f' ({self.remark})' if self.remark else ''}"


def damaged_values(values: Mapping[str, Any], headers: Mapping[str, str]) -> list[Problem]:
    """The damage in a row of a table. `headers` maps each field to its name in the file."""
    secrets = {values[name]: name for name in SECRET_FIELDS if name in values}
    found = []
    for name, value in values.items():
        if not isinstance(value, str) or (kind := _damage(name, value, secrets)) is None:
            continue
        visible, remark = shown(name, value), ""
        if kind is SECRET_AS_ID:
            visible, remark = MASK, headers.get(secrets[value], secrets[value])
        elif kind is ERROR_VALUE or (kind is PLACEHOLDER and not value.endswith("…")):
            visible = f'"{value[:LONGEST_SHOWN]}"'  # an error value or a placeholder is no secret
        elif kind is NOT_DIGITS:
            digits = unicodedata.normalize("NFKC", value)
            remark = f"write {digits}" if _is_digits(digits) else ""
        found.append(Problem(kind, name, headers.get(name, name), visible, remark))
    return found


def _damage(name: str, value: str, secrets: Container[str]) -> Kind | None:
    kind = None
    if isinstance(value, SpoiltCell):
        kind = value.kind
    elif "\ufffd" in value:
        kind = LOST
    elif _PLACEHOLDER.fullmatch(value):
        kind = PLACEHOLDER
    elif value in _ERROR_VALUES or _OTHER_ERROR.match(value):
        kind = ERROR_VALUE
    elif name in IDS and value in secrets:
        kind = SECRET_AS_ID
    elif name in IDS and not _is_digits(value):
        is_decimal = _DECIMAL.match(value)
        kind = SCIENTIFIC if _SCIENTIFIC.match(value) else DECIMAL if is_decimal else NOT_DIGITS
    return kind


def spreadsheet_marks(values: Mapping[str, Any]) -> list[Problem]:
    """The damage in a row of JSON: only that of a spreadsheet. A program may write letters into an id on
    purpose."""
    texts = {name: value for name, value in values.items() if isinstance(value, str) and value}
    return [problem for problem in damaged_values(texts, {}) if problem.kind in EVERYWHERE]


def is_long_id(value: object) -> bool:
    """Whether it is an id with more digits than a spreadsheet keeps."""
    return isinstance(value, str) and len(value) > EXACT_DIGITS and value.isdigit()


def may_be_rounded(resource_id: str) -> bool:
    """Whether all digits of a long id beyond those that a spreadsheet keeps are zeros."""
    return is_long_id(resource_id) and not resource_id[EXACT_DIGITS:].strip("0")


def is_rounded(digits: str, value: str) -> bool:
    """Whether a spreadsheet that reads an id as a number shows it as this value."""
    if not _is_digits(digits):
        return False
    value = value.replace(",", ".")
    if _SCIENTIFIC.match(value):
        places = len(value.upper().partition("E")[0].partition(".")[2])
        return float(f"{int(digits):.{places}E}") == float(value)
    kept = EXACT_DIGITS - 1  # the last digit may be rounded up
    is_cut = may_be_rounded(value) and len(value) == len(digits) and value[:kept] == digits[:kept]
    return is_cut or value == f"{digits}.0"


def shown(name: str, value: object, secrets: Iterable[object] = ()) -> str:
    """A value for display: secrets are masked, long values are cut, invisible characters are escaped. A JSON
    number has no quotation marks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if name in SECRET_FIELDS or text in secrets or (name not in NAME_FIELDS and _may_be_a_secret(text)):
        return MASK
    if len(text) > LONGEST_SHOWN:
        text = text[: LONGEST_SHOWN - 1] + "…"
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return f'"{text}"' if isinstance(value, str) else text


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _may_be_a_secret(text: str) -> bool:
    """Whether it looks like a token: a cell may have moved to another column."""
    return (
        len(text) >= 16 and sum(map(str.isalpha, text)) > 4 and not any(c.isspace() or c == "." for c in text)
    )
