"""Events: what happens in the worker. Logs, metrics and the status listen; nothing else depends on events.

A listener must be quick. If one raises, the other listeners and the work go on. No argument holds a secret.
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
        """Make a call, traced. The argument of `call` is the headers to send."""
        ...

    def headers(self) -> dict[str, str]:
        """The trace context, as headers for a message."""
        ...


class Event:
    """How an event is logged; without a level it is not. `fields` name its parameters. One that `repeats` is
    logged once a minute while its fields stay the same. The event that it `ends` is logged again at its next
    occurrence. Calling it does nothing: it stands for "no listener"."""

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
    """Ignores every event. Override the events of interest.

    To add an event, add a line here. An event with a level is logged, with its text and its fields."""

    consumer_connected: Callable[[], None] = Event("info", "consumer connected", ends="broker_unreachable")
    subscribed: Callable[[str, int], None] = Event(
        "info", "subscribed (standby until the first delivery)", "queue", "prefetch"
    )
    # The first delivery of a subscription: this is the single active consumer.
    active: Callable[[], None] = Event("info", "active: this worker receives deliveries")
    # The connection, channel or consumer is lost; the broker requeues `count` unsettled deliveries.
    subscription_ended: Callable[[int, str], None] = Event("warning", "subscription ended", "count", "why")
    undeliverable: Callable[[str, int], None] = Event(
        "warning", "a message that RabbitMQ cannot deliver has reached its delivery limit", "queue", "count"
    )
    acknowledgements_unconfirmed: Callable[[], None] = Event(
        "warning", "the broker did not answer: the last acknowledged requests may be delivered again"
    )
    returned: Callable[[int, str], None] = Event("info", "deliveries requeued", "count", "why")
    broker_unreachable: Callable[[str], None] = Event("warning", "broker unreachable", "why", repeats=True)
    topology_wrong: Callable[[str], None] = Event("error", "topology wrong", "why", repeats=True)
    publisher_connected: Callable[[], None] = Event("info", "publisher connected", ends="publisher_lost")
    publisher_lost: Callable[[str], None] = Event("warning", "publisher not connected", "why", repeats=True)
    channel_closed: Callable[[str, str], None] = Event(
        "warning", "publishing channel closed", "queue", "why", repeats=True
    )
    # The publish is repeated.
    publish_turned_down: Callable[[str, str], None] = Event(
        "error", "a queue of the worker rejects publishes", "queue", "why", repeats=True
    )
    reply_refused: Callable[[str], None] = Event("debug", "a reply_to was not followed", "why")
    # A registration call ended with an HTTP status or None, after so many seconds.
    call_ended: Callable[[int | None, float], None] = Event()
    # For an account; None is the default account.
    token_fetched: Callable[[str | None], None] = Event(
        "info", "token fetched", "account", ends="token_refused"
    )
    # `why` quotes the token endpoint, without the credentials.
    token_refused: Callable[[str | None, TokenResult, str], None] = Event(
        "warning", "no token", "account", "result", "why", repeats=True
    )
    gate_closed: Callable[[str], None] = Event("warning", "paused: Marketing Cloud is unavailable", "why")
    # The deliveries were requeued during an outage that has lasted `seconds`. Another worker may receive
    # them, so this worker no longer knows whether the outage continues.
    gate_reset: Callable[[float], None] = Event()
    gate_opening: Callable[[], None] = Event("info", "Marketing Cloud answers again: concurrency increases")
    # A request failed while the gate was opening.
    gate_closed_again: Callable[[str], None] = Event(
        "info", "still paused: Marketing Cloud failed again", "why"
    )
    gate_opened: Callable[[float], None] = Event("info", "resumed: Marketing Cloud is available", "seconds")
    pace_began: Callable[[float, str], None] = Event("warning", "throttled: calls are spaced", "pace", "why")
    pace_ended: Callable[[], None] = Event("info", "no longer throttled")
    paused: Callable[[str, str], None] = Event(
        "warning", "paused by order: no calls until an operator resumes", "by", "why"
    )
    resumed: Callable[[], None] = Event("info", "resumed by order")
    control_unreadable: Callable[[str], None] = Event(
        "warning", "orders cannot be read: pause and resume do not reach this worker", "why", repeats=True
    )
    # A request was settled, so many seconds after its delivery arrived.
    settled: Callable[[Settlement, float], None] = Event()
    # `seconds` is how long the barrier took.
    epoch_began: Callable[[int, int, float], None] = Event(
        "info", "router: routing requests into partitions", "epoch", "partitions", "seconds"
    )
    # This worker stops routing. If it is still the router, it begins a new epoch.
    epoch_ended: Callable[[str], None] = Event("warning", "router: the epoch has ended", "why")
    # A partition has confirmed a request.
    routed: Callable[[int], None] = Event()
    partition_taken: Callable[[int], None] = Event("info", "partition taken", "partition")
    partition_left: Callable[[int, str], None] = Event("info", "partition left", "partition", "why")
    late_request_ignored: Callable[[int], None] = Event(
        "warning", "ignored a request of an earlier router: the present router has it too", "partition"
    )
    partition_log_unreadable: Callable[[str], None] = Event(
        "warning", "partition log unreadable: no partition can be taken over", "why", repeats=True
    )
    record_skipped: Callable[[str, int], None] = Event(
        "warning", "skipped an unreadable record of a stream", "stream", "offset", repeats=True
    )
    journal_unreadable: Callable[[str], None] = Event(
        "warning", "the journal cannot be read", "why", repeats=True
    )
    # The header is unreadable; the request is processed without it.
    as_of_ignored: Callable[[str, str], None] = Event("warning", "x-ott-as-of ignored", "request_id", "why")
    processing_failed: Callable[[str, str], None] = Event(
        "error", "internal error; request requeued", "request_id", "error"
    )
    # A file that was replaced holds no valid value; the last valid value stays.
    setting_ignored: Callable[[str, str], None] = Event(
        "warning", "a setting's file cannot be used", "variable", "why", repeats=True
    )
    # Calls wait. This does not count as an outage of Marketing Cloud.
    descriptors_short: Callable[[str], None] = Event(
        "error",
        "no file descriptor is free for a call: raise this process's limit of open files",
        "why",
        repeats=True,
    )
    draining: Callable[[], None] = Event("info", "draining")

    def listen(self, **handlers: Callable[..., object]) -> None:
        """Call each handler for the event that it is named after."""
        for name, handler in handlers.items():
            getattr(EventListener, name)  # raises if there is no such event
            setattr(self, name, handler)


EVENTS = {name: event for name, event in vars(EventListener).items() if isinstance(event, Event)}


class EventListeners(EventListener):
    """Passes each event on to the listeners that override it."""

    def __init__(self, *listeners: EventListener) -> None:
        for name in EVENTS:
            concerned = [listener for listener in listeners if _overrides(listener, name)]
            setattr(self, name, _fan_out([getattr(listener, name) for listener in concerned]))


def _overrides(listener: EventListener, name: str) -> bool:
    method = getattr(listener, name)
    return getattr(method, "__func__", method) is not getattr(EventListener, name)


def _fan_out(methods: list[Callable[..., None]]) -> Callable[..., None]:
    def call_all(*args: object) -> None:
        for method in methods:
            try:
                method(*args)
            except Exception as error:  # a defect: the event loop's handler logs it
                context = {"message": "a listener failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    return call_all
