"""Finds all that is wrong with a row, for the person who corrects the file (contract §12)."""

from typing import Final

from worker.contract.platforms import ATTRIBUTES, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS
from worker.contract.registration import FieldError, Rejection
from worker.contract.words import MISSING
from worker.files.damage import CELL_COUNT, Kind, Problem, shown
from worker.files.job_database import JobDatabase
from worker.files.rows import Row

_INFOS = [info for platform in PLATFORMS.values() for info in platform.attributes.model_fields.values()]
_FIELD_OF: Final = {"OttPlatformName": PLATFORM_NAME} | {str(info.title): str(info.alias) for info in _INFOS}
_ALLOWED: Final = {
    PLATFORM_NAME: " or ".join(PLATFORMS),
    **dict.fromkeys(FLAG_FIELDS, "true or false, yes or no, y or n, on or off, 1 or 0"),
}


def findings(row: Row, database: JobDatabase, max_body_bytes: int, *, send_damaged: bool) -> list[Problem]:
    """The damage in a row, unless it is to be sent all the same, and what a worker would refuse. Of shifted
    cells nothing more is said than that they are shifted."""
    found = [] if send_damaged and row.document is not None else database.problems(row)
    if any(problem.kind is CELL_COUNT for problem in found):
        return found
    if row.document is not None and len(row.body) > max_body_bytes:
        what = f"The row is larger than {max_body_bytes} bytes."
        kind = Kind(what, "smaller rows", "Look for a cell that does not end.", is_sentence=True)
        found.append(Problem(kind))
    if isinstance(row.parsed, Rejection):
        found += [_explained(row, error) for error in row.parsed.errors]
    return found


def _explained(row: Row, error: FieldError) -> Problem:
    name = _FIELD_OF.get(error.message.partition(" ")[0])
    if name is None:
        allowed = "an object with the attributes of the platform"
        advice = f"Put the attributes into {ATTRIBUTES}, not beside it."
        return Problem(Kind(error.message, allowed, advice, is_sentence=True))
    value, advice = "", "Enter one of the allowed values."
    if error.errorcode != MISSING:
        value = shown(name, {**(row.document or {}), **row.attributes}.get(name), row.secrets)
    elif row.table and name in row.table.headers:
        advice = "Fill in the cell."
    else:
        advice = f"Add {name}, and fill it in."
    kind = Kind(error.message, _ALLOWED.get(name, "a text"), advice, is_sentence=True)
    return Problem(kind, name, row.header(name), value)
