"""Run the worker and stop it at one await of a request's journey: `stops.py POINT NUMBER SIGNAL`.

The worker itself has no hook for this. Named functions are wrapped from outside, and at the NUMBERth pass the
process sends itself the signal: KILL for a crash, STOP for a machine that freezes. What the worker becomes is
told on standard error, in lines of `{"faults": ...}`, so that no test depends on the wording of a log.

    FAULTS_NO_DNS=FILE           while the file exists, no host name is known
    FAULTS_POISON=PREFIX         a request whose id begins so ends the process when it is forwarded
    FAULTS_CLOCKS=NAME=VALUE,…   other values for module constants, so that an hour passes in a minute
    FAULTS_LEADERS_LEASE=true    the leader's word renews a lease, without a majority of the queue's nodes
    FAULTS_FIELD_TYPES=wrong     RabbitMQ cannot read headers that hold an unsigned short
    FAULTS_DEAF=true             the task that follows the orders goes on when it is cancelled
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.resolver

from worker.__main__ import main
from worker.amqp import properties
from worker.amqp.confirm_channel import ConfirmChannel
from worker.amqp.consumer import Subscription
from worker.amqp.publisher import KeptChannel
from worker.broker.status import StandingOrders
from worker.marketing_cloud import accounts, client
from worker.partitions.router import Router
from worker.pipeline import forward, journey, request, settle

ON_ITS_WAY = 0.002  # seconds: enough for the loop to hand what was written to the kernel


# A function that is passed, before or after it has done its work.
POINTS: dict[str, tuple[Any, str, str]] = {
    "received": (journey.Journeys, "accept", "before"),
    "validated": (request.RequestParser, "parse", "after"),
    "token-asked": (accounts.Accounts, "get", "before"),
    "token-received": (accounts.Accounts, "get", "after"),
    "before-the-call": (client.MarketingCloud, "register", "before"),
    "connecting": (aiohttp.TCPConnector, "connect", "after"),
    "request-sent": (client.MarketingCloud, "register", "amid"),
    "response-read": (client.MarketingCloud, "register", "after"),
    "reply-published": (ConfirmChannel, "confirmed", "before"),
    "confirmed": (Subscription, "ack", "before"),
    "poisonous": (KeptChannel, "_poisonous", "before"),
    "renewing": (Router, "_renew", "before"),
    "settling": (settle.Settler, "settle", "before"),
    "ack-handed-over": (Subscription, "_flush", "before"),
    "acked": (Subscription, "_flush", "after"),
}


def install(point: str, number: int, signal_number: int) -> None:
    """Stop at the `number`th pass of `point`."""
    owner, name, when = POINTS[point]
    original, passes = getattr(owner, name), itertools.count(1)

    def passed() -> None:
        if next(passes) == number:
            os.kill(os.getpid(), signal_number)

    def before(*args: Any, **kwargs: Any) -> Any:
        passed()
        return original(*args, **kwargs)

    def after(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        passed()
        return result

    async def after_await(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        passed()
        return result

    async def amid(self: Any, body: bytes, token: Any, ensure_lease: Any) -> Any:
        """After a registration was written, before its answer comes."""

        async def proven_and_soon_written() -> None:
            await ensure_lease()
            asyncio.get_running_loop().call_later(ON_ITS_WAY, passed)

        return await original(self, body, token, proven_and_soon_written)

    ways = {"before": before, "after": after, "amid": amid}
    is_awaited = when == "after" and inspect.iscoroutinefunction(original)
    setattr(owner, name, functools.wraps(original)(after_await if is_awaited else ways[when]))


def lose_names(flag: Path) -> None:
    """Make every host name unknown while the file is there, also those that were known a moment ago."""
    original = aiohttp.resolver.ThreadedResolver.resolve
    connector = aiohttp.TCPConnector
    connector.__init__ = functools.partialmethod(connector.__init__, use_dns_cache=False)

    async def resolve(self: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        if flag.exists():
            raise OSError("name not known")
        return await original(self, host, *args, **kwargs)

    aiohttp.resolver.ThreadedResolver.resolve = resolve


def poison(prefix: str) -> None:
    """Die whenever a request whose id begins so is about to be forwarded."""
    original = forward.Forwarder.forward

    async def forward_or_die(self: Any, request: Any, ensure_lease: Any) -> Any:
        if request.id.startswith(prefix):
            os.kill(os.getpid(), signal.SIGKILL)
        return await original(self, request, ensure_lease)

    forward.Forwarder.forward = forward_or_die


def set_clocks(clocks: str) -> None:
    """Set module constants: `worker.pipeline.policy.BLOCKED_PAUSE=2`."""
    for clock in clocks.split(","):
        name, _, value = clock.partition("=")
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), f"{name} is not there"
        setattr(importlib.import_module(module), constant, float(value))


def believe_the_leader() -> None:
    """Leave the protection out that a lease needs a majority."""

    async def nothing(*_: Any) -> None:
        pass

    assert hasattr(Subscription, "_pass_through_queue")
    Subscription._pass_through_queue = nothing


def stay_deaf() -> None:
    """Follow the orders for ever, whoever cancels that."""

    async def follow(_: StandingOrders) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    StandingOrders.follow = follow
    StandingOrders.until_known = lambda _: asyncio.sleep(0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        install(sys.argv[1], int(sys.argv[2]), signal.Signals[f"SIG{sys.argv[3]}"])
    if "FAULTS_NO_DNS" in os.environ:
        lose_names(Path(os.environ["FAULTS_NO_DNS"]))
    if "FAULTS_POISON" in os.environ:
        poison(os.environ["FAULTS_POISON"])
    if "FAULTS_CLOCKS" in os.environ:
        set_clocks(os.environ["FAULTS_CLOCKS"])
    if "FAULTS_LEADERS_LEASE" in os.environ:
        believe_the_leader()
    if "FAULTS_FIELD_TYPES" in os.environ:
        properties._FIXED_SIZE[ord("u")] = 4
    if "FAULTS_DEAF" in os.environ:
        stay_deaf()
    sys.argv = ["ott-worker", "run"]
    main()
