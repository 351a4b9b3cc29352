"""What breaks the contract's promises about a RabbitMQ: its version, or a queue's limits (contract §1)."""

import asyncio
import contextlib
import json
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from worker.contract.timestamps import span

TESTED = ((3, 10), (4, 0), (4, 3))
REALM = "RabbitMQ Management"
ANSWER_TIMEOUT = 3.0  # seconds
MANAGEMENT = 10_000  # its usual port is so much above that of AMQP
SECONDS = {"Y": 365 * 86_400, "M": 30 * 86_400, "D": 86_400, "h": 3_600, "m": 60, "s": 1}


def version_warnings(version: str) -> list[str]:
    """What a version of RabbitMQ does not keep."""
    numbers = version.split(".")[:2]
    if not all(part.isdecimal() for part in numbers) or len(numbers) < 2:
        return []
    number, warnings = (int(numbers[0]), int(numbers[1])), []
    if number not in TESTED:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        warnings.append(f"RabbitMQ {version} is not one of the tested versions ({tested})")
    if number < (3, 13):
        warnings.append(
            f"RabbitMQ {version}: let only trusted publishers send. One forged x-death header can end "
            "at-least-once dead-lettering on the whole node; from 3.13 on it cannot"
        )
    return warnings


def policy_warnings(queue: str, policy: Mapping[str, Any], hold_limit: float) -> list[str]:
    """What the policy of a queue breaks."""
    warnings = []
    if policy.get("delayed-retry-type", "disabled") != "disabled":
        warnings.append(
            f"{queue}: a policy sets delayed-retry-type, so returned requests come back out of their order: "
            "take it off"
        )
    timeout = policy.get("consumer-timeout")
    if isinstance(timeout, int | float) and timeout < hold_limit * 1000:
        warnings.append(
            f"{queue}: a policy sets consumer-timeout to {timeout / 1000:g} s, below OTT_HOLD_LIMIT "
            f"({hold_limit:g} s): RabbitMQ takes requests back that are still being worked on"
        )
    return warnings


def retention_warnings(dead: Mapping[str, Any], journal: Mapping[str, Any]) -> list[str]:
    """Whether dead letters outlive the journal, by the limits of both."""
    ttl, age = dead.get("message-ttl"), journal.get("max-age")
    if not isinstance(ttl, int) or not age or seconds_of(age) >= ttl / 1000:
        return []
    return [
        f"dead letters are kept {span(ttl / 1000)}, the journal {span(seconds_of(age))}: older letters "
        "replay with --force only. Keep the journal as long: OTT_JOURNAL_MAX_AGE and its policy; a stream "
        "keeps the age that it was declared with"
    ]


def seconds_of(age: str) -> float:
    """A stream's `max-age`, such as `30D`."""
    return int(age[:-1]) * SECONDS[age[-1]]


async def limits_of(url: str, queue: str, context: ssl.SSLContext | None) -> Mapping[str, Any] | None:
    """What a queue's policy and its arguments set, as RabbitMQ's management tells it; None where it does not:
    it is not there, or does not answer this user. `context` is for `amqps`."""
    return await asyncio.to_thread(_limits_of, url, queue, context)


def _limits_of(url: str, queue: str, context: ssl.SSLContext | None) -> Mapping[str, Any] | None:
    parts = urlsplit(url)
    secured = parts.scheme == "amqps"
    port = (parts.port or (5671 if secured else 5672)) + MANAGEMENT
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    base = f"{'https' if secured else 'http'}://{host}:{port}/api/"
    # Whoever does not ask for it in RabbitMQ's name gets no password.
    passwords = urllib.request.HTTPPasswordMgr()
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    passwords.add_password(REALM, base, user, password)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPBasicAuthHandler(passwords),
    )
    vhost = unquote(parts.path[1:]) or "/"
    where = f"{base}queues/{quote(vhost, safe='')}/{quote(queue, safe='')}"
    with contextlib.suppress(OSError, ValueError, LookupError):
        with opener.open(where, timeout=ANSWER_TIMEOUT) as answer:
            found = json.load(answer)
        limits = {name.removeprefix("x-"): value for name, value in found["arguments"].items()}
        policy = found.get("effective_policy_definition") or {}
        ages = [each["max-age"] for each in (limits, policy) if "max-age" in each]
        limits |= policy
        return limits | ({"max-age": min(ages, key=seconds_of)} if ages else {})
    return None
