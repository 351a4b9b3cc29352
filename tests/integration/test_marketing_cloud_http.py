"""How calls end, against real sockets that answer byte for byte as each test says."""

import asyncio
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest

from tests.support.upstream import answering, request, upstream
from worker.errors import SettingsError
from worker.marketing_cloud import http as http_module
from worker.marketing_cloud.http import Http, NoAnswer
from worker.marketing_cloud.response import Response
from worker.settings import load_settings

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer t"}
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def http(timeout: float = 5.0) -> AsyncIterator[Http]:
    client = Http(load_settings(http_timeout=timeout))
    try:
        yield client
    finally:
        await client.close()


def post(client: Http, url: str, body: bytes, headers: dict[str, str]) -> Coroutine[None, None, Response]:
    return client.send(client.endpoint(url, headers), body)


def post_by_session(client: Http, url: str, *_: object) -> Coroutine[None, None, Response]:
    return client.post(url, {})


both_ways = pytest.mark.parametrize("ask", [post, post_by_session])


async def test_a_request_is_sent_with_its_headers_and_body_and_nothing_else():
    seen: list[tuple[bytes, bytes]] = []

    async def handle(reader, writer):
        seen.append(await request(reader))
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with upstream(handle) as url, http() as client:
        response = await post(client, f"{url}/path", b'{"a":1}', HEADERS)
        assert (response.status, response.body) == (201, b"")
    head, body = seen[0]
    lines = head.decode().rstrip().split("\r\n")
    assert lines[0] == "POST /path HTTP/1.1"
    names = "Host Content-Type Authorization Content-Length Accept-Encoding"
    assert {line.split(":")[0] for line in lines[1:]} == set(names.split())
    assert body == b'{"a":1}'


@both_ways
async def test_a_redirect_is_not_followed(ask):
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with upstream(answering(moved)) as url, http() as client:
        assert (await ask(client, url, b"x", HEADERS))[0] == 302


@both_ways
async def test_silence_ends_at_the_time_out(ask):
    async with upstream(answering(b"")) as url, http(timeout=0.2) as client:
        with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
            await ask(client, url, b"x", HEADERS)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 201 Crea",
        b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n",
        b"this is not HTTP\r\n\r\n",
    ],
)
async def test_half_a_head_is_no_answer(answer):
    async def handle(reader, writer):
        await request(reader)
        writer.write(answer)

    async with upstream(handle) as url, http() as client:
        with pytest.raises(NoAnswer, match="lost before the answer was complete"):
            await post(client, url, b"x", HEADERS)


@both_ways
async def test_a_closed_port_is_a_refused_connection(ask):
    async with upstream(answering(b"")) as url:
        pass
    async with http() as client:
        with pytest.raises(NoAnswer, match="the connection was refused"):
            await ask(client, url, b"x", HEADERS)


async def test_a_cancelled_call_closes_its_connection_at_once():
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader, writer):
        await request(reader)
        arrived.set()
        await reader.read()
        closed.set()

    async with upstream(handle) as url, http() as client:
        call = asyncio.create_task(post(client, url, b"x", HEADERS))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await closed.wait()


