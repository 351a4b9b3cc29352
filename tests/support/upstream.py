"""Upstreams that answer byte for byte as a test says, over real sockets, and how upstreams behave in time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
# The time in seconds, and the request where it matters → the status, and the seconds of `Retry-After`.
Behaviour = Callable[..., tuple[int, float]]


def failing(share: float, status: int) -> Behaviour:
    """Fails so often, at random."""
    return lambda now, *_: (status if random.random() < share else 200, 0.0)


def limited(rate: float, status: int, hint: float) -> Behaviour:
    """Takes so many calls a second, with a fifth of a second saved up."""
    most = tokens = rate / 5 + 1
    at: float | None = None

    def behave(now: float, *_: object) -> tuple[int, float]:
        nonlocal tokens, at
        tokens, at = min(most, tokens + (0 if at is None else now - at) * rate), now
        if tokens < 1:
            return status, hint
        tokens -= 1
        return 200, 0.0

    return behave


def windowed(most: int, status: int, seconds: float = 1.0) -> Behaviour:
    """Takes so many calls in each so many seconds of its clock."""
    taken: Counter[int] = Counter()

    def behave(now: float, *_: object) -> tuple[int, float]:
        window = int(now / seconds)
        if taken[window] >= most:
            return status, 0.0
        taken[window] += 1
        return 200, 0.0

    return behave


@asynccontextmanager
async def upstream(handle: Handler) -> AsyncIterator[str]:
    """Serve each connection with `handle`; yields its URL."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(size)


def answering(*answers: bytes) -> Handler:
    """One answer after the other, and then silence."""

    async def handle(reader, writer):
        for answer in answers:
            await request(reader)
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return handle
