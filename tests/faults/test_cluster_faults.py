"""A node of a cluster is lost, or its network parts: nothing is lost, nothing overtakes, and the journal is
whole."""

import shutil
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.faults.cluster import TREE, Cluster
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_world import ClusterWorld
from tests.faults.network import Network, NoNamespaces
from tests.faults.world import endure

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 100  # requests a second
REQUESTS = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterWorld]:
    """Three nodes and three workers that serve all tests of the module."""
    if not TREE and shutil.which("epmd", path="/usr/bin:/bin") is None:
        warnings.warn("the cluster tests did NOT run: no installed rabbitmq-server", stacklevel=1)
        pytest.skip("there is no installed rabbitmq-server to make three nodes of")
    try:
        network = Network().__enter__()
    except NoNamespaces as error:
        warnings.warn(f"the cluster tests did NOT run: {error}", stacklevel=1)
        pytest.skip(f"this machine allows no network namespaces: {error}")
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
async def test_a_cluster_loses_nothing_and_nothing_overtakes(world, name):
    await endure(world, CLUSTER_FAULTS[name], REQUESTS, 1, RATE)
    await world.intact()
