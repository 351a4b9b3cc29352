"""The command line is tried on one broker; what differs between brokers is tested below it."""

from collections.abc import AsyncIterator

import pytest

from tests.acceptance.submit_command import Command
from tests.rig import Requester, Rig


@pytest.fixture
async def requester(rig: Rig) -> Requester:
    """A broker with all queues, and no worker any more."""
    requester = await rig.start()
    await rig.stop_first()
    return requester


@pytest.fixture
async def submit(rig: Rig, broker_url: str, prefix: str) -> AsyncIterator[Command]:
    """The command, beside a worker that calls for each row, also where many are for one page."""
    await rig.start(coalesce_after=0)
    command = Command(rig.settings())
    yield command
    command.kill()
