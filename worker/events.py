"""Events: what happens in the worker. Logs, metrics and traces listen; nothing else depends on events.

A listener must be quick and must not raise. No argument ever holds a secret.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from worker.contract.settlement import Settlement

Level = Literal["debug", "info", "warning", "error"]
# `refused` for another cause than wrong credentials; `failed`: no answer.
TokenResult = Literal["invalid_client", "refused", "failed"]


class TracedRequest(Protocol):
    """The data of a request that a trace may use."""

    @property
    def id(self) -> str: ...
    @property
    def is_replay(self) -> bool: ...

    def header(self, name: str) -> object:
        """A header of its message, or None."""


Process = Callable[[Any], Awaitable[None]]
Called = tuple[int, Mapping[str, str], bytes]  # status, headers, body
Call = Callable[[Mapping[str, str]], Awaitable[Called]]


class Tracing(Protocol):
    """Carries a trace from a request to its calls and its reply. Only used with OTT_TRACES."""

    async def process(self, process: Process, request: Any) -> None:
        """Process a request, traced."""

    async def call(self, call: Call, url: str) -> Called:
        """Make a call, traced. `call` takes the headers to send."""
        ...

    def headers(self) -> dict[str, str]:
        """The trace context, as headers for a message."""
        ...


class Line(NamedTuple):
    """How an event is logged. `fields` are the event's parameters. One that `repeats` is logged once a minute
    while nothing of it changes; the event that it `ends` is logged anew when it comes again."""

    level: Level
    text: str
    fields: tuple[str, ...]
    repeats: bool
    ends: str


F = TypeVar("F", bound=Callable[..., None])

LINES: dict[str, Line] = {}


def _logged(level: Level, text: str, *, repeats: bool = False, ends: str = "") -> Callable[[F], F]:
    def note(event: F) -> F:
        fields = tuple(inspect.signature(event).parameters)[1:]
        LINES[event.__name__] = Line(level, text, fields, repeats, ends)
        return event

    return note


class EventListener:
    """Hears every event and does nothing. Override the events of interest.

    To add an event: a method here. `_logged` gives it a line in the log."""

    def hear(self, **handlers: Callable[..., object]) -> None:
        """Call these for the events that they are named after."""
        for name, handler in handlers.items():
            getattr(EventListener, name)  # there is such an event
            setattr(self, name, handler)

    @_logged("info", "consumer connected", ends="broker_unreachable")
    def consumer_connected(self) -> None: ...

    @_logged("info", "subscribed (standby until the first delivery)")
    def subscribed(self, prefetch: int) -> None: ...

    @_logged("info", "active: deliveries come to this worker")
    def active(self) -> None:
        """The first delivery of a subscription: this is the single active consumer."""

    @_logged("warning", "subscription ended")
    def subscription_ended(self, why: str) -> None:
        """The connection, channel or consumer is lost; the broker requeues unsettled deliveries."""

    @_logged("info", "RabbitMQ redelivers what was in flight on the lost connection")
    def stale_deliveries(self, count: int) -> None: ...

    @_logged("warning", "a message that RabbitMQ cannot deliver has used up its deliveries")
    def undeliverable(self, queue: str, count: int) -> None:
        """On a connection of its own, so that nobody else was held up."""

    @_logged("warning", "the broker did not answer: what was acknowledged last may be delivered again")
    def acknowledgements_unheard(self) -> None: ...

    @_logged("info", "deliveries go back to the queue")
    def returned(self, count: int, why: str) -> None: ...

    @_logged("warning", "broker unreachable", repeats=True)
    def broker_unreachable(self, why: str) -> None: ...

    @_logged("error", "topology wrong", repeats=True)
    def topology_wrong(self, why: str) -> None: ...

    @_logged("info", "publisher connected", ends="publisher_lost")
    def publisher_connected(self) -> None: ...

    @_logged("warning", "publisher not connected", repeats=True)
    def publisher_lost(self, why: str) -> None: ...

    @_logged("warning", "publishing channel closed", repeats=True)
    def channel_closed(self, queue: str, why: str) -> None: ...

    @_logged("error", "a queue of the worker rejects publishes", repeats=True)
    def publish_turned_down(self, queue: str, why: str) -> None:
        """One of our own queues did not take a message; it is tried again."""

    @_logged("debug", "a reply_to was not followed")
    def reply_refused(self, why: str) -> None: ...

    def call_ended(self, status: int | None, seconds: float) -> None:
        """A registration call ended with an HTTP status, or with none."""

    @_logged("info", "token fetched", ends="token_refused")
    def token_fetched(self, account: str | None) -> None:
        """Marketing Cloud gave a token, for an account or the default one."""

    @_logged("warning", "no token", repeats=True)
    def token_refused(self, account: str | None, result: TokenResult, why: str) -> None:
        """A token request brought none; `why` quotes the endpoint, without the credentials."""

    @_logged("warning", "paused: Marketing Cloud takes no calls")
    def gate_closed(self, why: str) -> None: ...

    def gate_left(self, seconds: float) -> None:
        """The deliveries went back during a pause, `seconds` long so far. Another worker may get them, and
        this one does not know whether the outage goes on."""

    @_logged("info", "Marketing Cloud answers again: calls grow step by step")
    def gate_opening(self) -> None:
        """Marketing Cloud answers again: requests go on, few at first."""

    @_logged("info", "still paused: Marketing Cloud failed again")
    def gate_closed_again(self, why: str) -> None:
        """The outage goes on: a request failed while the gate was opening."""

    @_logged("info", "resumed: Marketing Cloud is available")
    def gate_opened(self, seconds: float) -> None: ...

    @_logged("warning", "throttled: calls are spaced")
    def pace_began(self, pace: float, why: str) -> None: ...

    @_logged("info", "no longer throttled: calls go freely")
    def pace_ended(self) -> None: ...

    @_logged("warning", "paused by order: no calls until somebody resumes")
    def paused(self, by: str, why: str) -> None: ...

    @_logged("info", "resumed by order")
    def resumed(self) -> None: ...

    @_logged("warning", "orders cannot be read: pause and resume do not reach this worker", repeats=True)
    def control_unreadable(self, why: str) -> None: ...

    def settled(self, settlement: Settlement, seconds: float) -> None:
        """A request has left the requests queue, `seconds` after its delivery arrived."""

    @_logged("info", "router: requests go into partitions")
    def epoch_began(self, epoch: int, partitions: int, seconds: float) -> None:
        """This worker routes requests into so many partitions; the barrier took so many seconds."""

    @_logged("warning", "router: begins anew")
    def epoch_ended(self, why: str) -> None:
        """This worker stops routing, and begins anew if it is still the router."""

    def routed(self, partition: int) -> None:
        """A partition has taken a request."""

    @_logged("info", "partition taken")
    def partition_taken(self, partition: int) -> None: ...

    @_logged("info", "partition left")
    def partition_left(self, partition: int, why: str) -> None: ...

    @_logged("warning", "a request of an earlier router ignored: the present router has it too")
    def late_request_ignored(self, partition: int) -> None: ...

    @_logged("warning", "partition log unreadable: no partition can be taken over", repeats=True)
    def partition_log_unreadable(self, why: str) -> None: ...

    @_logged("warning", "a record in a stream cannot be read: skipped", repeats=True)
    def record_skipped(self, stream: str, offset: int) -> None: ...

    @_logged("warning", "the journal cannot be read", repeats=True)
    def journal_unreadable(self, why: str) -> None: ...

    @_logged("warning", "x-ott-as-of ignored")
    def as_of_ignored(self, request_id: str, why: str) -> None:
        """A request's `x-ott-as-of` could not be read; the request goes on without."""

    @_logged("error", "internal error; request requeued")
    def processing_failed(self, request_id: str, error: str) -> None: ...

    @_logged("warning", "a setting's file cannot be used", repeats=True)
    def setting_ignored(self, variable: str, why: str) -> None:
        """A file that was replaced holds nothing that can be used; the last good value stays."""

    @_logged(
        "error", "no descriptor is left for a call: raise this process's limit of open files", repeats=True
    )
    def descriptors_short(self, why: str) -> None:
        """Calls wait. It is this worker's own trouble, and no outage."""

    @_logged("info", "draining")
    def draining(self) -> None: ...


EVENTS = frozenset(n for n in vars(EventListener) if not n.startswith("_")) - {"hear"}


class EventListeners(EventListener):
    """Passes each event on to the listeners that override it."""

    def __init__(self, *listeners: EventListener) -> None:
        for name in EVENTS:
            hearing = [listener for listener in listeners if _hears(listener, name)]
            setattr(self, name, _fan_out([getattr(listener, name) for listener in hearing]))


def _hears(listener: EventListener, name: str) -> bool:
    method = getattr(listener, name)
    return getattr(method, "__func__", method) is not getattr(EventListener, name)


def _fan_out(methods: list[Callable[..., None]]) -> Callable[..., None]:
    if len(methods) == 1:
        return methods[0]

    def tell(*args: object) -> None:
        for method in methods:
            method(*args)

    return tell
