"""The Python client against a real broker, the worker and the sandbox."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aio_pika
import aiormq.channel
import pytest

from tests.rig import LINE, MESSENGER, Requester, messenger, until
from tests.sandbox_faults import Latency
from worker.amqp.confirm_channel import LoneChannel
from worker.amqp.connection import connect
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.broker import requester as requests
from worker.client import OutcomeUnknown, RegistrationClient, SyncRegistrationClient, TopologyError
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.settings import load_settings


@pytest.fixture
async def client(requester: Requester, broker_url: str, prefix: str) -> AsyncIterator[RegistrationClient]:
    async with RegistrationClient(broker_url, prefix=prefix) as client:
        yield client


def page(page_id: str, name: str = "SFMC Engineers") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(messenger(page_id, name))
    return document


async def test_a_registration_is_answered_with_its_result(client):
    reply = await client.register(MESSENGER)
    assert reply.status == "registered"
    assert (reply.platform, reply.resource_id) == ("messenger", "1732555047025799")
    assert (reply.http_status, reply.attempts, reply.errors) == (201, 1, ())


async def test_the_id_and_the_account_that_the_caller_names_are_used(requester, broker_url, prefix):
    async with RegistrationClient(broker_url, prefix=prefix, account_id="510001") as client:
        reply = await client.register(LINE, request_id="order-17")
        dead = await client.register({}, request_id="order-18", account_id="510002")
    assert (reply.request_id, dead.request_id) == ("order-17", "order-18")
    letter = await requester.take("dead")
    assert letter.headers["x-ott-account-id"] == "510002"


async def test_a_time_out_says_that_the_outcome_is_unknown_and_of_which_request(rig, client):
    rig.sandbox.faults.add(Latency(path="registration", seconds=1))
    with pytest.raises(OutcomeUnknown, match="outcome of request slow-1 is unknown") as unknown:
        await client.register(page("1"), request_id="slow-1", timeout=0.2)
    assert unknown.value.request_id == "slow-1"
    assert isinstance(unknown.value, TimeoutError)
    again = await client.register(page("1"), request_id="slow-1")
    assert again.status == "registered"


async def test_one_id_cannot_be_under_way_twice(client):
    first = asyncio.create_task(client.register(page("1"), request_id="a"))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="a is already in flight"):
        await client.register(page("1"), request_id="a")
    assert (await first).status == "registered"


async def test_an_id_that_the_protocol_would_cut_is_refused(client):
    assert (await client.register(MESSENGER, request_id="x" * 255)).request_id == "x" * 255
    for call in (client.register, client.publish):
        with pytest.raises(ValueError, match="request_id must be 255 bytes at most"):
            await call(MESSENGER, request_id="é" * 128)


async def test_a_misspelt_option_is_refused(client):
    for call in (client.register, client.publish):
        with pytest.raises(TypeError, match="acount_id"):
            await call(MESSENGER, acount_id="510002")


async def test_publish_returns_when_the_broker_has_it_and_the_reply_goes_to_the_shared_queue(
    requester, client
):
    request_id = await client.publish(page("77"))
    reply = await requester.take("replies")
    assert reply.correlation_id == request_id
    assert json.loads(reply.body)["resourceId"] == "77"


async def test_of_many_each_outcome_comes_as_it_is_known_and_few_are_under_way(rig, client):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.05))
    documents: list[dict[str, Any]] = [page(str(number)) for number in range(1, 31)]
    documents[7:9] = {"ottPlatformName": "telegram"}, {"not": {"json"}}
    outcomes, most = [], 0
    async for document, outcome in client.register_many(documents, window=10):
        outcomes.append((documents.index(document), outcome))
        most = max(most, len(rig.sandbox.history.registration_calls) - len(outcomes))
    by_number = dict(outcomes)
    assert [*sorted(by_number)] == [*range(30)]
    assert most <= 10
    assert isinstance(by_number.pop(8), TypeError)
    assert by_number.pop(7).status == "rejected"
    assert {reply.status for reply in by_number.values()} == {"registered"}


async def test_of_many_those_under_way_are_given_up_when_the_iteration_is_left(rig, client):
    rig.sandbox.faults.add(Latency(path="registration", resource_id="2", seconds=5))
    outcomes = client.register_many([page("1"), page("2")])
    _, reply = await anext(outcomes)
    await outcomes.aclose()
    assert reply.resource_id == "1"
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "register"]


async def test_a_lost_connection_is_ridden_out(requester, rig, proxy, prefix):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.5))
    async with RegistrationClient(proxy.url, prefix=prefix) as client:
        under_way = [asyncio.create_task(client.register(page(str(number)))) for number in range(20)]
        await until(lambda: rig.sandbox.history.registration_calls)
        proxy.reset()
        replies = await asyncio.gather(*under_way)
        later = await client.register(page("999"))
    assert {reply.status for reply in [*replies, later]} == {"registered"}


async def test_a_full_queue_is_waited_for(rig, broker_url, prefix):
    await rig.start()
    await rig.stop_first()
    connection = await aio_pika.connect(broker_url)
    async with connection, RegistrationClient(broker_url, prefix=prefix) as client:
        channel = await connection.channel()
        await channel.queue_delete(f"{prefix}.requests")
        small = await channel.declare_queue(
            f"{prefix}.requests",
            durable=True,
            arguments={"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"},
        )
        await small.bind(prefix, "request")
        names = [f"Page {number}" for number in range(5)]
        sent = [asyncio.create_task(client.publish(page("1", name))) for name in names]
        received = []
        for _ in names:
            message = await until(lambda: small.get(no_ack=True, fail=False), "a request")
            received.append(json.loads(message.body)["ottPlatformAttributes"]["pageName"])
        await asyncio.gather(*sent)
    assert received == names


async def test_an_exchange_that_goes_away_fails_what_is_sent_there(
    requester, monkeypatch, broker_url, prefix
):
    monkeypatch.setattr(requests, "MISSING_FOR", 0.5)
    async with RegistrationClient(broker_url, prefix=prefix) as client:
        await requester.channel.exchange_delete(prefix)
        with pytest.raises(
            TopologyError, match=f"No queue receives requests from the exchange {prefix}: start the worker"
        ):
            await client.register(page("1"))


def test_the_amqp_library_logs_no_message_that_surprises_it(monkeypatch):
    library = logging.getLogger(aiormq.channel.__name__)
    monkeypatch.setattr(library, "level", logging.DEBUG)
    records: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: records.append(record.getMessage()))
    library.addHandler(handler)
    try:
        library.error("Unhandled message %r returning", "a body with a secret")
        library.error("Consumer callback failed")
    finally:
        library.removeHandler(handler)
    assert records == ["Consumer callback failed"]


async def test_without_a_worker_s_queues_the_client_says_so_at_once(broker_url, prefix):
    with pytest.raises(
        TopologyError, match=f"The worker.s queues are missing at {prefix}: start the worker once"
    ):
        await RegistrationClient(broker_url, prefix=prefix).__aenter__()


async def test_a_robust_connection_of_the_application_is_used_again_after_its_loss(
    requester, proxy, broker_url, prefix
):
    async with (
        await aio_pika.connect_robust(proxy.url, reconnect_interval=0.1) as connection,
        RegistrationClient(connection=connection, prefix=prefix) as client,
    ):
        assert (await client.register(page("1"))).status == "registered"
        proxy.reset()
        assert (await client.register(page("2"))).status == "registered"


async def test_foreign_bytes_in_the_reply_queue_disturb_nobody(requester, broker_url, prefix):
    hostile = build(correlation_id="x", headers={"a": 1}).changed(message_id="\udcff")
    source = partial(connect, load_settings(amqp_url=broker_url, prefix=prefix), "test")
    publishing = await LoneChannel.open("test", EventListener(), source)
    async with RegistrationClient(broker_url, prefix=prefix) as client:
        before = client._requester._connection
        for body in (b"\xff", b"{", b"x" * 300_000):
            await publishing.send(Message("", client._requester.queue or "", hostile, body, external=True))
        assert (await client.register(MESSENGER)).status == "registered"
        assert client._requester._connection is before
    await publishing.close()


async def test_a_client_that_is_not_open_yet_or_any_more_says_so_at_once(requester, broker_url, prefix):
    client = RegistrationClient(broker_url, prefix=prefix)
    for call in (client.register, client.publish):
        with pytest.raises(RuntimeError, match="not open"):
            await call(MESSENGER)
    async with client:
        pass
    for call in (client.register, client.publish):
        with pytest.raises(RuntimeError, match="not open"):
            await call(MESSENGER)


async def test_threads_share_a_client_that_blocks(requester, broker_url, prefix):
    def register_all() -> list[str]:
        with SyncRegistrationClient(broker_url, prefix=prefix) as client, ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(client.register, [page(str(number)) for number in range(1, 25)]))
            assert client.publish(page("25"), request_id="the-id") == "the-id"
            first, *_ = client.register_many(page(str(number)) for number in range(1, 25))
            assert first[1].status == "registered"
        assert [reply.resource_id for reply in replies] == [str(number) for number in range(1, 25)]
        return [reply.status for reply in replies]

    assert set(await asyncio.to_thread(register_all)) == {"registered"}
    assert not [thread for thread in threading.enumerate() if thread.name == "ott-client"]


def fork_and_register(client: SyncRegistrationClient) -> int:
    """The exit code of another process that uses the client: 0 where it is refused as after a fork."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        client.register(MESSENGER)
    except RuntimeError as error:
        os._exit("after a fork" not in str(error))
    finally:
        os._exit(2)


