"""Finds damage by a spreadsheet or a shifted row before a row is sent (contract §12)."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from worker.contract.platforms import ID_FIELDS, NAME_FIELDS, PLATFORMS, SECRET_FIELDS
from worker.contract.secrets import MASK

ACCOUNT: Final = "accountId"
RESOURCE_IDS: Final = frozenset(platform.id_field for platform in PLATFORMS.values())
IDS: Final = frozenset(ID_FIELDS) | {ACCOUNT}
EXACT_DIGITS: Final = 15  # digits that a spreadsheet keeps of a number
LONGEST_SHOWN: Final = 40  # characters

_DIGITS = "digits only (0 to 9)"
_AS_TEXT = "Format the column as Text, then enter the id again as its source has it."


class Kind(NamedTuple):
    """One kind of problem: what is wrong, what is allowed, what to do in the spreadsheet."""

    what: str
    allowed: str
    advice: str


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
    "Look for a cell that was split in two or lost. A value that holds the delimiter needs quotation marks.",
)
SECRET_AS_ID: Final = Kind(
    "is the same as one of its row's secrets",
    _DIGITS,
    "Look for cells that were shifted into another column.",
)
QUOTING: Final = Kind(
    "has broken quotation marks",
    "quotation marks around the whole cell, and doubled within it",
    "Save the file again from the spreadsheet.",
)

NUMBER: Final = Kind(
    "is a number with more digits than a spreadsheet keeps",
    "the value as text",
    "Format the column as Text, then enter the value again as its source has it.",
)
DATE: Final = Kind(
    "is a date to the spreadsheet",
    "the value as text",
    "Format the column as Text, then enter the value again.",
)


class SpoiltCell(str):  # noqa: SLOT000 (it has an attribute)
    """A cell that a workbook does not hold as text, and may have changed."""

    kind: Kind

    def __new__(cls, text: str, kind: Kind) -> Self:
        cell = super().__new__(cls, text)
        cell.kind = kind
        return cell


PLACEHOLDER: Final = Kind(
    "is a mask or a placeholder, not a value", "the value itself", "Enter the value as its source has it."
)
LOST: Final = Kind(
    "has lost characters (\ufffd)",
    "the value itself",
    "Save the file as UTF-8 from its source, or enter it again.",
)
ALL_END_IN_0: Final = Kind(
    "ends in 0, as every id of 16 and more digits in its column does: a spreadsheet has rounded them",
    "the exact id",
    _AS_TEXT,
)
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
    """One thing that is wrong with a row: `field` is what a cell holds, `column` what the header calls it.
    `value` may be shown. What a worker would refuse has its `message`."""

    kind: Kind
    field: str = ""
    column: str = ""
    value: str = ""
    remark: str = ""
    message: str = ""

    def __str__(self) -> str:
        if self.message:
            return self.message
        subject = f"{self.column} {self.value}".strip() or "The row"
        remark = f" ({self.remark})" if self.remark else ""
        return f"{subject} {self.kind.what}{remark}; allowed: {self.kind.allowed}"


def damaged_values(values: Mapping[str, Any], headers: Mapping[str, str]) -> list[Problem]:
    """The damage in a row of a table. `headers` maps each field to its name in the file."""
    found = []
    secrets = [values[name] for name in SECRET_FIELDS if name in values]
    for name, value in values.items():
        if type(value) is not str:
            continue
        if name in IDS:
            if value in secrets:
                twin = next(other for other in SECRET_FIELDS if values.get(other) == value)
                found.append((SECRET_AS_ID, name, MASK, headers.get(twin, twin)))
            elif not (value.isascii() and value.isdigit()):
                found.append(_damaged_id(name, value))
        elif value[0] in "#E" and is_error_value(value):
            found.append((ERROR_VALUE, name, f'"{value}"', ""))
        if "\ufffd" in value:
            found.append((LOST, name, shown(name, value), ""))
        elif _PLACEHOLDER.fullmatch(value):
            is_cut = name in SECRET_FIELDS and value.endswith("…")  # then what is left is secret
            found.append((PLACEHOLDER, name, MASK if is_cut else f'"{value[:LONGEST_SHOWN]}"', ""))
    spoilt = {name for kind, name, *_ in found if kind in (PLACEHOLDER, LOST)}
    return [
        Problem(kind, name, headers.get(name, name), *more)
        for kind, name, *more in found
        if not (kind is NOT_DIGITS and name in spoilt)
    ]


def spoilt_cells(cells: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> list[Problem]:
    """The cells of attributes that a workbook does not hold as text, with what they are for."""
    return [
        Problem(cell.kind, name, headers[name], shown(name, str(cell)))
        for cell, name in cells
        if isinstance(cell, SpoiltCell) and name in headers
    ]


def spreadsheet_marks(values: Mapping[str, Any]) -> list[Problem]:
    """The damage in a row of JSON: only the traces of a spreadsheet. A program that writes letters into an id
    means them."""
    texts = {name: value for name, value in values.items() if isinstance(value, str) and value}
    return [problem for problem in damaged_values(texts, {}) if problem.kind in EVERYWHERE]


def is_error_value(text: str) -> bool:
    """Whether a cell holds a spreadsheet's error value."""
    return text in _ERROR_VALUES or _OTHER_ERROR.match(text) is not None


