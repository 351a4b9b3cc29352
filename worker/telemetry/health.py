"""The answers of the probes (contract §7: `/livez`, `/readyz`), as plain data without a secret.

Live means that this process works: a restart heals neither RabbitMQ nor Marketing Cloud. Ready means that the
worker takes requests, or would take over at once from the one that does.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.amqp.confirm_channel import CONFIRM_TIMEOUT
from worker.amqp.consumer import LEASE
from worker.broker.situation import of_worker
from worker.service import Service
from worker.telemetry.state import LoopMonitor, WorkerPhase, oldest_age
from worker.telemetry.status import describe

LONGEST_SILENCE = 10.0  # seconds without a turn of the loop
MARGIN = 60.0  # seconds that a deadline may be exceeded by


@dataclass(frozen=True, slots=True)
class Report:
    """`checks` holds a text for each check; `wrong` names those that fail. `situation` has a line for each
    reason for which nothing is settled."""

    situation: list[str]
    checks: dict[str, str]
    wrong: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.wrong


class Health:
    """Judges one worker."""

    def __init__(self, service: Service, phase: WorkerPhase, loop_monitor: LoopMonitor) -> None:
        self._service = service
        self._phase = phase
        self._loop_monitor = loop_monitor

    def live(self) -> Report:
        """Whether the process works: the event loop turns, and nothing is held far beyond its deadline."""
        settings = self._service.settings
        held = oldest_age(self._service)
        held_limit = settings.hold_limit + settings.shutdown_grace + MARGIN
        failed = self._service.publisher.has_failed
        since = self._phase.draining_since
        draining = 0.0 if since is None else time.monotonic() - since
        return _report(
            loop=(
                self._loop_monitor.silence < LONGEST_SILENCE,
                f"turned {self._loop_monitor.silence:.1f} s ago",
            ),
            requests=(held < held_limit, f"oldest held for {held:.0f} s"),
            publisher=(not failed, "a defect ended it" if failed else "runs"),
            shutdown=(
                draining < settings.shutdown_grace + MARGIN,
                "not asked for" if since is None else f"draining for {draining:.0f} s",
            ),
        )

    def ready(self) -> Report:
        """Whether it takes requests or stands by to take them over. The situation names each reason for which
        this worker settles nothing. A pause or an outage leaves it ready: another worker would wait too."""
        conditions = of_worker(describe(self._service, self._phase))
        now = datetime.now(UTC)
        return _report(
            [f"{condition.line(now)}. {condition.advice}" for condition in conditions],
            consumer=self._consumer(),
            publisher=self._publisher(),
            token=self._token(),
            accounts=self._other_accounts(),
            gate=self._gate(),
            queues=self._queues(),
        )

    def _consumer(self) -> tuple[bool, str]:
        subscription = self._service.intake.subscription
        if self._phase.draining_since is not None:
            return False, "draining"
        pause = self._service.orders.pause
        if pause is not None and self._service.intake.connection is not None:
            return True, f"paused by {pause.by}: {pause.why}"
        if subscription is None:
            return False, "not subscribed"
        if subscription.silence > LEASE:
            return False, f"the broker has not answered for {subscription.silence:.0f} s"
        return True, "active" if self._phase.is_active else "subscribed, no delivery yet: idle or standing by"

    def _publisher(self) -> tuple[bool, str]:
        publisher = self._service.publisher
        if not publisher.ready:
            return False, "not connected"
        silence = asyncio.get_running_loop().time() - publisher.confirmed_at
        if publisher.waiting and silence > CONFIRM_TIMEOUT:
            return False, f"{publisher.waiting} messages wait, none confirmed for {silence:.0f} s"
        return True, "connected"

    def _token(self) -> tuple[bool, str]:
        accounts = self._service.marketing_cloud.accounts
        if accounts.has_token:
            return True, "held"
        return not accounts.trouble, accounts.trouble or "not needed yet, or since it expired"

    def _other_accounts(self) -> tuple[bool, str]:
        # Only messages that name these accounts fail, so the worker stays ready.
        troubles = self._service.marketing_cloud.accounts.others_in_trouble
        first = "; ".join(f"{account}: {why}" for account, why in list(troubles.items())[:3])
        return True, f"{len(troubles)} in trouble: {first}" if troubles else "none in trouble"

    def _gate(self) -> tuple[bool, str]:
        flow = self._service.flow
        return True, f"{flow.state.value}: {flow.why}" if flow.is_pausing else "open"

    def _queues(self) -> tuple[bool, str]:
        blocked = self._service.publisher.blocked
        return not blocked, "; ".join(
            f"{queue} takes nothing: {why}" for queue, why, _ in blocked
        ) or "none is full"


def _report(situation: Sequence[str] = (), **checks: tuple[bool, str]) -> Report:
    return Report(
        situation=list(situation),
        checks={name: text for name, (_, text) in checks.items()},
        wrong=tuple(name for name, (ok, _) in checks.items() if not ok),
    )