@both_ways
async def test_the_proxy_that_the_environment_names_is_used(ask, monkeypatch):
    seen: list[bytes] = []

    async def handle(reader, writer):
        seen.append((await request(reader))[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with upstream(handle) as url, http() as client:
        monkeypatch.setenv("http_proxy", url.replace("//", "//user:word@"))
        monkeypatch.setenv("no_proxy", "")
        assert (await ask(client, "http://elsewhere.test/path", b"x", HEADERS))[0] == 200
    assert seen[0].startswith(b"POST http://elsewhere.test/path HTTP/1.1\r\nHost: elsewhere.test\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk\r\n" in seen[0]


async def test_bytes_that_nobody_asked_for_end_their_connection_and_are_the_answer_to_no_request():
    """A second 201 on the idle connection: the next request, which is refused, is not told `registered`."""
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        if connections > 1:
            await answering(REFUSED)(reader, writer)
            return
        await request(reader)
        writer.write(CREATED)
        await asyncio.sleep(0.1)
        writer.write(CREATED)
        await reader.read()

    async with upstream(handle) as url, http() as client:
        assert (await post(client, url, b"x", HEADERS)).status == 201
        await asyncio.sleep(0.2)
        assert (await post(client, url, b"x", HEADERS)).status == 400
    assert connections == 2


async def test_bytes_that_the_event_loop_has_not_read_yet_are_found_before_the_next_request():
    """The loop was busy when they came: it reads them only after the next request would be written."""
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        await request(reader)
        writer.write(CREATED if connections == 1 else REFUSED)
        if connections == 1:
            sent.append(writer)
        await reader.read()

    sent: list[asyncio.StreamWriter] = []
    async with upstream(handle) as url, http() as client:
        assert (await post(client, url, b"x", HEADERS)).status == 201
        sent[0].write(CREATED)  # goes out at once, and is not read in this turn of the loop
        assert (await post(client, url, b"x", HEADERS)).status == 400


async def test_an_answer_that_is_there_before_its_question_is_none():
    async def handle(reader, writer):
        writer.write(CREATED)
        await reader.read()

    async with upstream(handle) as url, http() as client:

        async def ensure_lease() -> None:
            await asyncio.sleep(0.1)

        endpoint = client.endpoint(url, HEADERS)
        with pytest.raises(NoAnswer):
            await client.send(endpoint, b"x", ensure_lease)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a host does that has forgotten it."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Forgetful:
    """Its connections are made by so many calls at once, and of no use once it has forgotten them."""

    def __init__(self, calls: int, ends) -> None:
        self.connections = 0
        self.forgotten = False
        self._ends = ends
        self._together = asyncio.Barrier(calls)

    async def handle(self, reader, writer):
        self.connections += 1
        is_old = not self.forgotten
        while True:
            await request(reader)
            if is_old and self.forgotten:
                self._ends(writer)
                await reader.read()
                return
            if is_old:
                await self._together.wait()
            writer.write(CREATED)


@pytest.mark.parametrize("ends", [reset, lambda writer: writer.close()], ids=["reset", "closed"])
async def test_a_hundred_kept_connections_that_the_far_end_has_forgotten_cost_no_call(ends):
    """Each fails only when it is used; the calls are made again on fresh ones, under a fresh lease."""
    far, leases = Forgetful(100, ends), 0

    async def ensure_lease() -> None:
        nonlocal leases
        leases += 1

    async with upstream(far.handle) as url, http() as client:
        endpoint = client.endpoint(url, HEADERS)
        await asyncio.gather(*(client.send(endpoint, b"x") for _ in range(100)))
        assert far.connections == 100
        far.forgotten = True
        first = await client.send(endpoint, b"x", ensure_lease)
        assert (first.status, far.connections, leases) == (201, 101, 2)
        answers = await asyncio.gather(*(client.send(endpoint, b"x", ensure_lease) for _ in range(100)))
        assert {answer.status for answer in answers} == {201}


async def test_kept_connections_that_swallow_everything_cost_one_time_out_and_not_one_each():
    far = Forgetful(10, lambda _: None)
    async with upstream(far.handle) as url, http(timeout=1) as client:
        await asyncio.gather(*(post(client, url, b"x", HEADERS) for _ in range(10)))
        far.forgotten = True
        with pytest.raises(NoAnswer, match="no answer within 1 s"):
            await post(client, url, b"x", HEADERS)
        for _ in range(10):
            assert (await post(client, url, b"x", HEADERS)).status == 201


@pytest.mark.parametrize("beginning", [CREATED[:10], b"\r\n" + CREATED[:10]])
async def test_a_call_is_repeated_only_once_and_never_after_an_answer_has_begun(beginning):
    calls = 0

    async def handle(reader, writer):
        nonlocal calls
        while True:
            await request(reader)
            calls += 1
            if calls == 1:
                writer.write(CREATED)
            elif calls == 2:
                writer.write(beginning)
                return
            else:
                return

    async with upstream(handle) as url, http() as client:
        await post(client, url, b"x", HEADERS)
        with pytest.raises(NoAnswer):
            await post(client, url, b"x", HEADERS)
        assert calls == 2
        with pytest.raises(NoAnswer):
            await post(client, url, b"x", HEADERS)
        assert calls == 3


async def test_an_answer_that_comes_before_the_request_is_written_counts_and_ends_its_connection():
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(too_large)
        await asyncio.sleep(5)

    async with upstream(handle) as url, http() as client:
        for expected in (1, 2):
            assert (await post(client, url, b"x" * 30_000_000, HEADERS)).status == 413
            assert connections == expected


async def test_a_body_that_does_not_come_to_its_end_does_not_take_the_answer_away(monkeypatch):
    monkeypatch.setattr(http_module, "BODY_TIMEOUT", 0.1)
    answer = b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\n{}"
    async with upstream(answering(answer)) as url, http() as client:
        response = await post(client, url, b"x", HEADERS)
    assert (response.status, response.body) == (400, b"{}")


@pytest.mark.parametrize(
    "value",
    [
        "http://h:port",
        "proxy.test:3128",
        "https://proxy.test:3128",
        "http://xn--zzzzzz99999.test:3128",
        "http://pro\u200bxy.test:3128",
        "socks5://proxy.test",
        "http:///",
        "http://us:er%3A:pw@proxy..test",
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY"])
async def test_a_proxy_that_is_none_ends_the_start_with_a_line_that_names_its_variable(
    monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable} must be the URL of a proxy") as error:
        Http(load_settings(mc_subdomain="tenant"))
    assert value not in str(error.value)


@both_ways
@pytest.mark.parametrize(
    ("status", "told"), [(407, "answered 407: set its user and password"), (502, "answered 502")]
)
async def test_what_a_proxy_answers_to_connect_is_told_as_the_proxys(ask, monkeypatch, status, told):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d Words of the proxy\r\nContent-Length: 0\r\n\r\n" % status)
        await reader.read()

    async with upstream(handle) as url, http() as client:
        monkeypatch.setenv("https_proxy", url)
        with pytest.raises(NoAnswer, match=f"^the proxy of https_proxy {told}"):
            await ask(client, "https://elsewhere.test/path", b"x", HEADERS)


@both_ways
async def test_without_a_descriptor_left_a_call_waits_and_tells_it_as_this_workers_own_trouble(ask):
    told: list[str] = []
    created = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with upstream(answering(created)) as url:
        client = Http(load_settings(), told.append)
        call = asyncio.create_task(ask(client, url.replace("localhost", "127.0.0.1"), b"{}", {}))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0.01)
            assert not call.done()
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await call).status == 201
        assert told[0] == "Too many open files"
        await client.close()


async def test_a_head_that_drips_ends_at_the_time_out_for_the_whole_call():
    async def handle(reader, writer):
        await request(reader)
        writer.write(b"HTTP/1.1 400 Bad\r\nX-Long: ")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with upstream(handle) as url, http(timeout=0.3) as client:
        async with asyncio.timeout(10):
            with pytest.raises(NoAnswer, match=r"no answer within 0\.3 s"):
                await post(client, url, b"x", HEADERS)


async def test_a_proxy_is_not_looked_at_where_the_environment_says_not_to_use_it(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "nonsense:port")
    monkeypatch.setenv("NO_PROXY", ".marketingcloudapis.com")
    client = Http(load_settings(mc_subdomain="tenant"))
    await client.close()
