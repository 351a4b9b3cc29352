"""Workers that share the load are killed: nothing is lost or overtaken, whichever of them it is."""

import pytest

from tests.faults.conftest import MakeWorld
from tests.faults.faults import FAULTS, PARTITIONED, endure

TAKE_OVER = 5.0  # seconds until the first reply made since


@pytest.mark.parametrize(
    "name", ["partitions: kill -9 of the router", "partitions: kill -9 of a partition's worker"]
)
async def test_kill_9_loses_nothing_and_the_others_go_on_within_seconds(
    name: str, make_world: MakeWorld, broker_url: str
) -> None:
    world = await make_world(broker_url, workers=3, environment=PARTITIONED)
    await endure(world, FAULTS[name], 300, strikes=1, rate=150)
    await world.intact(last=True)
    assert max(world.recoveries, default=0.0) < TAKE_OVER
