"""`submit --check`: every row is validated here, nothing is sent."""

from collections.abc import Iterator

from worker.bulk.readers import Reading, Row
from worker.bulk.results import INVALID, Result
from worker.contract.registration import Rejection


def invalid_rows(reading: Reading, max_body_bytes: int) -> Iterator[Result | int]:
    """For each row its result if it is invalid, else its number. Raises as `Reading.rows` does."""
    for row in reading.rows():
        errors = tuple(_errors(row, max_body_bytes))
        yield (
            Result(row.number, None, INVALID, row.platform, row.resource_id, errors) if errors else row.number
        )


def _errors(row: Row, max_body_bytes: int) -> Iterator[str]:
    if row.problem:
        yield row.problem
    if len(row.body) > max_body_bytes:
        yield f"The row is larger than {max_body_bytes} bytes."
    if isinstance(row.parsed, Rejection):
        yield from (error.message for error in row.parsed.errors)
