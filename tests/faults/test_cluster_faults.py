"""A node of a cluster is lost, or its network parts: nothing is lost, nothing overtakes, and the journal is
whole."""

import asyncio
import json
import shutil
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from yarl import URL

from tests.faults.cluster import TREE, Cluster
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_world import ClusterWorld
from tests.faults.faults import endure
from tests.faults.load import old_body
from tests.faults.network import Network, NoNamespaces
from tests.rig import Rig, until
from worker.client import RegistrationClient
from worker.console.sources import Sources, refreshed
from worker.settings import Settings, load_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 100  # requests a second
REQUESTS = 100
# Seconds: 30 to notice that a node answers nothing, and as long as the rest of the cluster itself is silent.
NEXT_ADDRESS_WITHIN = 50.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterWorld]:
    """Three nodes and three workers that serve all tests of the module."""
    network = Network()
    try:
        network.__enter__()
    except NoNamespaces as error:
        warnings.warn(f"the cluster tests did NOT run: {error}", stacklevel=1)
        pytest.skip(f"this machine allows no network namespaces: {error}")
    if not TREE and shutil.which("epmd", path="/usr/bin:/bin") is None:
        network.__exit__()
        warnings.warn("the cluster tests did NOT run: no installed rabbitmq-server", stacklevel=1)
        pytest.skip("there is no installed rabbitmq-server to make three nodes of")
    try:
        async with Cluster(network) as cluster:
            folder: Path = tmp_path_factory.mktemp("workers")
            async with ClusterWorld(cluster, f"test.{uuid4().hex[:12]}", folder) as world:
                await world.start(3)
                yield world
    finally:
        network.__exit__()


@pytest.fixture
def world(cluster_world: ClusterWorld) -> ClusterWorld:
    cluster_world.fresh()
    return cluster_world


@pytest.mark.parametrize(
    "name",
    [
        "kill -9 of the leader of requests",
        "kill -9 of the leader of the journal",
        "kill -9 of a follower",
        "leader transfer",
        "partition: worker on the minority's side",
    ],
)
async def test_a_cluster_loses_nothing_and_nothing_overtakes(world: ClusterWorld, name: str) -> None:
    await endure(world, CLUSTER_FAULTS[name], REQUESTS, 1, RATE)
    await world.intact()


async def test_whoever_is_connected_to_a_node_without_a_majority_takes_the_next_address(
    world: ClusterWorld,
) -> None:
    """From 4.3 on such a node keeps its clients, which hear nothing; before, it closes their connections. The
    client stands for `submit` and `demo`, which are made of the same requester."""
    network, (minority, *others) = world.cluster.network, world.cluster.nodes.values()
    url = ",".join([minority.url, *(node.url for node in others)])

    def settings(**more: Any) -> Settings:
        given = {"mc_client_id": "sandbox", "mc_client_secret": "sandbox", "admin_port": None}
        return load_settings(**{**given, **more}, amqp_url=url, prefix=world.prefix)

    async def begins() -> None:
        async with RegistrationClient(url, prefix=world.prefix) as late:
            await _registers(late, "3")

    async def leaves(address: Callable[[], Awaitable[str | None]]) -> None:
        while await address() in (None, minority.address):
            await asyncio.sleep(0.1)

    async def of_worker() -> str | None:
        return getattr(worker.intake.connection, "url", URL()).host

    async def of_console() -> str | None:
        await _shown(sources)
        return (await sources._line.open()).url.host

    sources = Sources(settings())
    async with Rig(settings) as rig, RegistrationClient(url, prefix=world.prefix) as client:
        worker = await rig.start_worker(rig.settings())
        await _registers(client, "1")
        before = await until(lambda: _shown(sources), "the console's numbers")
        await asyncio.to_thread(network.cut, [minority.number], [node.number for node in others])
        try:
            async with asyncio.timeout(NEXT_ADDRESS_WITHIN):
                await asyncio.gather(_registers(client, "2"), begins(), leaves(of_worker), leaves(of_console))
            await world.cluster.revive()  # until then RabbitMQ takes 10 s for each look at a stream
            await until(lambda: _shown(sources, more_than=before), "what was registered since")
        finally:
            await world.cluster.revive()
            await sources.close()


async def _registers(client: RegistrationClient, page: str) -> None:
    assert (await client.register(json.loads(old_body(page)))).status == "registered"


async def _shown(sources: Sources, more_than: int = 0) -> int:
    """Registrations that the console shows for the last hour; 0 where what it has is old, or not more."""
    await refreshed(1, sources.state, sources.last_hour)
    if not (sources.state.is_fresh and sources.last_hour.is_fresh):
        return 0
    count = sum(counts["registered"] for _, counts in sources.last_hour.value.minutes())
    return count if count > more_than else 0
