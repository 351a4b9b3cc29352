"""The checks of the probes (contract §7: `/livez`, `/readyz`), as plain data without a secret.

Live means that this process works: a restart heals neither RabbitMQ nor Marketing Cloud. Ready means that the
worker takes requests, or would take over at once from the one that does.
"""

import asyncio
import time
from datetime import UTC, datetime

from worker.amqp.confirm_channel import CONFIRM_TIMEOUT
from worker.amqp.consumer import LEASE
from worker.broker.situation import of_worker
from worker.service import Service
from worker.telemetry.state import WorkerPhase, oldest_age
from worker.telemetry.status import describe

MARGIN = 60.0  # seconds that a deadline may be exceeded by

Check = tuple[bool, str]  # whether it holds, and what is so


def live(service: Service, phase: WorkerPhase) -> dict[str, Check]:
    """Whether the process works: nothing is held far beyond its deadline. (That the event loop turns is shown
    by the answer itself.)"""
    settings = service.settings
    held = oldest_age(service)
    failed = service.publisher.has_failed
    since = phase.draining_since
    draining = 0.0 if since is None else time.monotonic() - since
    return {
        "requests": (
            held < settings.hold_limit + settings.shutdown_grace + MARGIN,
            f"oldest held for {held:.0f} s",
        ),
        "publisher": (not failed, "a defect ended it" if failed else "runs"),
        "shutdown": (
            draining < settings.shutdown_grace + MARGIN,
            "not asked for" if since is None else f"draining for {draining:.0f} s",
        ),
    }


def ready(service: Service, phase: WorkerPhase) -> dict[str, Check]:
    """Whether it takes requests or stands by to take them over. A pause or an outage leaves it ready: another
    worker would wait too. So does trouble of other accounts: only messages that name them fail."""
    accounts, flow = service.marketing_cloud.accounts, service.flow
    others = accounts.others_in_trouble
    first = "; ".join(f"{account}: {why}" for account, why in list(others.items())[:3])
    full = "; ".join(f"{queue} takes nothing: {why}" for queue, why, _ in service.publisher.blocked)
    no_token = accounts.trouble or "not needed yet, or since it expired"
    return {
        "consumer": _consumer(service, phase),
        "publisher": _publisher(service),
        "token": (
            accounts.has_token or not accounts.trouble,
            "held" if accounts.has_token else no_token,
        ),
        "accounts": (True, f"{len(others)} in trouble: {first}" if others else "none in trouble"),
        "gate": (True, f"{flow.state.value}: {flow.why}" if flow.is_pausing else "open"),
        "queues": (not full, full or "none is full"),
    }


def situation(service: Service, phase: WorkerPhase) -> list[str]:
    """A line for each reason for which this worker settles nothing."""
    now = datetime.now(UTC)
    return [f"{each.line(now)}. {each.advice}" for each in of_worker(describe(service, phase))]


def _consumer(service: Service, phase: WorkerPhase) -> Check:
    subscription, pause = service.intake.subscription, service.orders.pause
    if phase.draining_since is not None:
        return False, "draining"
    if pause is not None and service.connection is not None:
        return True, f"paused by {pause.by}: {pause.why}"
    if subscription is None:
        return False, "not subscribed"
    if subscription.silence > LEASE:
        return False, f"the broker has not answered for {subscription.silence:.0f} s"
    return True, "active" if phase.is_active else "subscribed, no delivery yet: idle or standing by"


def _publisher(service: Service) -> Check:
    publisher = service.publisher
    if not publisher.ready:
        return False, "not connected"
    silence = asyncio.get_running_loop().time() - publisher.confirmed_at
    if publisher.waiting and silence > CONFIRM_TIMEOUT:
        return False, f"{publisher.waiting} messages wait, none confirmed for {silence:.0f} s"
    return True, "connected"
