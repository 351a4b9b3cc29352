"""One connection: everything about messages comes through our transport."""

import asyncio
import threading

import pytest

from tests.faults.proxy import Proxy
from worker.amqp import connection as amqp_connection
from worker.amqp.causes import broker_errors
from worker.amqp.connection import RawChannel, connect
from worker.amqp.queue import look
from worker.amqp.transport import InterceptingTransport
from worker.errors import BrokerUnreachable


async def test_a_client_library_that_ignores_the_transport_is_told_at_the_start(make_settings, monkeypatch):
    """Nothing would be received through it, while the worker looked ready."""
    monkeypatch.setattr(InterceptingTransport, "is_used", False)
    with pytest.raises(BrokerUnreachable, match=r"aio-pika [\d.]+ does not use its transport_factory"):
        await connect(make_settings(), "test")


async def test_an_answer_that_does_not_come_ends_the_connection(make_settings, monkeypatch):
    """As where the process of a queue has crashed."""

    async def silent(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    connection = await connect(make_settings(), "test")
    monkeypatch.setattr(amqp_connection, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(RawChannel, "queue_declare", silent)
    with pytest.raises(BrokerUnreachable, match="could not be looked at: RabbitMQ does not answer"):
        await look(connection, "a queue")
    await connection.lost
    await connection.close()


async def test_closing_gives_up_on_a_peer_that_does_not_answer(make_settings, clean_broker, monkeypatch):
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    async with Proxy.to(clean_broker) as proxy:
        connection = await connect(make_settings(amqp_url=proxy.url), "test")
        proxy.black_hole()
        async with asyncio.timeout(20):
            await connection.close()
        assert not connection.is_open
        proxy.heal()


@pytest.mark.filterwarnings("ignore:coroutine 'OneShotCallback:RuntimeWarning")
async def test_a_loop_that_ends_while_a_connection_is_being_closed_comes_to_its_end(make_settings):
    """All tasks are cancelled then, those of the client library too, at any point of the closing."""
    settings = make_settings()

    async def leave(turns: int) -> None:
        connection = await connect(settings, "test")
        closing = asyncio.create_task(connection.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        del closing

    def loops() -> None:
        for turns in range(12):
            asyncio.run(leave(turns))

    thread = threading.Thread(target=loops, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


async def test_a_cancellation_is_not_lost_in_an_error_of_the_connection():
    """aiormq puts the connection's error in its place where both come at once."""

    async def work() -> None:
        with broker_errors("Reading"):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise ConnectionError("closed") from None

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
