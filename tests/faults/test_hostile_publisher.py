"""A short version of the campaign's row (hostile.py)."""

import pytest

from tests.faults.hostile import row


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_hostile_publisher_keeps_nobody_from_an_answer(clean_broker: str, partitions: int) -> None:
    line, is_well = await row(clean_broker, messages=150, rate=50, partitions=partitions)
    assert is_well, line