async def test_a_blocking_client_says_at_once_what_is_wrong(requester, broker_url, prefix):
    def misuse() -> None:
        client = SyncRegistrationClient(broker_url, prefix=prefix)
        with pytest.raises(RuntimeError, match="not open"):
            client.register(MESSENGER)
        with client:
            assert fork_and_register(client) == 0
        client.close()
        with pytest.raises(RuntimeError, match="not open"):
            client.register(MESSENGER)
        with pytest.raises(BrokerUnreachable), SyncRegistrationClient("amqp://127.0.0.1:1/"):
            pass

    await asyncio.to_thread(misuse)
    assert not [thread for thread in threading.enumerate() if thread.name == "ott-client"]


async def test_a_blocking_call_that_is_under_way_when_the_client_closes_is_unknown(rig, broker_url, prefix):
    await rig.start(shutdown_grace=0)  # the call outlasts the test
    rig.sandbox.faults.add(Latency(path="registration", seconds=30))
    client = SyncRegistrationClient(broker_url, prefix=prefix)
    await asyncio.to_thread(client.open)
    call = asyncio.create_task(asyncio.to_thread(client.register, MESSENGER))
    await until(lambda: rig.sandbox.history.registration_calls, "the call")
    await asyncio.to_thread(client.close)
    with pytest.raises(OutcomeUnknown):
        await call
