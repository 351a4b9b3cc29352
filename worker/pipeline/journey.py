"""The way of one request, on one page.

    a delivery arrives                          amqp/consumer.py
    → it is parsed, or refused              contract/registration.py (request.py)
    → it waits for its resource's turn          lanes.py
    → a replay is held against the journal      history.py
    → it is forwarded, with retries             forward.py (gate.py, accounts.py, policy.py)
    → reply, dead letter, record: confirmed     settle.py
    → it is acknowledged                        amqp/consumer.py

Whatever ends a journey early (the connection lost, a shutdown, a defect) leaves the delivery
unacknowledged, and so with the broker.
"""

import asyncio
import time
from functools import partial
from typing import Protocol

from worker.amqp.consumer import Delivery, Subscription
from worker.contract.registration import Rejection
from worker.events import EventListener, Tracing
from worker.pipeline.forward import Forwarder
from worker.pipeline.lanes import Lanes
from worker.pipeline.request import Clock, Outcome, Request, receive
from worker.pipeline.settle import Settler
from worker.settings import Settings

# A request that ends the worker takes all deliveries in flight down with it, again and again, until the
# delivery limit hits innocent ones too. What has come back this often is taken with care (lanes.py).
SUSPECT_AFTER = 3


class ReplayGuard(Protocol):
    """What is known of earlier settlements."""

    async def judge_replay(self, request: Request) -> Outcome | None:
        """The outcome of a replay that must not be forwarded, or None."""

    def settled(self, request: Request, outcome: Outcome) -> None:
        """A request's record is confirmed, and the next one of its resource has not begun."""


class Journeys:
    """All journeys of one subscription."""

    def __init__(
        self,
        settings: Settings,
        subscription: Subscription,
        forwarder: Forwarder,
        settler: Settler,
        history: ReplayGuard,
        clock: Clock,
        events: EventListener,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._subscription = subscription
        self._forwarder = forwarder
        self._settler = settler
        self._history = history
        self._clock = clock
        self._events = events
        self._lanes: Lanes[Request] = Lanes(
            self._travel if tracing is None else partial(tracing.travel, self._travel)
        )
        self.failed = asyncio.Event()
        self.own_requeues = 0  # returns that the worker itself made, alive and well
        self.spent: dict[tuple[str, int], int] = {}  # attempts of requests that went back and come again

    def begin(self, delivery: Delivery) -> None:
        """A delivery has arrived: parse_registration it and let it wait for its turn."""
        settings = self._settings
        request = receive(delivery, self._clock, settings.max_body_bytes, settings.mc_account_id)
        if self.spent:
            request.attempts = self.spent.pop(_same(request), 0)
        suspect = delivery.times_returned - self.own_requeues >= SUSPECT_AFTER
        self._lanes.put(request.resource, request, suspect=suspect)

    @property
    def lanes(self) -> int:
        """Resources with a request under way."""
        return len(self._lanes)

    @property
    def attempts(self) -> dict[tuple[str, int], int]:
        """The attempts that requests have spent so far, for `spent` of the next subscription. In a pause
        none: they were the outage's."""
        if self._forwarder.is_pausing:
            return {}
        return {_same(request): request.attempts for request in self._lanes.items if request.attempts}

    async def drain(self, grace: float) -> None:
        """Start nothing more. Calls on the wire and what is being settled get `grace` seconds to end;
        what waits (for its turn, for the gate, for its next attempt) ends at once. So do all of them when the
        connection is lost meanwhile: somebody else has the deliveries then."""
        ended = self._subscription.ended
        await self._lanes.drain(lambda request: request.phase != "waiting" and not ended.done(), grace)

    async def cancel(self) -> None:
        """End all of them at once, calls on the wire included."""
        await self._lanes.cancel()
        self._forwarder.rest()

    async def _travel(self, request: Request) -> None:
        try:
            outcome = await self._decide(request)
            request.phase = "settling"
            await self._settler.settle(request, outcome, lambda: self._subscription.ack(request.delivery))
            self._history.settled(request, outcome)
        except Exception as error:
            # A defect of ours. The intake gives everything back; until then nothing may overtake this
            # request, so its lane waits here.
            self._events.processing_failed(request.id, type(error).__name__)
            self.failed.set()
            request.phase = "waiting"
            await asyncio.get_running_loop().create_future()
        self._events.settled(_Facts(request, outcome), time.monotonic() - request.delivery.arrived_at)

    async def _decide(self, request: Request) -> Outcome:
        if isinstance(request.parsed, Rejection):
            return _refused(request.parsed)
        if request.is_replay:
            superseded = await self._history.judge_replay(request)
            if superseded is not None:
                return superseded
        return await self._forwarder.forward(request, self._subscription.ensure_lease)


def _same(request: Request) -> tuple[str, int]:
    """What a delivery has in common with the one before of the same request."""
    return request.id, hash(request.delivery.body)


def _refused(refusal: Rejection) -> Outcome:
    return Outcome("rejected", refusal.reason, refusal.message, refusal.errorcode, "", refusal.errors)


class _Facts:
    """What may be told of a settled request."""

    __slots__ = ("_outcome", "_request")

    def __init__(self, request: Request, outcome: Outcome) -> None:
        self._request = request
        self._outcome = outcome

    @property
    def request_id(self) -> str:
        return self._request.id

    @property
    def status(self) -> str:
        return self._outcome.status

    @property
    def reason(self) -> str | None:
        return self._outcome.reason

    @property
    def platform(self) -> str | None:
        return self._request.platform

    @property
    def resource_id(self) -> str | None:
        return self._request.resource_id

    @property
    def account(self) -> str | None:
        return self._request.account

    @property
    def attempts(self) -> int:
        return self._request.attempts

    @property
    def http_status(self) -> int | None:
        return self._outcome.http_status
