"""`ott-worker check`: what works, and the true cause of what does not."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from rich.console import Console
from rich.text import Text
from yarl import URL

from worker.amqp.connection import Connection, connect, tls_context
from worker.amqp.endpoints import node_name, vhost_of
from worker.amqp.queue import exists
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
from worker.broker.situation import State, judge, of_worker, read_overview
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, SettingsError, TopologyError, WorkerError
from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.partitions.log import read_partition_state
from worker.settings import Settings, load_settings, split_urls, unknown_variables

Mark = Literal["ok", "note", "FAIL"]
STYLES: dict[Mark, str] = {"ok": "green", "note": "yellow", "FAIL": "bold red"}
NEEDED_SCOPE = "ott_channels_write"
STOPPED = 1  # exit code where requests are not settled
MARKETING_CLOUD = ("mc_subdomain", "mc_auth_url", "mc_rest_url", "mc_client_id", "mc_client_secret")


class Finding(NamedTuple):
    """One line. A `note` is no failure: it says why nothing happens. `code` is the exit code of a failure."""

    mark: Mark
    name: str
    text: str
    code: int = 3


def check() -> int:
    """Tell what works and what does not, each in a line with its cause. Changes nothing.

    Looks at the settings, each address of the broker, what this user may do there, the queues, the token and
    its scope, and the workers. What is not set is left out: without Marketing Cloud's settings it is an
    operator's check of the broker.

    Example: ott-worker check
    """
    return asyncio.run(report(Console(highlight=False, soft_wrap=True)))


async def report(console: Console) -> int:
    """Print the findings as they come; the exit code."""
    code = 0
    async for finding in _findings():
        mark = (f"{finding.mark:<4}", STYLES[finding.mark])
        console.print(Text.assemble(mark, f"  {finding.name:<11} {finding.text}"))
        if finding.mark == "FAIL":
            code = code or finding.code
    return code


async def _findings() -> AsyncIterator[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("FAIL", "settings", str(error), error.exit_code)
        return
    for name, nearest in unknown_variables().items():
        hint = f"; the nearest is {nearest}" if nearest else ""
        yield Finding("note", "settings", f"{name} is not read: no setting has this name{hint}")
    is_worker = any(getattr(settings, name) for name in MARKETING_CLOUD)
    text = "complete" if is_worker else "Marketing Cloud is not set: this is an operator's check"
    try:
        if is_worker:
            settings.require_marketing_cloud()
        yield Finding("ok", "settings", text)
    except SettingsError as error:
        is_worker = False
        yield Finding("FAIL", "settings", str(error), error.exit_code)
    async for finding in _broker(settings, is_worker=is_worker):
        yield finding
    if is_worker:
        yield await _token(settings)


async def _broker(settings: Settings, *, is_worker: bool) -> AsyncIterator[Finding]:
    """Each address by itself, and all else by the first one that answers."""
    is_first = True
    urls = split_urls(settings.amqp_url.get_secret_value())
    for number, url in enumerate(urls, 1):
        which = f" (address {number} of {len(urls)} in OTT_AMQP_URL)" if len(urls) > 1 else ""
        try:
            connection = await connect(load_settings(amqp_url=url), "check")
        except BrokerUnreachable as error:
            yield Finding("FAIL", "broker", f"{error}{which}")
            continue
        try:
            answers = f"RabbitMQ {connection.server_version} answers at {node_name(URL(url))}"
            yield Finding("ok", "broker", answers)
            for warning in version_warnings(connection.server_version):
                yield Finding("note", "broker", warning)
            if is_first:
                is_first = False
                async for finding in _inside(connection, settings, url, is_worker=is_worker):
                    yield finding
        finally:
            await connection.close()


async def _inside(
    connection: Connection, settings: Settings, url: str, *, is_worker: bool
) -> AsyncIterator[Finding]:
    for name, step in (
        ("permissions", _permissions(connection, settings, URL(url), is_worker=is_worker)),
        ("topology", _topology(connection, settings)),
        ("policies", _policies(settings, url)),
        ("workers", _workers(connection, settings)),
        ("partitions", _partitions(connection, settings)),
    ):
        try:
            for finding in await step:
                yield finding
        except WorkerError as error:
            yield Finding("FAIL", name, str(error), error.exit_code)


async def _policies(settings: Settings, url: str) -> list[Finding]:
    names = Topology(settings.prefix)
    partitions = range(1, settings.partitions + 1) if settings.partitions > 1 else ()
    warnings: list[str] = []
    tls = tls_context(settings, [URL(url)])
    for queue in (names.requests, *map(names.partition, partitions)):
        limits = await limits_of(url, queue, tls)
        if limits is None:
            break
        warnings += policy_warnings(queue, limits, settings.hold_limit)
    return [Finding("note", "policies", warning) for warning in warnings]


async def _permissions(
    connection: Connection, settings: Settings, url: URL, *, is_worker: bool
) -> list[Finding]:
    rights = workers_rights(settings) if is_worker else operators_rights(settings)
    role = "a worker" if is_worker else "an operator"
    user, vhost = url.user or "guest", vhost_of(url)
    missing = await lacking(connection, rights)
    if not missing:
        return [Finding("ok", "permissions", f"user {user} may do what {role} does")]
    text = (
        f"user {user} may not {', '.join(map(str, missing))}, as {role} does: "
        f"grant it {patterns(missing)} in the virtual host {vhost}"
    )
    return [Finding("FAIL", "permissions", text)]


async def _topology(connection: Connection, settings: Settings) -> list[Finding]:
    missing = await topology.missing(connection, settings)
    if not missing:
        return [Finding("ok", "topology", f"all queues and exchanges of {settings.prefix} are there")]
    return [Finding("ok", "topology", f"not there yet, the worker will declare it: {', '.join(missing)}")]


async def _workers(connection: Connection, settings: Settings) -> list[Finding]:
    """What keeps requests from being settled fails the check; what only slows them down is a note."""
    names, now = Topology(settings.prefix), datetime.now(UTC)
    overview = await read_overview(connection, names)
    if not overview.knows_workers and overview.problems:
        return [Finding("FAIL", "workers", overview.problems[0])]
    findings = [
        Finding("FAIL" if c.stops else "note", "workers", f"{c.line(now, str.lower)}. {c.advice}", STOPPED)
        for c in judge(overview, names)
        if c.state not in (State.WELL, State.INCOMPLETE)
    ]
    good = [f"{worker.place} is {worker.state}" for worker in overview.workers if not of_worker(worker)]
    if good and not findings:
        findings.append(Finding("ok", "workers", ", ".join(good)))
    return findings


async def _partitions(connection: Connection, settings: Settings) -> list[Finding]:
    """Those that are left over, if there are any and this user may see them: an operator may not. Without
    partitions there is no log to read."""
    names = Topology(settings.prefix)
    try:
        state = await read_partition_state(settings)
    except TopologyError:
        return []
    beyond = range(state.partitions + 1, state.most_partitions + 1)
    left = [number for number in beyond if await exists(connection, names.partition(number))]
    if not left:
        return []
    text = (
        f"the workers have {state.partitions}, and {', '.join(map(names.partition, left))} are left over: "
        f"OTT_PARTITIONS={state.partitions} ott-worker partitions prune deletes those that are drained"
    )
    return [Finding("note", "partitions", text)]


async def _token(settings: Settings) -> Finding:
    try:
        async with MarketingCloud(settings, EventListener()) as marketing_cloud:
            token = await marketing_cloud.accounts.get(None)
    except TokenTrouble as error:
        # The trouble and its cause, in one line.
        text = f"{str(error).rstrip('.')}: {await _token_cause(error, settings)}"
        return Finding("FAIL", "token", text)
    except SettingsError as error:
        return Finding("FAIL", "token", str(error), error.exit_code)
    if token.scope and NEEDED_SCOPE not in token.scope:
        text = (
            f"the token lacks the scope {NEEDED_SCOPE}: grant it to the package's component in Marketing "
            "Cloud's Setup, Installed Packages (OTT, Channels, Write); it takes up to 5 minutes"
        )
        return Finding("FAIL", "token", text)
    return Finding("ok", "token", f"received; registrations go to {token.rest_url}")


async def _token_cause(error: TokenTrouble, settings: Settings) -> str:
    """Where a business unit is set, one more token request finds out whether a token is given without it."""
    where = "OTT_MC_AUTH_URL" if settings.mc_auth_url else "OTT_MC_SUBDOMAIN"
    if error.cause in (Cause.NO_ANSWER, Cause.PAGE, Cause.NO_TOKEN) or error.status in (404, 405):
        return f"check {where}, which gives {settings.auth_url}"
    if error.cause is Cause.ERROR:
        return "this is Marketing Cloud's side: the worker waits and tries again"
    if settings.mc_account_id and await _is_given_without_account(settings):
        return f"check OTT_MC_ACCOUNT_ID ({settings.mc_account_id}), for without it a token is given"
    if error.cause is Cause.UNAUTHORIZED_CLIENT:
        return "add this machine's public IP address to the allowlist in Marketing Cloud's Setup (Security)"
    if error.cause is Cause.INVALID_SCOPE:
        return f"grant the scope {NEEDED_SCOPE} to the package's component in Marketing Cloud's Setup"
    return "check OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET; a secret ends 180 days after it was made"


async def _is_given_without_account(settings: Settings) -> bool:
    anonymous = settings.model_copy(update={"mc_account_id": None})
    try:
        async with MarketingCloud(anonymous, EventListener()) as marketing_cloud:
            await marketing_cloud.accounts.get(None)
    except TokenTrouble:
        return False
    return True