def ends_in_0(value: str) -> bool:
    """Whether an id has more digits than a spreadsheet keeps, and its last one may be lost."""
    return len(value) > EXACT_DIGITS and value.isdigit() and value.endswith("0")


def may_be_rounded(resource_id: str) -> bool:
    """Whether an id has no more digits than a spreadsheet keeps, and zeros after them."""
    beyond = len(resource_id) - EXACT_DIGITS
    return beyond > 0 and resource_id.isdigit() and resource_id.endswith("0" * beyond)


def is_rounded(digits: str, value: str) -> bool:
    """Whether a spreadsheet that takes an id for a number makes this of it."""
    if not (digits.isascii() and digits.isdigit()):
        return False
    value = value.replace(",", ".")
    if _SCIENTIFIC.match(value):
        places = len(value.upper().partition("E")[0].partition(".")[2])
        return float(f"{int(digits):.{places}E}") == float(value)
    kept = EXACT_DIGITS - 1  # the last digit may be rounded up
    is_cut = may_be_rounded(value) and len(value) == len(digits) and value[:kept] == digits[:kept]
    return is_cut or value == f"{digits}.0"


def shown(name: str, value: object, secrets: Iterable[object] = ()) -> str:
    """A value for people: a secret masked, a long one shortened, invisible characters made visible. A number
    of JSON has no quotation marks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if name in SECRET_FIELDS or text in secrets or (name not in NAME_FIELDS and _may_be_a_secret(text)):
        return MASK
    if len(text) > LONGEST_SHOWN:
        text = text[: LONGEST_SHOWN - 1] + "…"
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return f'"{text}"' if isinstance(value, str) else text


def _damaged_id(name: str, value: str) -> tuple[Kind, str, str, str]:
    visible = shown(name, value)
    if is_error_value(value):
        return ERROR_VALUE, name, visible, ""
    if _SCIENTIFIC.match(value):
        return SCIENTIFIC, name, visible, ""
    if _DECIMAL.match(value):
        return DECIMAL, name, visible, ""
    digits = unicodedata.normalize("NFKC", value)
    return NOT_DIGITS, name, visible, f"write {digits}" if digits.isascii() and digits.isdigit() else ""


def _may_be_a_secret(text: str) -> bool:
    """Whether this is as long and as dense as a token: a cell may have slid into another column."""
    return (
        len(text) >= 16 and sum(map(str.isalpha, text)) > 4 and not any(c.isspace() or c == "." for c in text)
    )
