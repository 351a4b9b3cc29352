"""What the fault tests share: a node that they may kill, and worlds whose workers serve many tests."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.conftest import BROKER_URLS
from tests.faults.node import ROOTS, Node
from tests.faults.world import World

MakeWorld = Callable[..., Any]


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A RabbitMQ node of the tests' own."""
    with Node(root=ROOTS[0]) as a_node:
        yield a_node


@pytest.fixture(scope="module")
def module_broker_url(request: pytest.FixtureRequest) -> str:
    """Each broker that `OTT_TEST_AMQP_URLS` names, in turn, for all tests of a module."""
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(
    module_broker_url: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    """Two workers that serve all tests of the module; the module's ENVIRONMENT and HEARTBEAT are theirs."""
    given = {
        "environment": getattr(request.module, "ENVIRONMENT", {}),
        "heartbeat": getattr(request.module, "HEARTBEAT", None),
    }
    async for world in _serving(module_broker_url, tmp_path_factory, **given):
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own_world(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The same on a broker that may be killed."""
    async for world in _serving(node.url, tmp_path_factory, node=node):
        yield world


async def _serving(url: str, folders: pytest.TempPathFactory, **given: Any) -> AsyncIterator[World]:
    async with World(url, f"test.{uuid4().hex[:12]}", folders.mktemp("workers"), **given) as world:
        await world.start(2)
        yield world
        world.fresh()
        await world.intact(last=True)


@pytest.fixture
def world(shared_world: World) -> World:
    """The shared workers, with nothing done or seen so far."""
    shared_world.fresh()
    return shared_world


@pytest_asyncio.fixture(loop_scope="module")
async def make_world(prefix: str, tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Make a world of this test's own: `await make_world(url_or_node, workers=2, ...)`."""
    async with AsyncExitStack() as stack:

        async def make(broker: str | Node, *, workers: int = 2, **options: Any) -> World:
            node = broker if isinstance(broker, Node) else None
            url = node.url if node is not None else str(broker)
            world = await stack.enter_async_context(World(url, prefix, tmp_path, node=node, **options))
            await world.start(workers)
            return world

        yield make


def pytest_report_header() -> str:
    return f"fault tests: {', '.join(url.rpartition('@')[2] for url in BROKER_URLS)} and a node of their own"
