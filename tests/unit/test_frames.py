"""Frames taken apart: the same is handed over however the bytes were cut on their way."""

import asyncio

import aiormq.exceptions
import pytest
from pamqp import commands
from pamqp import frame as pamqp_frame
from pamqp.heartbeat import Heartbeat

from worker.amqp import frames
from worker.amqp.frames import FrameInterceptor, FrameReceiver
from worker.amqp.properties import Properties, build

CHANNEL = 7


class Seen:
    """What a tap handed over."""

    def __init__(self) -> None:
        self.contents: list[tuple[bytes, Properties, bytes]] = []
        self.confirms: list[tuple[int, bool, bool]] = []

    def tap(self) -> FrameInterceptor:
        return FrameInterceptor(
            lambda method, properties, body: self.contents.append((method, properties, body)),
            lambda tag, multiple, taken: self.confirms.append((tag, multiple, taken)),
        )


def delivery(tag: int, body: bytes, *, parts: int = 1, redelivered: bool = False) -> bytes:
    method = commands.Basic.Deliver("consumer", tag, redelivered, "exchange", "key")
    size = max(1, -(-len(body) // parts))
    return b"".join(
        [
            pamqp_frame.marshal(method, CHANNEL),
            frames.frame(
                frames.HEADER,
                CHANNEL,
                frames.content_head(len(body)) + build(message_id=f"id-{tag}").encoded(),
            ),
            *(frames.frame(frames.BODY, CHANNEL, body[at : at + size]) for at in range(0, len(body), size)),
        ]
    )


async def receive(data: bytes, tap: FrameInterceptor | None, cut: int) -> list[object]:
    """All frames that are left for the client when `data` arrives in pieces of `cut` bytes."""
    reader = asyncio.StreamReader()
    receiver = FrameReceiver(reader, {} if tap is None else {CHANNEL: tap})
    left: list[object] = []

    async def feed() -> None:
        for at in range(0, len(data), cut):
            reader.feed_data(data[at : at + cut])
            await asyncio.sleep(0)
        reader.feed_eof()

    async def take() -> None:
        async for _, _, frame in receiver:
            left.append(frame)

    feeding = asyncio.create_task(feed())
    with pytest.raises(aiormq.exceptions.AMQPConnectionError):
        await take()
    await feeding
    return left


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 13, 64, 100_000])
async def test_a_delivery_is_whole_however_it_was_cut(cut: int) -> None:
    seen = Seen()
    data = delivery(1, b"a body", parts=3) + delivery(2, b"") + delivery(3, b"last", redelivered=True)
    left = await receive(data, seen.tap(), cut)
    told = [(frames.delivered(m), p.message_id, body) for m, p, body in seen.contents]
    assert told == [((1, False), "id-1", b"a body"), ((2, False), "id-2", b""), ((3, True), "id-3", b"last")]
    assert all(isinstance(frame, Heartbeat) for frame in left)


@pytest.mark.parametrize("cut", [1, 100_000])
async def test_confirms_are_told_in_their_order(cut: int) -> None:
    seen = Seen()
    answers = (commands.Basic.Ack(3, True), commands.Basic.Nack(4, False, False), commands.Basic.Ack(5))
    await receive(b"".join(pamqp_frame.marshal(a, CHANNEL) for a in answers), seen.tap(), cut)
    assert seen.confirms == [(3, True, True), (4, False, False), (5, False, True)]


async def test_the_client_sees_that_the_peer_is_alive_while_a_tap_takes_everything() -> None:
    left = await receive(delivery(1, b"x") * 5, Seen().tap(), 100_000)
    assert [type(frame) for frame in left] == [Heartbeat]


async def test_what_no_tap_takes_is_the_clients_and_keeps_its_order() -> None:
    seen = Seen()
    data = (
        pamqp_frame.marshal(commands.Queue.DeclareOk("q", 1, 2), CHANNEL)
        + delivery(1, b"x")
        + pamqp_frame.marshal(commands.Basic.CancelOk("consumer"), CHANNEL)
        + pamqp_frame.marshal(commands.Basic.Ack(9), CHANNEL + 1)
    )
    left = [frame for frame in await receive(data, seen.tap(), 100_000) if not isinstance(frame, Heartbeat)]
    assert [type(frame) for frame in left] == [
        commands.Queue.DeclareOk,
        commands.Basic.CancelOk,
        commands.Basic.Ack,
    ]
    assert len(seen.contents) == 1


async def test_a_channel_that_the_broker_closed_is_not_written_on_any_more() -> None:
    tap = Seen().tap()
    assert tap.is_open
    await receive(pamqp_frame.marshal(commands.Channel.Close(406, "no", 60, 40), CHANNEL), tap, 100_000)
    assert not tap.is_open


async def test_a_frame_without_its_end_ends_the_connection() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"\x08\0\0\0\0\0\0\0")
    with pytest.raises(aiormq.exceptions.InvalidFrameError):
        await anext(FrameReceiver(reader, {}))


def test_an_acknowledgement_is_encoded_as_the_client_library_would() -> None:
    for multiple in (False, True):
        expected = pamqp_frame.marshal(commands.Basic.Ack(2**40, multiple), CHANNEL)
        assert frames.ack(CHANNEL, 2**40, multiple=multiple) == expected
