"""Frames taken apart: the same is handed over however the bytes were cut on their way."""

import pytest
from aiormq.connection import FrameReceiver
from pamqp import commands, header
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.heartbeat import Heartbeat

from worker.amqp import frames, transport
from worker.amqp.properties import Properties, build
from worker.amqp.transport import FrameInterceptor, InterceptingTransport, ProtocolViolation

CHANNEL = 7


class Seen:
    """What an interceptor handed over."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.contents: list[tuple[bytes, Properties, bytes, int]] = []
        self.confirms: list[tuple[int, bool, bool]] = []
        self._limit = limit

    def interceptor(self) -> FrameInterceptor:
        return FrameInterceptor(
            CHANNEL,
            lambda *content: self.contents.append(content),
            lambda *confirm: self.confirms.append(confirm),
            lambda size: size <= self._limit,
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


def reader_for(interceptor: FrameInterceptor | None) -> InterceptingTransport:
    reader = InterceptingTransport("127.0.0.1", 0, None)
    if interceptor is not None:
        reader.interceptors[CHANNEL] = interceptor
    return reader


async def receive(data: bytes, interceptor: FrameInterceptor | None, cut: int) -> list[object]:
    """All frames that aiormq's own receiver sees when `data` arrives in pieces of `cut` bytes."""
    reader = reader_for(interceptor)
    for at in range(0, len(data), cut):
        reader.feed_data(data[at : at + cut])
    reader.feed_eof()
    return [frame async for _, _, frame in FrameReceiver(reader)]


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 13, 64, 100_000])
async def test_a_delivery_is_whole_however_it_was_cut(cut):
    seen = Seen()
    data = delivery(1, b"a body", parts=3) + delivery(2, b"") + delivery(3, b"last", redelivered=True)
    left = await receive(data, seen.interceptor(), cut)
    told = [(frames.delivered(m), p.message_id, body) for m, p, body, _ in seen.contents]
    assert told == [((1, False), "id-1", b"a body"), ((2, False), "id-2", b""), ((3, True), "id-3", b"last")]
    assert {frames.route(method) for method, *_ in seen.contents} == {("exchange", "key")}
    assert all(isinstance(frame, Heartbeat) for frame in left)


@pytest.mark.parametrize("cut", [1, 100_000])
async def test_a_body_beyond_the_limit_is_dropped_and_the_next_one_is_not(cut):
    seen = Seen(limit=5)
    await receive(delivery(1, b"123456", parts=3) + delivery(2, b"12345"), seen.interceptor(), cut)
    assert [(body, dropped) for _, _, body, dropped in seen.contents] == [(b"", 6), (b"12345", 0)]


@pytest.mark.parametrize("cut", [1, 100_000])
async def test_confirms_are_told_in_their_order(cut):
    seen = Seen()
    answers = (commands.Basic.Ack(3, True), commands.Basic.Nack(4, False, False), commands.Basic.Ack(5))
    await receive(b"".join(pamqp_frame.marshal(a, CHANNEL) for a in answers), seen.interceptor(), cut)
    assert seen.confirms == [(3, True, True), (4, False, False), (5, False, True)]


async def test_what_is_not_intercepted_is_the_clients_and_keeps_its_order():
    seen = Seen()
    data = (
        pamqp_frame.marshal(commands.Queue.DeclareOk("q", 1, 2), CHANNEL)
        + delivery(1, b"x")
        + pamqp_frame.marshal(commands.Basic.CancelOk("consumer"), CHANNEL)
        + pamqp_frame.marshal(commands.Basic.Ack(9), CHANNEL + 1)
    )
    left = await receive(data, seen.interceptor(), 100_000)
    assert [type(frame) for frame in left if not isinstance(frame, Heartbeat)] == [
        commands.Queue.DeclareOk,
        commands.Basic.CancelOk,
        commands.Basic.Ack,
    ]
    assert len(seen.contents) == 1


def foreign(body: bytes) -> bytes:
    """A message whose routing key, id and headers a client cannot decode, but for one header."""
    key = frames.GET_OK + b"\0" * 7 + b"\x01\0" + b"\0" + b"\x02k\xff" + b"\0" * 4
    table = b"\x01bl" + b"\0" * 7 + b"\x07" + b"\x01at\x01" + b"\x01\xfft\x01" + b"\x01ux"
    properties = b"\x20\x80" + len(table).to_bytes(4, "big") + table + b"\x01\xff"
    return (
        frames.frame(frames.METHOD, CHANNEL, key)
        + frames.frame(frames.HEADER, CHANNEL, frames.content_head(len(body)) + properties)
        + frames.frame(frames.BODY, CHANNEL, body)
    )


async def test_the_client_gets_only_what_it_can_decode():
    got, content, body = await receive(foreign(b"body"), Seen().interceptor(), 100_000)
    assert isinstance(got, commands.Basic.GetOk)
    assert isinstance(content, header.ContentHeader)
    assert isinstance(body, ContentBody)
    assert got.routing_key == "k?"
    assert content.properties.headers == {"a": True, "b": 7}
    assert content.properties.message_id is None
    assert body.value == b"body"


async def test_the_client_gets_a_large_message_without_its_body(monkeypatch):
    monkeypatch.setattr(transport, "LARGEST_BODY", 3)
    _, content = await receive(foreign(b"body"), Seen().interceptor(), 100_000)
    assert isinstance(content, header.ContentHeader)
    assert content.body_size == 0
    *_, body = await receive(foreign(b"bod"), Seen().interceptor(), 100_000)
    assert isinstance(body, ContentBody)


@pytest.mark.parametrize("offered", [0, 1_000_000, 131_072, 8_192])
async def test_frames_are_bounded_whatever_the_broker_offers(offered):
    """0 means no limit."""
    (tune,) = await receive(pamqp_frame.marshal(commands.Connection.Tune(2047, offered, 60), 0), None, 100)
    assert isinstance(tune, commands.Connection.Tune)
    assert tune.frame_max == (offered if 0 < offered < frames.LARGEST else frames.LARGEST)
    assert (tune.channel_max, tune.heartbeat) == (2047, 60)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "the server speaks TLS on this port"),
        (b"AMQP\x00\x01\x00\x00", "another version of AMQP"),
        (b"220 mail.example ESMTP\r\n", "does not speak AMQP"),
        (b"\x08\0\0\0\0\0\0\0", "without its end"),
        (b"\x03\0\x01\x7f\0\0\0x", "larger than agreed"),
    ],
)
async def test_what_is_not_amqp_ends_the_connection_and_is_named(answer, words):
    reader = reader_for(None)
    reader.feed_data(answer)
    reader.feed_data(b"more")
    with pytest.raises(ProtocolViolation, match=words):
        await reader.readexactly(1)
