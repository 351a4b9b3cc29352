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
MOST_KINDS: Final = 200

_INFOS = [info for platform in PLATFORMS.values() for info in platform.attributes.model_fields.values()]
_FIELD_OF = {str(info.title): str(info.alias) for info in _INFOS}
_FLAG_VALUES: Final = "true or false, yes or no, y or n, on or off, 1 or 0"
_PLATFORM_VALUES: Final = " or ".join(PLATFORMS)


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One error of a row: `error` for its results line, `problem` for the report of `--check`."""

    error: str
    problem: Problem


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

    def add(self, row: Row, wrong: Iterable[RowFinding]) -> tuple[str, ...]:
        """Take a row in, with all that is wrong with it; the errors of its results line."""
        self.rows += 1
        errors = []
        for finding in wrong:
            errors.append(finding.error)
            group = self._group(finding.problem.kind)
            group.rows += 1
            if len(group.places) < MOST_PLACES:
                place = row.where(finding.problem.field)
                group.places.append((place, finding.problem))
        self.invalid += bool(errors)
        return tuple(errors)

    def _group(self, kind: Kind) -> ProblemGroup:
        if kind not in self.groups and len(self.groups) >= MOST_KINDS:
            kind = Kind(
                "The row has another problem", "what the results file tells", "Name a --results file."
            )
        return self.groups.setdefault(kind, ProblemGroup())


def findings(row: Row, damaged: tuple[Problem, ...], max_body_bytes: int) -> Iterator[RowFinding]:
    """All that is wrong with a row. Of shifted cells nothing more is said than that they are shifted."""
    if row.fault:
        kind = Kind(row.fault, "one JSON object for each row", "Correct the JSON, or export the row again.")
        yield RowFinding(row.fault, Problem(kind))
        return
    for problem in damaged:
        yield RowFinding(str(problem), problem)
    if any(problem.kind is CELL_COUNT for problem in damaged) or not row.body:
        return
    if len(row.body) > max_body_bytes:
        error = f"The row is larger than {max_body_bytes} bytes."
        yield RowFinding(error, Problem(Kind(error, "smaller rows", "Look for a cell that does not end.")))
    if isinstance(row.parsed, Rejection):
        for refusal in row.parsed.errors:
            problem = _explained(row, refusal.message, is_missing=refusal.errorcode == MISSING)
            yield RowFinding(refusal.message, problem)


def _explained(row: Row, message: str, *, is_missing: bool) -> Problem:
    name = _FIELD_OF.get(message.partition(" ")[0], "")
    if name:
        column = row.header(name)
        value = "" if is_missing else shown(name, row.attributes.get(name), row.secrets)
        allowed = _FLAG_VALUES if name in FLAG_FIELDS else "a text"
        advice = _fill_in(row, name) if is_missing else "Enter one of the allowed values."
        return Problem(Kind(message, allowed, advice), name, column, value)
    if message.startswith("OttPlatformName"):
        advice = f"Fill in the column {PLATFORM_NAME}, or give --platform for rows that name none."
        value = "" if is_missing else shown(PLATFORM_NAME, (row.document or {}).get(PLATFORM_NAME))
        return Problem(Kind(message, _PLATFORM_VALUES, advice), PLATFORM_NAME, PLATFORM_NAME, value)
    return Problem(Kind(message, "an object with the attributes of the platform", _hint(row)))


def _hint(row: Row) -> str:
    """What to do with an object that has no attributes where they belong."""
    document = row.document or {}
    if isinstance(document.get("data"), list):
        return "It is a list of the Graph API: write one object for each entry of its data."
    if document.keys() >= {"id", "access_token"}:
        return "It is a page of the Graph API: rename id to pageId, access_token to pageAccessToken."
    if document.keys() & set(FIELDS):
        return f"The attributes stand beside {ATTRIBUTES}: put them into it."
    return "Add the attributes."


def _fill_in(row: Row, name: str) -> str:
    if row.cells is None:
        return f"Add {name} to the row."
    return (
        "Fill in the cell."
        if row.table and name in row.table.columns.headers
        else f"Add a column {name} and fill it in."
    )
