"""The flow on the real worker, with a real broker and a real upstream: `python -m tests.benchmarks.flow`.

Prints answers per second and calls per answer, for upstreams that fail partially or have a rate limit.
With `--picture` it draws answers a second over the share of failures, with and without the controller.
"""

import argparse
import asyncio
import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.rig import DEFAULT_URL, Rig, delete_objects, messenger
from tests.support.upstream import Behaviour, failing, limited, request, upstream
from worker.pipeline.flow import Flow
from worker.settings import load_settings

LATENCY = 0.05  # seconds
SHARES = (0.1, 0.3, 0.5, 0.7)


class Upstream:
    """Marketing Cloud, as fast as it can: counts calls and answers."""

    def __init__(self, behaviour: Behaviour, latency: float = LATENCY) -> None:
        self.calls = self.answers = 0
        self._behaviour = behaviour
        self._latency = latency

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request(reader)
            if b"/v2/token" in head:
                body = b'{"access_token": "t", "expires_in": 1000}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                continue
            self.calls += 1
            status, hint = self._behaviour(time.monotonic())
            await asyncio.sleep(self._latency * random.uniform(0.5, 1.5))
            self.answers += status == 200
            more = b"Retry-After: %d\r\n" % hint if hint else b""
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n%b\r\n" % (status, more))


@contextmanager
def no_controller() -> Iterator[None]:
    """Every call goes at once, whatever the others came to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "wait", lambda self: 0.0)
        patch.setattr(Flow, "failed", lambda self, *args, **more: False)
        yield


async def measure(url: str, behaviour: Behaviour, seconds: float) -> tuple[float, float]:
    """Answers per second and calls per answer, while requests never end."""
    prefix, cloud, sent = f"bench.{uuid4().hex[:8]}", Upstream(behaviour), 0
    given = {"amqp_url": url, "prefix": prefix, "admin_port": None}
    given |= {"mc_client_id": "i", "mc_client_secret": "s", "retry_attempts": 1000, "retry_budget": 10_000}
    try:
        async with (
            upstream(cloud.handle) as mc,
            Rig(lambda **more: load_settings(**{**given, **more})) as rig,
        ):
            requester = await rig.start(mc_auth_url=mc, mc_rest_url=mc)
            stop = time.monotonic() + seconds
            while time.monotonic() < stop:
                if sent - cloud.answers < 1500:
                    pages = [messenger(f"p{number}") for number in range(sent, sent + 100)]
                    await asyncio.gather(*map(requester.publish, pages))
                    sent += 100
                await asyncio.sleep(0.01)
            calls, answers = cloud.calls, cloud.answers
            await rig.stop_first()
    finally:
        await delete_objects(url, prefix)
    return answers / seconds, calls / max(1, answers)


async def failures(url: str, seconds: float) -> list[tuple[float, float, float]]:
    """Print, and return, answers a second with and without the controller for each share of failures."""
    curve: list[tuple[float, float, float]] = []
    print(f"{'upstream':34} {'with':>16} {'without':>16}   answers per second (calls per answer)")
    for share in SHARES:
        on = await measure(url, failing(share, 503), seconds)
        with no_controller():
            off = await measure(url, failing(share, 503), seconds)
        curve.append((share, on[0], off[0]))
        print(
            f"{share:.0%} answer 503".ljust(34),
            f"{on[0]:9.1f} ({on[1]:.2f}) {off[0]:9.1f} ({off[1]:.2f}) = {on[0] / off[0]:.0%}",
            flush=True,
        )
    return curve


async def limits(url: str, seconds: float) -> None:
    """Print the same for each limit. Those that cost little CPU are measured side by side."""

    async def row(rate: int, status: int, hint: int) -> None:
        on = await measure(url, limited(rate, status, hint), seconds)
        name = f"takes {rate}/s, else {status}" + (f", Retry-After {hint}" if hint else "")
        print(name.ljust(34), f"{on[0]:9.1f} ({on[1]:.2f}) = {on[0] / rate:.0%}", flush=True)

    for rate in (5, 40):
        await asyncio.gather(*(row(rate, status, hint) for status in (429, 503) for hint in (0, 1)))
    for status, hint in itertools.product((429, 503), (0, 1)):
        await row(200, status, hint)


def picture(curve: list[tuple[float, float, float]]) -> str:
    """Answers a second over the share of failures, as SVG."""
    top = max(max(on, off) for _, on, off in curve)

    def line(index: int, colour: str) -> str:
        points = " ".join(f"{60 + 700 * row[0]:.0f},{320 - 280 * row[index] / top:.0f}" for row in curve)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    labels = "".join(
        f'<text x="{60 + 700 * s:.0f}" y="340" text-anchor="middle">{s:.0%}</text>' for s, *_ in curve
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 360" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="600" height="360" fill="white"/>{line(1, "#0b6")}{line(2, "#888")}{labels}'
        f'<text x="60" y="24">answers per second (at most {top:.0f}) over the share of 503 responses: '
        "green with the controller, grey with none</text></svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["failures", "limits"])
    parser.add_argument("--seconds", type=float, default=60, help="for each row, the start included")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    url = os.environ.get("OTT_TEST_AMQP_URLS", DEFAULT_URL).split(",")[0]
    if options.only != "limits":
        curve = asyncio.run(failures(url, options.seconds))
        if options.picture:
            options.picture.write_text(picture(curve))
    if options.only != "failures":
        asyncio.run(limits(url, options.seconds))


if __name__ == "__main__":
    main()
