"""How several workers are active at once and the latest still wins: the protocol of partitions, contract §10,
in a model that is small enough to try everything that can happen.

    PREFIX.requests → router → PREFIX.requests.1 … .N → partition workers → Marketing Cloud

RabbitMQ decides who is what: all of these are single active consumer queues, and every worker consumes all
of them. The protocol is this.

1. Routing. The router puts each request into the partition of its resource. It acknowledges the request in
   PREFIX.requests once the partition has confirmed it, in order. What is not acknowledged goes to the
   next router. So a request may stand in a partition twice, and then everything behind it does too: that is
   a repetition, but never an older request behind a newer one. It publishes requests of one resource without
   waiting for each other's confirms. Where the partition is full and refuses one, those behind it may be
   taken. So that one and all behind it are published again, in their order, once all are answered, and none
   of them is acknowledged before.
2. Epochs. A router that becomes active claims an epoch: it writes into the stream PREFIX.partitions and
   reads its claim back, and the offset there is the epoch. Then it makes sure that it still is the active
   consumer, by a round trip that the broker answers after the claim. So epochs are in the order in which
   routers became active. One epoch is one channel to publish on. Where the channel is lost, the epoch ends
   with the subscription, and what is not acknowledged comes again in the next one. Only where RabbitMQ closed
   the channel for a message, the router renews its epoch: it claims another one, makes sure as before, sends
   the barrier, and publishes all again that is not acknowledged. It need not wait for the answers, because
   its resources stay in their partitions, and what may still come from the lost channel is fenced off.
3. Barrier. The new router sends a message with its epoch through every partition there is, also through
   those that its own number of partitions no longer uses. The partition's worker settles it after all that
   came before; the record of that (5) is the answer. One that is not answered is sent again, for its queue
   may have been deleted; a second copy changes nothing. The router routes once every partition has
   answered. So nothing older is under way anywhere when a resource changes its partition.
4. Fence. A router that has lost its role, and does not know yet, may go on to publish what it holds. Every
   routed message carries its router's epoch. A worker acknowledges and forgets a message whose epoch is
   older than the newest barrier that came before it in this partition. Nothing is lost by that: the
   barrier was sent after the old router had lost its deliveries. What that router published behind the
   barrier, it can never have acknowledged, and the newer router was given the request too.
5. Memory. Before a worker acknowledges a barrier, it writes the partition and the epoch into the stream
   PREFIX.partitions and waits for the confirm. A worker that takes a partition over writes a mark into the
   stream and reads up to it. So it knows all that was confirmed before, and the fence holds. A worker of
   release 1.1.0, whose consumers have priorities, can have had the partition between any two deliveries, as
   long as none is unsettled (RabbitMQ moves a partition only then). While there is one, a worker reads
   again whenever a delivery comes while nothing is unsettled.
6. Times of arrival. The router gives them, after the barrier, and they grow. The answers to the barrier tell
   the newest time of those who have the partitions now, and the journal that of those who had them. A new
   router's times begin above both.
7. Lease. A worker calls Marketing Cloud only while the broker is known to count it as alive.

The model has one resource, whose requests 1, 2, 3 … must end with the last one registered, and two
partitions. Each router has a number of partitions of its own, so the resource may change its partition at
each take-over, and back. Routers and partition workers are replaced at any moment, and an old one may go
on. Each protection can be left out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

PARTITIONS = (0, 1)
AHEAD = 10  # the first router's clock; all others stand at 0


class Message(NamedTuple):
    """In a partition. A barrier has the request 0."""

    epoch: int
    request: int
    received_at: int


class Partition(NamedTuple):
    messages: tuple[Message, ...] = ()
    settled: int = 0  # so many of the messages, from the first on; the broker knows of none of them yet
    epoch: int = 0  # of the newest barrier, as its worker knows
    recorded: int = 0  # the same, in the stream
    newest_time: int = 0  # of what was settled here, in the journal


class Router(NamedTuple):
    number: int
    held: tuple[int, ...] = ()  # deliveries that are not acknowledged
    published: int = 0  # so many of them, from the first on
    epoch: int = 0
    sent_barriers: bool = False
    answers: frozenset[int] = frozenset()
    clock: int = 0
    refused: int | None = None  # the first of those held that its partition did not take


class State(NamedTuple):
    ready: tuple[int, ...]
    routers: tuple[Router, ...] = (Router(0, clock=AHEAD),)  # the last one is active
    partitions: tuple[Partition, ...] = (Partition(), Partition())
    claims: int = 0
    stale_calls: tuple[tuple[int, int], ...] = ()  # of workers that have lost their partition
    second_copies: tuple[Message, ...] = ()  # written on another channel, which the broker reads later
    registered: tuple[int, ...] = ()  # time of arrival of each request's newest registration, 0 for none
    latest: int = 0  # what Marketing Cloud holds
    router_takeovers: int = 0
    worker_takeovers: int = 0
    refusals: int = 0
    renewals: int = 0


@dataclass(frozen=True)
class Scenario:
    """What may happen. `homes` is the partition of the resource as each router sees it."""

    requests: int = 2
    homes: tuple[int, ...] = (0, 0)
    router_takeovers: int = 1
    worker_takeovers: int = 1
    refusals: int = 0
    renewals: int = 0
    without: str = ""

    def has(self, protection: str) -> bool:
        return protection != self.without


@dataclass
class Result:
    """What a search found."""

    states: int = 0
    ends: int = 0
    violations: dict[str, State] = field(default_factory=dict)


def search(scenario: Scenario, until: str | None = None) -> Result:
    """Try everything, or until a violation of the kind `until` is found. `violations` holds one example of
    each kind."""
    start = _start(scenario)
    seen, waiting, result = {start}, [start], Result()
    while waiting and until not in result.violations:
        state = waiting.pop()
        for step in _judged(state, scenario, result):
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    result.states = len(seen)
    return result


def wander(scenario: Scenario, walks: int, seed: int) -> Result:
    """Go from the start to an end so many times, at random: for scenarios too large to try everything."""
    rng, result = random.Random(seed), Result()
    for _ in range(walks):
        state = _start(scenario)
        while steps := _judged(state, scenario, result):
            state = rng.choice(steps)
            result.states += 1
    return result


def _start(scenario: Scenario) -> State:
    return State(tuple(range(1, scenario.requests + 1)), registered=(0,) * scenario.requests)


def _judged(state: State, scenario: Scenario, result: Result) -> list[State]:
    """The states that may follow this one; what is wrong with it or with a step goes into `result`."""
    steps = list(_steps(state, scenario))
    for step in steps:
        if isinstance(step, str):
            result.violations.setdefault(step, state)
    if _is_end(state):
        result.ends += 1
        if not all(state.registered):
            result.violations.setdefault("lost", state)
        elif state.latest != scenario.requests:
            result.violations.setdefault("an older one is the last", state)
    elif not steps:
        result.violations.setdefault("stuck", state)
    return [step for step in steps if isinstance(step, State)]


def _is_end(state: State) -> bool:
    return (
        not state.ready
        and len(state.routers) == 1
        and not state.routers[0].held
        and not any(partition.messages for partition in state.partitions)
        and not state.stale_calls
        and not state.second_copies
    )


def _steps(state: State, scenario: Scenario) -> Iterator[State | str]:
    for router in state.routers:
        yield from _router_steps(state, router, scenario)
    for index in PARTITIONS:
        yield from _worker_steps(state, index, scenario)
    for call in state.stale_calls:
        yield state._replace(stale_calls=())
        yield _call(state._replace(stale_calls=()), *call)
    for copy in state.second_copies:
        yield state._replace(second_copies=())
        yield _put(state._replace(second_copies=()), scenario.homes[0], copy)
    if state.router_takeovers < scenario.router_takeovers:
        yield _next_router(state, scenario)


def _next_router(state: State, scenario: Scenario) -> State:
    """The broker gives what was not acknowledged to the next one. The old one goes on with what it holds."""
    *old, active = state.routers
    may_act = active.epoch or not scenario.has("verified claim")
    return state._replace(
        ready=active.held + state.ready,
        routers=(*old, *((active,) if may_act else ()), Router(active.number + 1)),
        router_takeovers=state.router_takeovers + 1,
    )


def _router_steps(state: State, router: Router, scenario: Scenario) -> Iterator[State | str]:
    active = router is state.routers[-1]
    if not active:
        yield _changed(state, router, None)  # it ends
    if active and state.ready:
        # All at once: one that it does not publish is as good as one that it has not taken.
        taken = router._replace(held=router.held + state.ready)
        yield _changed(state, router, taken)._replace(ready=())
        return
    if not router.epoch:
        if router.held and (active or not scenario.has("verified claim")):
            claimed = router._replace(epoch=state.claims + 1)
            yield _changed(state, router, claimed)._replace(claims=state.claims + 1)
        return
    if not router.sent_barriers:
        after = _changed(state, router, router._replace(sent_barriers=True))
        for index in PARTITIONS:
            after = _put(after, index, Message(router.epoch, 0, 0))
        yield after
    elif len(router.answers) == len(PARTITIONS) or not scenario.has("barrier"):
        yield from _route(state, router, scenario)
        if active:
            yield from _acknowledgements(state, router, scenario)
            yield from _renewals(state, router, scenario)


def _renewals(state: State, router: Router, scenario: Scenario) -> Iterator[State]:
    """RabbitMQ closed the channel for a message. What was under way on it may come late, or never."""
    if router.published and not router.number and state.renewals < scenario.renewals:
        renewed = _published_again(router, 0)
        if scenario.has("renewed epoch"):
            renewed = renewed._replace(epoch=state.claims + 1, sent_barriers=False)
        after = _changed(state, router, renewed)._replace(claims=renewed.epoch, renewals=state.renewals + 1)
        for index in range(router.published):
            moment = router.clock - (router.published - 1 - index)
            late = Message(router.epoch, router.held[index], moment)
            yield after._replace(second_copies=(late,))


def _published_again(router: Router, first: int) -> Router:
    """All from the first on, with the times that they had."""
    return router._replace(published=first, refused=None, clock=router.clock - (router.published - first))


def _route(state: State, router: Router, scenario: Scenario) -> Iterator[State]:
    if router.refused is not None:
        if scenario.has("whole run again"):
            yield _changed(state, router, _published_again(router, router.refused))
        else:
            alone = Message(router.epoch, router.held[router.refused], router.clock + 1)
            again = router._replace(clock=router.clock + 1, refused=None)
            yield _put(_changed(state, router, again), scenario.homes[router.number], alone)
    if router.published < len(router.held):
        clock = router.clock + 1
        message = Message(router.epoch, router.held[router.published], clock)
        sent = router._replace(published=router.published + 1, clock=clock)
        after = _put(_changed(state, router, sent), scenario.homes[router.number], message)
        yield after
        if state.refusals < scenario.refusals:
            first = router.published if router.refused is None else router.refused
            full = _changed(state, router, sent._replace(refused=first))
            yield full._replace(refusals=state.refusals + 1)
        if router.number == 0 and not scenario.has("one channel"):
            yield after._replace(second_copies=(message,))


def _acknowledgements(state: State, router: Router, scenario: Scenario) -> Iterator[State]:
    for index, _ in enumerate(router.held):
        if (index and scenario.has("in order")) or index == router.refused:
            return
        if index >= router.published:
            if scenario.has("confirm"):
                return
            # Acknowledged on the way to the partition: it is lost where the router ends now.
            lost = router._replace(held=router.held[:index] + router.held[index + 1 :])
            yield _changed(state, router, lost)
            return
        done = router.held[:index] + router.held[index + 1 :]
        refused = None if router.refused is None else router.refused - 1
        acknowledged = router._replace(held=done, published=router.published - 1, refused=refused)
        yield _changed(state, router, acknowledged)


def _worker_steps(state: State, index: int, scenario: Scenario) -> Iterator[State | str]:
    partition = state.partitions[index]
    if state.worker_takeovers < scenario.worker_takeovers:
        epoch = partition.recorded if scenario.has("memory") else 0
        other = _partition(state, index, partition._replace(settled=0, epoch=epoch))
        other = other._replace(worker_takeovers=state.worker_takeovers + 1)
        if other.partitions != state.partitions:
            yield other
        if not scenario.has("lease") and partition.settled < len(partition.messages):
            message = partition.messages[partition.settled]
            if message.request and message.epoch >= partition.epoch:
                yield other._replace(stale_calls=((message.request, message.received_at),))
    if partition.settled:
        # The acknowledgements reach the broker.
        rest = partition._replace(messages=partition.messages[partition.settled :], settled=0)
        yield _partition(state, index, rest)
    if partition.settled < len(partition.messages):
        yield _settle(state, index, partition.messages[partition.settled], scenario)


def _settle(state: State, index: int, message: Message, scenario: Scenario) -> State | str:
    partition = state.partitions[index]
    partition = partition._replace(settled=partition.settled + 1)
    if message.epoch < partition.epoch and scenario.has("fence"):
        return _partition(state, index, partition)
    if message.request:
        newest = max(partition.newest_time, message.received_at)
        state = _partition(state, index, partition._replace(newest_time=newest))
        return _call(state, message.request, message.received_at)
    state = _partition(state, index, partition._replace(epoch=message.epoch, recorded=message.epoch))
    for router in state.routers:
        if router.epoch == message.epoch and index not in router.answers:
            floor = partition.newest_time if scenario.has("arrival times") else 0
            answered = router._replace(answers=router.answers | {index}, clock=max(router.clock, floor))
            return _changed(state, router, answered)
    return state


def _call(state: State, request: int, received_at: int) -> State | str:
    """Register. The result is a violation where this takes a finished registration back, or where a newer
    request does not have a later time than an older one that was registered."""
    if any(_is_finished(state, newer) for newer in range(request + 1, len(state.registered) + 1)):
        return "a step back"
    if any(received_at <= older for older in state.registered[: request - 1]):
        return "an older one has the later time"
    times = list(state.registered)
    times[request - 1] = max(times[request - 1], received_at)
    return state._replace(registered=tuple(times), latest=request)


def _is_finished(state: State, request: int) -> bool:
    """Whether no copy of it is left that would be registered, or registered again."""
    return (
        state.registered[request - 1] > 0
        and request not in state.ready
        and request not in state.routers[-1].held
        and not any(request == m.request for partition in state.partitions for m in partition.messages)
    )


def _changed(state: State, old: Router, new: Router | None) -> State:
    routers = [new if router is old else router for router in state.routers]
    return state._replace(routers=tuple(router for router in routers if router is not None))


def _partition(state: State, index: int, partition: Partition) -> State:
    partitions = list(state.partitions)
    partitions[index] = partition
    return state._replace(partitions=tuple(partitions))


def _put(state: State, index: int, message: Message) -> State:
    partition = state.partitions[index]
    return _partition(state, index, partition._replace(messages=(*partition.messages, message)))
