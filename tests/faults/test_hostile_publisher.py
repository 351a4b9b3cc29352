"""A short version of the campaign's row (hostile.py), and a worker that is killed amid a publish that ends
its connection."""

import signal

import pytest

from tests.faults.hostile import row
from tests.faults.load import wait_for
from tests.faults.workers import Stop
from tests.faults.world import World
from tests.rig import Requester, messenger


async def test_a_hostile_publisher_keeps_nobody_from_an_answer(clean_broker):
    line, is_well = await row(clean_broker, messages=150, rate=50, partitions=3, wanted=0)
    assert is_well, line


@pytest.mark.parametrize(("point", "partitions"), [("poisonous", 1), ("renewing", 2)])
async def test_kill_9_amid_a_publish_that_ends_its_connection_loses_nothing(
    clean_broker, prefix, tmp_path, point, partitions
):
    environment = {
        "OTT_AMQP_URL": clean_broker,
        "OTT_PARTITIONS": str(partitions),
        "FAULTS_FIELD_TYPES": "wrong",
    }
    async with World(clean_broker, prefix, tmp_path, environment=environment) as world:
        doomed = await world.workers.start(Stop(point))
        await world.start(1)
        async with Requester(clean_broker, prefix) as requester:
            assert (await requester.ask(messenger("1")))["status"] == "registered"
            ids = [await requester.publish(messenger(str(number))) for number in range(10)]
            headers = {"a": 40_000, "b": "text"}  # an unsigned short, which is written wrongly
            poison = await requester.publish(messenger("4711") if partitions > 1 else b"{}", headers=headers)
            ids += [await requester.publish(messenger(str(number))) for number in range(10, 20)]
            await requester.all_registered(ids)
            if partitions > 1:
                replies = world.load.replies  # it reads PREFIX.replies
                await wait_for(lambda: any(b'"4711"' in reply.raw for reply in replies), "its reply")
            else:
                assert (await requester.reply(poison))["status"] == "rejected"
                assert (await requester.take("dead")).headers["x-ott-reduced"] is True
        assert await doomed.process.wait() == -signal.SIGKILL
