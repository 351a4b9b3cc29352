"""The journey of one request, on one page.

    a delivery arrives                          amqp/consumer.py
    → it is parsed, or rejected                 request.py (contract/registration.py)
    → it waits for earlier ones of its resource lanes.py
    → a newer one in the journal supersedes it  replay_guard.py
    → it is forwarded, with retries             forward.py (flow.py, pace.py, policy.py)
    → reply, dead letter, record: confirmed     settle.py
    → it is acknowledged                        amqp/consumer.py

A journey that ends early (the connection is lost, the worker stops, a defect) leaves its delivery
unacknowledged, and the broker delivers it again."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.amqp.consumer import Delivery, End, EndReason, Subscription
from worker.amqp.publisher import Publisher
from worker.broker.status import StandingOrders
from worker.contract.registration import Rejection
from worker.contract.timestamps import ArrivalClock
from worker.errors import BrokerUnreachable
from worker.events import EventListener, Tracing
from worker.pipeline.forward import Forwarder
from worker.pipeline.lanes import Lanes
from worker.pipeline.replay_guard import ReplayGuard, is_forced, superseded
from worker.pipeline.request import Outcome, Request, RequestParser
from worker.pipeline.settle import Settler
from worker.settings import Settings

# Each time a request crashes the worker, all deliveries in flight are requeued, until innocent ones reach the
# delivery limit too. A request that was requeued this often is a suspect (lanes.py).
SUSPECT_AFTER = 3

Identity = tuple[str, int]  # the same for a message and its redeliveries
Carried = dict[Identity, tuple[int, int]]  # attempts made, and the time of the first arrival


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
    orders: StandingOrders
    publisher: Publisher
    tracing: Tracing | None = None


class Journeys:
    """All journeys of one subscription, from its first delivery to its last."""

    def __init__(self, subscription: Subscription, tools: Tools) -> None:
        self.subscription = subscription
        self._tools = tools
        self._events = tools.events
        process = partial(tools.tracing.process, self._process) if tools.tracing else self._process
        self._lanes: Lanes[Request] = Lanes(process, self._pick)
        self._held: list[Delivery] | None = []  # until this worker has taken over
        self._tasks: set[asyncio.Task[None]] = set()  # other than the lanes
        self.is_active = False  # whether a message was delivered
        self.end: End | None = None  # why the subscription must end
        self.own_requeues = 0  # how often this worker requeued its deliveries without their fault
        self.carried_in: Carried = {}  # of the requests that the last subscription requeued

    def accept(self, delivery: Delivery) -> None:
        """Process a delivery. The first ones wait, in their order, until this worker has taken over."""
        if self._lanes.is_stopped:
            return  # it is requeued with all others
        if not self.is_active:
            self.is_active = True
            self._report_active()
            self._begin()
        if self._held is None:
            self._admit(delivery)
        else:
            self._held.append(delivery)

    def _begin(self) -> None:
        self._held = []
        self._run("take-over", self._take_over())

    async def _take_over(self) -> None:
        await self.take_over()
        if self.end is None:
            held, self._held = self._held or [], None
            for delivery in held:
                self._admit(delivery)

    async def take_over(self) -> None:
        """Read the records of other workers before the first request."""
        await self._tools.replay_guard.take_over()

    def _admit(self, delivery: Delivery) -> None:
        self._enqueue(self._tools.parser.parse(delivery, self._tools.clock.stamp()))

    def _enqueue(self, request: Request) -> None:
        """Add a request to its lane."""
        if self.carried_in and request.delivery.redelivered:
            known = self.carried_in.pop(_identity(request), (0, request.received_at))
            request.attempts, request.received_at = known
            request.as_of = request.as_of and min(request.as_of, request.received_at)
        suspect = request.delivery.times_returned - self.own_requeues >= SUSPECT_AFTER
        self._lanes.put(request.resource, request, suspect=suspect)

    def _report_active(self) -> None:
        self._events.active()

    def report_end(self, why: End, unsettled: int) -> None:
        """Report why the subscription ends; `unsettled` deliveries are requeued."""
        events, has_ended = self._events, self.subscription.ended.done()
        (events.subscription_ended if has_ended else events.returned)(unsettled, str(why))

    def _run(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a background task. If it fails, the subscription ends."""
        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(task.get_name(), error)

    def _fail(self, what: str, error: BaseException) -> None:
        """End the subscription after a defect, or if the broker does not answer."""
        if isinstance(error, BrokerUnreachable):
            self.end = End(EndReason.FAILED, str(error))
        else:
            self._events.processing_failed(what, type(error).__name__)
            self.end = End(EndReason.FAILED)

    @property
    def lanes(self) -> int:
        """Resources with a request in progress."""
        return len(self._lanes)

    @property
    def carried_out(self) -> Carried:
        """The `carried_in` of the next subscription. A redelivered request without `x-ott-as-of` must not
        count as newer. Attempts that failed because of an outage do not count."""
        if self._held is not None:
            return self.carried_in
        is_pausing = self._tools.forwarder.flow.is_pausing
        return {
            _identity(each): (0 if is_pausing else each.attempts, each.received_at)
            for each in reversed(self._lanes.items)  # of two identical ones, the first is redelivered first
        }

    async def drain(self, grace: float) -> None:
        """Start no more requests. Those with a call in flight, or being settled, have `grace` seconds; those
        that wait (in a lane, for the gate, for the next attempt) end at once. If the connection is lost, all
        end at once, because another worker may have the deliveries."""
        ended = self.subscription.ended
        await self._lanes.drain(lambda request: request.phase != "waiting" and not ended.done(), grace)

    async def cancel(self) -> None:
        """End all at once, including calls in flight."""
        for task in self._tasks:
            task.cancel()
        await self._lanes.cancel()
        self._tools.forwarder.reset()

    async def _process(self, request: Request) -> None:
        try:
            await self._journey(request)
        except Exception as error:
            self._fail(request.id, error)
            # The lane waits here until the subscription ends, so that nothing overtakes this request.
            request.phase = "waiting"
            await asyncio.get_running_loop().create_future()

    async def _journey(self, request: Request) -> None:
        outcome = await self._decide(request)
        request.phase = "settling"
        await self._settle(request, outcome)

    async def _settle(self, request: Request, outcome: Outcome) -> None:
        settlement = await self._tools.settler.settle(request, outcome)
        if request.older and outcome.status == "registered":
            # What it supersedes is acknowledged first: after a crash in between, all are redelivered
            # together.
            newer = superseded(request.id)
            await asyncio.gather(*(self._settle(older, newer) for older in request.older))
            self._lanes.drop(request.resource, request.older)
        # The broker dead-letters an oversize request, because the worker has not kept its body.
        acknowledge = self.subscription.reject if request.delivery.oversize else self.subscription.ack
        acknowledge(request.delivery)
        self._tools.replay_guard.settled(settlement)
        self._events.settled(settlement, time.monotonic() - request.delivery.arrived_at)

    def _pick(self, waiting: Sequence[Request]) -> Request:
        """The next request of a resource. If many wait, the newest: if it is registered, the older ones need
        no call (contract §2)."""
        first = waiting[0]
        most = self._tools.settings.coalesce_after
        if not most or len(waiting) <= most or any(is_forced(request) for request in waiting):
            first.older = ()
            return first
        times = [request.true_at for request in waiting]
        newest = waiting[max(range(len(times)), key=lambda n: (times[n], n))]
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
        return await self._tools.forwarder.forward(request, self.subscription.ensure_lease)


def _identity(request: Request) -> Identity:
    return request.id, hash(request.delivery.body)
