"""Validates each row, and explains what to correct in the file (contract §12)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from worker.contract.platforms import ATTRIBUTES, FIELDS, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS
from worker.contract.registration import Rejection
from worker.contract.words import MISSING
from worker.files.damage import CELL_COUNT, Kind, Problem, shown
from worker.files.rows import Row

MOST_PLACES: Final = 1000  # of one kind that are named one by one

_INFOS = [info for platform in PLATFORMS.values() for info in platform.attributes.model_fields.values()]
_FIELD_OF = {str(info.title): str(info.alias) for info in _INFOS}
_FLAG_VALUES: Final = "true or false, yes or no, y or n, on or off, 1 or 0"


@dataclass(slots=True)
class ProblemGroup:
    """The rows that have one kind of problem, and the places of the first few."""

    rows: int = 0
    places: list[tuple[str, Problem]] = field(default_factory=list)


class Findings:
    """Findings by kind, in no more memory for a million rows than for some thousand."""

    def __init__(self) -> None:
        self.rows = 0
        self.invalid = 0
        self.groups: dict[Kind, ProblemGroup] = {}

    def add(self, row: Row, wrong: Iterable[Problem]) -> tuple[str, ...]:
        """Take a row in, with all that is wrong with it; the errors of its results line."""
        self.rows += 1
        errors = []
        for problem in wrong:
            errors.append(str(problem))
            group = self.groups.setdefault(problem.kind, ProblemGroup())
            group.rows += 1
            if len(group.places) < MOST_PLACES:
                group.places.append((row.where(problem.field), problem))
        self.invalid += bool(errors)
        return tuple(errors)


def findings(row: Row, damaged: tuple[Problem, ...], max_body_bytes: int) -> Iterator[Problem]:
    """All that is wrong with a row. Of shifted cells nothing more is said than that they are shifted."""
    if row.fault:
        yield _problem(
            row.fault, "one JSON object for each row", "Correct the JSON, or export the row again."
        )
        return
    yield from damaged
    if any(problem.kind is CELL_COUNT for problem in damaged) or not row.body:
        return
    if len(row.body) > max_body_bytes:
        error = f"The row is larger than {max_body_bytes} bytes."
        yield _problem(error, "smaller rows", "Look for a cell that does not end.")
    if isinstance(row.parsed, Rejection):
        for refusal in row.parsed.errors:
            yield _explained(row, refusal.message, is_missing=refusal.errorcode == MISSING)


def _problem(
    message: str, allowed: str, advice: str, field: str = "", column: str = "", value: str = ""
) -> Problem:
    return Problem(Kind(message, allowed, advice), field, column, value, message=message)


def _explained(row: Row, message: str, *, is_missing: bool) -> Problem:
    name = _FIELD_OF.get(message.partition(" ")[0], "")
    if name:
        column = row.header(name)
        value = "" if is_missing else shown(name, row.attributes.get(name), row.secrets)
        allowed = _FLAG_VALUES if name in FLAG_FIELDS else "a text"
        advice = _fill_in(row, name) if is_missing else "Enter one of the allowed values."
        return _problem(message, allowed, advice, name, column, value)
    if message.startswith("OttPlatformName"):
        advice = f"Fill in the column {PLATFORM_NAME}, or give --platform for rows that name none."
        value = "" if is_missing else shown(PLATFORM_NAME, (row.document or {}).get(PLATFORM_NAME))
        return _problem(message, " or ".join(PLATFORMS), advice, PLATFORM_NAME, PLATFORM_NAME, value)
    beside = row.document is not None and row.document.keys() & set(FIELDS)
    advice = (
        f"The attributes stand beside {ATTRIBUTES}: put them into it." if beside else "Add the attributes."
    )
    return _problem(message, "an object with the attributes of the platform", advice)


def _fill_in(row: Row, name: str) -> str:
    if row.table is None:
        return f"Add {name} to the row."
    is_there = name in row.table.columns.headers
    return "Fill in the cell." if is_there else f"Add a column {name} and fill it in."
