"""`ott-worker check`: what works and what does not, with the cause."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console
from rich.text import Text
from yarl import URL

from worker.amqp.connection import Connection, connect, connected, node_name, tls_context, vhost_of
from worker.broker import topology
from worker.broker.requirements import (
    lacking,
    limits_of,
    operators_rights,
    patterns,
    policy_warnings,
    version_warnings,
    workers_rights,
)
from worker.broker.situation import State, judge, read_overview
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, SettingsError, TopologyError, WorkerError
from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.settings import Settings, load_settings, split_urls, unknown_variables

Mark = Literal["ok", "note", "FAIL"]
# The results of a step. A `note` is a warning, not a failure.
Findings = AsyncIterator[tuple[Mark, str]]
STYLES: dict[Mark, str] = {"ok": "green", "note": "yellow", "FAIL": "bold red"}
CODES = {"workers": 1}  # exit codes of steps; 3 for all others
NEEDED_SCOPE = "ott_channels_write"
MARKETING_CLOUD = ("mc_subdomain", "mc_auth_url", "mc_rest_url", "mc_client_id", "mc_client_secret")


def check() -> int:
    """Report what works and what does not, one line each, with the cause. Changes nothing.

    Checks the settings, each address of the broker, this user's permissions, the queues, the token and its
    scope, and the workers. Without Marketing Cloud's settings it checks only the broker, for an operator.

    Example: ott-worker check"""
    return asyncio.run(report(Console(highlight=False, soft_wrap=True)))


async def report(console: Console) -> int:
    """Print the findings as they arrive. Returns the exit code of the first failure."""
    lines = _Report(console)
    try:
        settings = load_settings()
    except SettingsError as error:
        lines.add("settings", "FAIL", str(error), error.exit_code)
        return lines.code
    is_worker = any(getattr(settings, name) for name in MARKETING_CLOUD)
    is_worker &= await lines.step("settings", _settings(settings, is_worker=is_worker))
    async with AsyncExitStack() as stack:
        answering: list[tuple[Connection, URL]] = []
        await lines.step("broker", _broker(settings, stack, answering))
        for connection, url in answering[:1]:
            await lines.step("permissions", _permissions(settings, url, is_worker=is_worker))
            await lines.step("topology", _topology(connection, settings))
            await lines.step("policies", _policies(settings, url))
            await lines.step("workers", _workers(connection, settings))
    if is_worker:
        await lines.step("token", _token(settings))
    return lines.code


@dataclass
class _Report:
    console: Console
    code: int = 0

    def add(self, name: str, mark: Mark, text: str, code: int) -> None:
        self.console.print(Text.assemble((f"{mark:<4}", STYLES[mark]), f"  {name:<11} {text}"))
        if mark == "FAIL":
            self.code = self.code or code

    async def step(self, name: str, findings: Findings) -> bool:
        """Print the findings of a step. Returns whether there is no failure."""
        try:
            is_well = True
            async for mark, text in findings:
                self.add(name, mark, text, CODES.get(name, 3))
                is_well &= mark != "FAIL"
        except WorkerError as error:
            self.add(name, "FAIL", str(error), error.exit_code)
            return False
        return is_well


async def _settings(settings: Settings, *, is_worker: bool) -> Findings:
    for name, why in unknown_variables().items():
        yield "note", f"{name} is not read: {why}"
    if is_worker:
        settings.require_marketing_cloud()
    yield "ok", "complete" if is_worker else "Marketing Cloud is not set: this is an operator's check"


async def _broker(
    settings: Settings, stack: AsyncExitStack, answering: list[tuple[Connection, URL]]
) -> Findings:
    """Check each address. Adds those that answer to `answering`; the stack closes them."""
    urls = split_urls(settings.amqp_url.get_secret_value())
    for number, url in enumerate(urls, 1):
        try:
            connection = await connect(load_settings(amqp_url=url), "check")
        except BrokerUnreachable as error:
            which = f" (address {number} of {len(urls)} in OTT_AMQP_URL)" if len(urls) > 1 else ""
            yield "FAIL", f"{error}{which}"
            continue
        stack.push_async_callback(connection.close)
        answering.append((connection, URL(url)))
        yield "ok", f"RabbitMQ {connection.server_version} answers at {node_name(URL(url))}"
        for warning in version_warnings(connection.server_version):
            yield "note", warning


async def _permissions(settings: Settings, url: URL, *, is_worker: bool) -> Findings:
    """On a connection of its own: RabbitMQ stops reading from one that publishes during an alarm."""
    rights = workers_rights(settings) if is_worker else operators_rights(settings)
    role = "a worker" if is_worker else "an operator"
    user = url.user or "guest"
    async with connected(load_settings(amqp_url=str(url)), "check") as connection:
        missing = await lacking(connection, rights)
    if missing:
        yield (
            "FAIL",
            f"user {user} may not {', '.join(map(str, missing))}, which {role} needs: "
            f"grant it {patterns(missing)} in the virtual host {vhost_of(url)}",
        )
    else:
        yield "ok", f"user {user} has the permissions of {role}"


async def _topology(connection: Connection, settings: Settings) -> Findings:
    missing = await topology.missing(connection, settings)
    if missing:
        yield "ok", f"missing, and the worker will declare it: {', '.join(missing)}"
    else:
        yield "ok", f"all queues and exchanges of {settings.prefix} exist"


async def _policies(settings: Settings, url: URL) -> Findings:
    names = Topology(settings.prefix)
    partitions = range(1, settings.partitions + 1) if settings.partitions > 1 else ()
    tls = tls_context(settings, url)
    for queue in (names.requests, *map(names.partition, partitions)):
        limits = await limits_of(url, queue, tls)
        if limits is None:
            return  # the limits of the other queues cannot be read either
        for warning in policy_warnings(queue, limits, settings.hold_limit):
            yield "note", warning


async def _workers(connection: Connection, settings: Settings) -> Findings:
    """A condition that stops requests fails the check; one that only slows them is a note."""
    overview, now = await read_overview(connection, Topology(settings.prefix)), datetime.now(UTC)
    if not overview.knows_workers:
        raise TopologyError(overview.problems[0])
    conditions = [each for each in judge(overview) if each.state not in (State.WELL, State.INCOMPLETE)]
    for condition in conditions:
        yield "FAIL" if condition.stops else "note", f"{condition.line(now)}. {condition.advice}"
    good = [f"{worker.place} is {worker.state}" for worker in overview.workers]
    if good and not conditions:
        yield "ok", ", ".join(good)


async def _token(settings: Settings) -> Findings:
    try:
        async with MarketingCloud(settings, EventListener()) as marketing_cloud:
            token = await marketing_cloud.accounts.get(None)
    except TokenTrouble as error:
        yield "FAIL", f"{str(error).rstrip('.')}: {await _token_cause(error, settings)}"
        return
    if token.scope and NEEDED_SCOPE not in token.scope:
        yield (
            "FAIL",
            f"the token lacks the scope {NEEDED_SCOPE}: grant it to the package's component in Marketing "
            "Cloud's Setup, Installed Packages (OTT, Channels, Write); it takes up to 5 minutes",
        )
    else:
        yield "ok", f"received; registrations go to {token.rest_url}"


async def _token_cause(error: TokenTrouble, settings: Settings) -> str:
    """The advice for a token error. If a business unit is set, this requests one more token without it."""
    where = "OTT_MC_AUTH_URL" if settings.mc_auth_url else "OTT_MC_SUBDOMAIN"
    if error.cause in (Cause.NO_ANSWER, Cause.PAGE, Cause.NO_TOKEN) or error.status in (404, 405):
        return f"check {where}: the authentication URL is {settings.auth_url}"
    if error.cause is Cause.ERROR:
        return "this is Marketing Cloud's failure: the worker waits and retries"
    if settings.mc_account_id and await _works_without_account(settings):
        return f"check OTT_MC_ACCOUNT_ID ({settings.mc_account_id}): without it a token is issued"
    if error.cause is Cause.UNAUTHORIZED_CLIENT:
        return "add this machine's public IP address to the allowlist in Marketing Cloud's Setup (Security)"
    if error.cause is Cause.INVALID_SCOPE:
        return f"grant the scope {NEEDED_SCOPE} to the package's component in Marketing Cloud's Setup"
    return "check OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET; a secret expires 180 days after its creation"


async def _works_without_account(settings: Settings) -> bool:
    anonymous = settings.model_copy(update={"mc_account_id": None})
    try:
        async with MarketingCloud(anonymous, EventListener()) as marketing_cloud:
            await marketing_cloud.accounts.get(None)
    except TokenTrouble:
        return False
    return True
