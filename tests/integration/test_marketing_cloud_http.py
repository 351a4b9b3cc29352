"""How calls end, against real sockets that answer byte for byte as each test says."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from worker.marketing_cloud.http import ANSWER_LIMIT, Http, NoAnswer
from worker.settings import load_settings

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer t"}


@asynccontextmanager
async def upstream(handle: Handler) -> AsyncIterator[str]:
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/path"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def http(timeout: float = 5.0) -> AsyncIterator[Http]:
    client = Http(load_settings(http_timeout=timeout))
    try:
        yield client
    finally:
        await client.close()


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(size)


def answering(*answers: bytes) -> Handler:
    async def handle(reader, writer):
        for answer in answers:
            await request(reader)
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return handle


async def test_a_request_is_sent_with_its_headers_and_body_and_nothing_else() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def handle(reader, writer):
        seen.append(await request(reader))
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with upstream(handle) as url, http() as client:
        assert await client.post(url, b'{"a":1}', HEADERS) == (201, None, b"")
    head, body = seen[0]
    lines = head.decode().rstrip().split("\r\n")
    assert lines[0] == "POST /path HTTP/1.1"
    assert {line.split(":")[0] for line in lines[1:]} == {
        "Host",
        "Content-Type",
        "Authorization",
        "Content-Length",
    }
    assert body == b'{"a":1}'


async def test_one_connection_serves_one_call_after_the_other() -> None:
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        while True:
            await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with upstream(handle) as url, http() as client:
        for _ in range(5):
            assert await client.post(url, b"x", HEADERS) == (200, None, b"{}")
    assert connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nan body",
        b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nan \r\n4\r\nbody\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 Bad\r\nContent-Length: 7\r\n\r\nan body",
        b"HTTP/1.1 400 Bad Request\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
        % (len(gzip.compress(b"an body", mtime=0)), gzip.compress(b"an body", mtime=0)),
    ],
)
async def test_an_answer_is_read_however_its_body_is_framed(answer: bytes) -> None:
    async with upstream(answering(answer)) as url, http() as client:
        assert await client.post(url, b"x", HEADERS) == (400, None, b"an body")


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async def handle(reader, writer):
        await request(reader)
        writer.write(b"HTTP/1.1 500 Oh\r\nRetry-After: 7\r\n\r\nsorry")

    async with upstream(handle) as url, http() as client:
        assert await client.post(url, b"x", HEADERS) == (500, "7", b"sorry")


async def test_a_long_answer_is_cut_and_its_connection_not_used_again() -> None:
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        await request(reader)
        writer.write(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % (2 * ANSWER_LIMIT))
        writer.write(b"x" * 2 * ANSWER_LIMIT)
        await reader.read()

    async with upstream(handle) as url, http() as client:
        for expected in (1, 2):
            status, _, body = await client.post(url, b"x", HEADERS)
            assert (status, len(body), connections) == (400, ANSWER_LIMIT, expected)


async def test_a_redirect_is_not_followed() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with upstream(answering(moved)) as url, http() as client:
        assert (await client.post(url, b"x", HEADERS))[0] == 302


async def test_silence_ends_at_the_time_out() -> None:
    async with upstream(answering(b"")) as url, http(timeout=0.2) as client:
        with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
            await client.post(url, b"x", HEADERS)


async def test_an_answer_that_drips_ends_at_the_time_out_for_the_whole_call() -> None:
    async def handle(reader, writer):
        await request(reader)
        writer.write(b"HTTP/1.1 400 Bad\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with upstream(handle) as url, http(timeout=0.3) as client:
        async with asyncio.timeout(3):
            with pytest.raises(NoAnswer, match=r"no answer within 0\.3 s"):
                await client.post(url, b"x", HEADERS)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 201 Crea",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\ntoo short",
        b"this is not HTTP\r\n\r\n",
    ],
)
async def test_half_an_answer_is_no_answer(answer: bytes) -> None:
    async def handle(reader, writer):
        await request(reader)
        writer.write(answer)

    async with upstream(handle) as url, http() as client:
        with pytest.raises(NoAnswer, match="lost before the answer was complete"):
            await client.post(url, b"x", HEADERS)


async def test_a_closed_port_is_a_refused_connection() -> None:
    async with upstream(answering(b"")) as url:
        pass
    async with http() as client:
        with pytest.raises(NoAnswer, match="the connection was refused"):
            await client.post(url, b"x", HEADERS)


async def test_a_cancelled_call_closes_its_connection_at_once() -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader, writer):
        await request(reader)
        arrived.set()
        await reader.read()
        closed.set()

    async with upstream(handle) as url, http() as client:
        call = asyncio.create_task(client.post(url, b"x", HEADERS))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(2):
            await closed.wait()


async def test_the_proxy_that_the_environment_names_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def handle(reader, writer):
        seen.append((await request(reader))[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with upstream(handle) as url, http() as client:
        monkeypatch.setenv("http_proxy", url.removesuffix("/path").replace("//", "//user:word@"))
        monkeypatch.setenv("no_proxy", "")
        assert (await client.post("http://elsewhere.test/path", b"x", HEADERS))[0] == 200
    assert seen[0].startswith(b"POST http://elsewhere.test/path HTTP/1.1\r\nHost: elsewhere.test\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk\r\n" in seen[0]
