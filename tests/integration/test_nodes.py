"""Several nodes in OTT_AMQP_URL: tried in turn, another one after a loss (contract §7)."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.proxy import Proxy
from tests.integration.secured.ports import free_port
from tests.rig import messenger, until
from worker.amqp import connection as amqp_connection
from worker.amqp.connection import connect
from worker.errors import BrokerUnreachable

ONE_BROKER = "Which node is tried when is decided by the worker alone."


@pytest.fixture(autouse=True)
def _nothing_has_failed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_connection, "_failed_at", {})


@pytest.fixture
async def proxies(clean_broker: str) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Two nodes, as it were."""
    async with Proxy.to(clean_broker) as first, Proxy.to(clean_broker) as second:
        yield first, second


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose owner takes connections and never says anything, as a frozen node does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def at(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/"


async def test_a_frozen_node_costs_one_attempt_and_no_more(
    make_settings, clean_broker, silent_port, monkeypatch
):
    monkeypatch.setattr(amqp_connection, "NODE_TIMEOUT", 1.0)
    settings = make_settings(amqp_url=f"{at(silent_port)},{clean_broker}")
    took = []
    for _ in range(3):
        began = time.monotonic()
        await (await connect(settings, "test")).close()
        took.append(time.monotonic() - began)
    assert took[0] >= 1.0
    assert max(took[1:]) < took[0]


async def test_after_a_loss_another_node_is_tried_first(make_settings, proxies):
    first, second = proxies
    settings = make_settings(amqp_url=f"{at(first.port)},{at(second.port)}")
    connection = await connect(settings, "test")
    assert (first.accepted, second.accepted) == (1, 0)
    first.reset()
    await connection.lost
    await connection.close()
    await (await connect(settings, "test")).close()
    assert (first.accepted, second.accepted) == (1, 1)


async def test_where_no_node_can_be_reached_each_is_named_with_its_cause(
    make_settings, silent_port, monkeypatch
):
    monkeypatch.setattr(amqp_connection, "NODE_TIMEOUT", 0.5)
    closed_port = free_port()
    urls = f"{at(closed_port)},amqp://user:secret@no-such-host.invalid,{at(silent_port)}"
    with pytest.raises(BrokerUnreachable) as caught:
        await connect(make_settings(amqp_url=urls), "test")
    text = str(caught.value)
    assert f"127.0.0.1:{closed_port} cannot be reached: connection refused" in text
    assert "no-such-host.invalid:5672 cannot be reached: the host name is not known" in text
    assert f"127.0.0.1:{silent_port} cannot be reached: no answer in time" in text
    assert "secret" not in text


async def test_a_worker_goes_on_with_another_node(rig, proxies):
    first, second = proxies
    requester = await rig.requester_for(rig.settings())
    await rig.start_worker(rig.settings(amqp_url=f"{at(first.port)},{at(second.port)}"))
    assert (await requester.ask(messenger()))["status"] == "registered"
    first.refusing = True
    first.reset()
    wanted = await requester.publish(messenger())
    async with asyncio.timeout(10):
        assert (await requester.reply(wanted))["status"] == "registered"
    await until(lambda: second.accepted >= 2, "consumer and publisher on the other node")
