"""The journey of one request, on one page.

    a delivery arrives                          amqp/consumer.py
    → it is parsed, or rejected                 request.py (contract/registration.py)
    → it waits for its resource's turn          lanes.py
    → a newer one in the journal supersedes it  replay_guard.py
    → it is forwarded, with retries             forward.py (flow.py, pace.py, policy.py)
    → reply, dead letter, record: confirmed     settle.py
    → it is acknowledged                        amqp/consumer.py

A journey that ends early (the connection is lost, the worker stops, a defect) leaves its delivery
unacknowledged: the broker has it, and delivers it again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from worker.amqp.consumer import Delivery, End, EndReason, Subscription
from worker.contract.registration import Rejection
from worker.contract.settlement import Resource
from worker.events import EventListener, Tracing
from worker.pipeline.arrival_clock import ArrivalClock
from worker.pipeline.forward import Forwarder
from worker.pipeline.lanes import Lanes
from worker.pipeline.replay_guard import ReplayGuard, is_forced, superseded
from worker.pipeline.request import Outcome, Request, RequestParser
from worker.pipeline.settle import Settler
from worker.settings import Settings

# A request that crashes the worker returns all deliveries in flight with it, again and again, until innocent
# ones reach the delivery limit too. One that came back this often is a suspect (lanes.py).
SUSPECT_AFTER = 3

Identity = tuple[str, int]
Attempts = dict[Identity, int]


@dataclass(frozen=True, slots=True)
class Tools:
    """The parts of the worker that all its journeys share."""

    settings: Settings
    parser: RequestParser
    forwarder: Forwarder
    settler: Settler
    replay_guard: ReplayGuard
    clock: ArrivalClock
    events: EventListener
    tracing: Tracing | None = None


class Journeys:
    """All journeys of one subscription."""

    def __init__(self, subscription: Subscription, tools: Tools) -> None:
        self._subscription = subscription
        self._tools = tools
        self._events = tools.events
        process = partial(tools.tracing.process, self._process) if tools.tracing else self._process
        self._lanes: Lanes[Request] = Lanes(process, self._pick)
        self.end: End | None = None  # why the subscription must end
        # For requests that come again because this worker, in good health, gave them back:
        self.own_requeues = 0  # the number of times it did so
        self.carried_attempts: Attempts = {}  # the attempts that they had made by then
        # Requests that went back alone, so that they come again behind others that were received later:
        self.overtaken: dict[Resource | None, Identity] = {}
        self._requeued: set[Identity] = set()  # what has let them pass

    def accept(self, delivery: Delivery, arrival: ArrivalClock | None = None) -> None:
        """Take in a delivery that has arrived: parse it, and let it wait for its turn. `arrival` tells when,
        if that is not now."""
        request = self._tools.parser.parse(delivery, arrival or self._tools.clock)
        if self.overtaken and self._must_let_pass(request):
            self._subscription.requeue(delivery)
            return
        if self.carried_attempts:
            request.attempts = self.carried_attempts.pop(identity(request), 0)
        suspect = delivery.times_returned - self.own_requeues >= SUSPECT_AFTER
        self._lanes.put(request.resource, request, suspect=suspect)

    def _must_let_pass(self, request: Request) -> bool:
        """Whether an older request for its resource is still to come. It is not if the queue delivers what
        is new, or begins again: then another worker has settled that one."""
        if not request.delivery.redelivered:
            self.overtaken.clear()
        this = identity(request)
        if self.overtaken.get(request.resource, this) == this or this in self._requeued:
            self.overtaken.pop(request.resource, None)
            return False
        self._requeued.add(this)
        return True

    @property
    def unfinished(self) -> dict[Resource | None, Identity]:
        """The oldest request of each resource that has not ended."""
        oldest: dict[Resource | None, Identity] = {}
        for request in self._lanes.items:
            if request.resource is not None:
                oldest.setdefault(request.resource, identity(request))
        return oldest

    @property
    def lanes(self) -> int:
        """Resources with a request under way."""
        return len(self._lanes)

    @property
    def attempts(self) -> Attempts:
        """The attempts made so far, as `carried_attempts` of the next subscription. None during a pause:
        they failed because of the outage, which must not cost the requests anything."""
        if self._tools.forwarder.is_pausing:
            return {}
        return {identity(request): request.attempts for request in self._lanes.items if request.attempts}

    async def drain(self, grace: float) -> None:
        """Start nothing more. Requests that are being called or settled get `grace` seconds to end; those
        that wait (for their turn, the gate, the next attempt) end at once. If the connection is lost
        meanwhile, all end at once: another worker has the deliveries then."""
        ended = self._subscription.ended
        await self._lanes.drain(lambda request: request.phase != "waiting" and not ended.done(), grace)

    async def cancel(self) -> None:
        """End all of them at once, calls on the wire included."""
        await self._lanes.cancel()
        self._tools.forwarder.leave()

    async def _process(self, request: Request) -> None:
        try:
            outcome = await self._decide(request)
            request.phase = "settling"
            await self._settle(request, outcome)
        except Exception as error:
            # This is a defect of the worker. The intake gives everything back. Until then nothing may
            # overtake this request, so its lane waits here.
            self._events.processing_failed(request.id, type(error).__name__)
            self.end = End(EndReason.FAILED)
            request.phase = "waiting"
            await asyncio.get_running_loop().create_future()

    async def _settle(self, request: Request, outcome: Outcome) -> None:
        settlement = await self._tools.settler.settle(request, outcome)
        if request.older and outcome.status == "registered":
            # All that it supersedes is acknowledged before it: a crash in between repeats them together.
            newer = superseded(request.id)
            await asyncio.gather(*(self._settle(older, newer) for older in request.older))
            self._lanes.drop(request.resource, request.older)
        # The worker has not kept the body of an oversize request, so the broker dead-letters it.
        acknowledge = self._subscription.reject if request.delivery.oversize else self._subscription.ack
        acknowledge(request.delivery)
        self._tools.replay_guard.settled(settlement)
        self._events.settled(settlement, time.monotonic() - request.delivery.arrived_at)

    def _pick(self, waiting: Sequence[Request]) -> Request:
        """Which request of a resource goes next: where many wait, the newest, and the older ones need no call
        if it is registered (contract §2)."""
        first = waiting[0]
        most = self._tools.settings.coalesce_after
        if not most or len(waiting) <= most or any(is_forced(request) for request in waiting):
            first.older = ()
            return first
        times = [request.true_at for request in waiting]
        place = max(range(len(times)), key=lambda n: (times[n], n))
        newest = waiting[place]
        newest.older = tuple(request for request in waiting if request is not newest)
        return newest

    async def _decide(self, request: Request) -> Outcome:
        if isinstance(rejection := request.parsed, Rejection):
            why = rejection.message, rejection.errorcode
            return Outcome("rejected", rejection.reason, *why, errors=rejection.errors)
        if request.is_replay or request.as_of is not None:
            outcome = await self._tools.replay_guard.judge(request)
            if outcome is not None:
                return outcome
        return await self._tools.forwarder.forward(request, self._subscription.ensure_lease)


def identity(request: Request) -> Identity:
    """An identity that a redelivery shares with the delivery before it."""
    return request.id, hash(request.delivery.body)
