"""Events: what happens in the worker. Logs, metrics and traces listen; nothing else depends on events.

A listener must be quick. One that raises holds up neither the others nor the work. No argument ever holds a
secret.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from worker.contract.settlement import Settlement

Level = Literal["debug", "info", "warning", "error"]
# `refused` for another cause than wrong credentials; `failed`: no answer.
TokenResult = Literal["invalid_client", "refused", "failed"]


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


class Event:
    """How an event is logged, if it is. `fields` name its parameters. One that `repeats` is logged once a
    minute while nothing of it changes; the event that it `ends` is logged anew when it comes again. To call
    it does nothing: it has no listener."""

    def __init__(
        self, level: Level | None = None, text: str = "", *fields: str, repeats: bool = False, ends: str = ""
    ) -> None:
        self.level = level
        self.text = text
        self.fields = fields
        self.repeats = repeats
        self.ends = ends

    def __call__(self, *values: object) -> None:
        pass


class EventListener:
    """Hears every event and does nothing. Override the events of interest.

    To add an event: a line here. One that has a level is logged, with its text and its fields."""

    consumer_connected: Callable[[], None] = Event("info", "consumer connected", ends="broker_unreachable")
    subscribed: Callable[[str, int], None] = Event(
        "info", "subscribed (standby until the first delivery)", "queue", "prefetch"
    )
    # The first delivery of a subscription: this is the single active consumer.
    active: Callable[[], None] = Event("info", "active: deliveries come to this worker")
    # The connection, channel or consumer is lost; the broker requeues so many unsettled deliveries.
    subscription_ended: Callable[[int, str], None] = Event("warning", "subscription ended", "count", "why")
    undeliverable: Callable[[str, int], None] = Event(
        "warning", "a message that RabbitMQ cannot deliver has used up its deliveries", "queue", "count"
    )
    acknowledgements_unheard: Callable[[], None] = Event(
        "warning", "the broker did not answer: what was acknowledged last may be delivered again"
    )
    returned: Callable[[int, str], None] = Event("info", "deliveries go back to the queue", "count", "why")
    broker_unreachable: Callable[[str], None] = Event("warning", "broker unreachable", "why", repeats=True)
    topology_wrong: Callable[[str], None] = Event("error", "topology wrong", "why", repeats=True)
    publisher_connected: Callable[[], None] = Event("info", "publisher connected", ends="publisher_lost")
    publisher_lost: Callable[[str], None] = Event("warning", "publisher not connected", "why", repeats=True)
    channel_closed: Callable[[str, str], None] = Event(
        "warning", "publishing channel closed", "queue", "why", repeats=True
    )
    # One of our own queues did not take a message; it is tried again.
    publish_turned_down: Callable[[str, str], None] = Event(
        "error", "a queue of the worker rejects publishes", "queue", "why", repeats=True
    )
    reply_refused: Callable[[str], None] = Event("debug", "a reply_to was not followed", "why")
    # A registration call ended with an HTTP status, or with none.
    call_ended: Callable[[int | None, float], None] = Event()
    # Marketing Cloud gave a token, for an account or the default one.
    token_fetched: Callable[[str | None], None] = Event(
        "info", "token fetched", "account", ends="token_refused"
    )
    # A token request brought none; `why` quotes the endpoint, without the credentials.
    token_refused: Callable[[str | None, TokenResult, str], None] = Event(
        "warning", "no token", "account", "result", "why", repeats=True
    )
    gate_closed: Callable[[str], None] = Event("warning", "paused: Marketing Cloud takes no calls", "why")
    # The deliveries went back during a pause, `seconds` long so far. Another worker may get them, and this
    # one does not know whether the outage goes on.
    gate_left: Callable[[float], None] = Event()
    gate_opening: Callable[[], None] = Event("info", "Marketing Cloud answers again: calls grow step by step")
    # The outage goes on: a request failed while the gate was opening.
    gate_closed_again: Callable[[str], None] = Event(
        "info", "still paused: Marketing Cloud failed again", "why"
    )
    gate_opened: Callable[[float], None] = Event("info", "resumed: Marketing Cloud is available", "seconds")
    pace_began: Callable[[float, str], None] = Event("warning", "throttled: calls are spaced", "pace", "why")
    pace_ended: Callable[[], None] = Event("info", "no longer throttled: calls go freely")
    paused: Callable[[str, str], None] = Event(
        "warning", "paused by order: no calls until somebody resumes", "by", "why"
    )
    resumed: Callable[[], None] = Event("info", "resumed by order")
    control_unreadable: Callable[[str], None] = Event(
        "warning", "orders cannot be read: pause and resume do not reach this worker", "why", repeats=True
    )
    # A request has left the requests queue, `seconds` after its delivery arrived.
    settled: Callable[[Settlement, float], None] = Event()
    # This worker routes requests into so many partitions; the barrier took so many seconds.
    epoch_began: Callable[[int, int, float], None] = Event(
        "info", "router: requests go into partitions", "epoch", "partitions", "seconds"
    )
    # This worker stops routing, and begins anew if it is still the router.
    epoch_ended: Callable[[str], None] = Event("warning", "router: begins anew", "why")
    # A partition has taken a request.
    routed: Callable[[int], None] = Event()
    partition_taken: Callable[[int], None] = Event("info", "partition taken", "partition")
    partition_left: Callable[[int, str], None] = Event("info", "partition left", "partition", "why")
    late_request_ignored: Callable[[int], None] = Event(
        "warning", "a request of an earlier router ignored: the present router has it too", "partition"
    )
    partition_log_unreadable: Callable[[str], None] = Event(
        "warning", "partition log unreadable: no partition can be taken over", "why", repeats=True
    )
    record_skipped: Callable[[str, int], None] = Event(
        "warning", "a record in a stream cannot be read: skipped", "stream", "offset", repeats=True
    )
    journal_unreadable: Callable[[str], None] = Event(
        "warning", "the journal cannot be read", "why", repeats=True
    )
    # A request's `x-ott-as-of` could not be read; the request goes on without.
    as_of_ignored: Callable[[str, str], None] = Event("warning", "x-ott-as-of ignored", "request_id", "why")
    processing_failed: Callable[[str, str], None] = Event(
        "error", "internal error; request requeued", "request_id", "error"
    )
    # A file that was replaced holds nothing that can be used; the last good value stays.
    setting_ignored: Callable[[str, str], None] = Event(
        "warning", "a setting's file cannot be used", "variable", "why", repeats=True
    )
    # Calls wait. It is this worker's own trouble, and no outage.
    descriptors_short: Callable[[str], None] = Event(
        "error",
        "no descriptor is left for a call: raise this process's limit of open files",
        "why",
        repeats=True,
    )
    draining: Callable[[], None] = Event("info", "draining")

    def hear(self, **handlers: Callable[..., object]) -> None:
        """Call these for the events that they are named after."""
        for name, handler in handlers.items():
            getattr(EventListener, name)  # there is such an event
            setattr(self, name, handler)


EVENTS = {name: event for name, event in vars(EventListener).items() if isinstance(event, Event)}


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
    def tell(*args: object) -> None:
        for method in methods:
            try:
                method(*args)
            except Exception as error:  # a defect: the event loop's handler logs it
                context = {"message": "a listener failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    return tell
