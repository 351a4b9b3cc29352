"""Events: what happens in the worker. Logs, metrics and traces listen; nothing else depends on events.

A listener must be quick and must not raise. No argument ever holds a secret.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from worker.contract.settlement import Settlement

TokenResult = Literal["ok", "refused", "failed"]


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


class EventListener:
    """Hears every event and does nothing. Override the events of interest."""

    def consumer_connected(self) -> None:
        """The consuming connection is open."""

    def subscribed(self, prefetch: int) -> None:
        """The consumer is registered; until the first delivery it may be standing by."""

    def active(self) -> None:
        """The first delivery of a subscription: this is the single active consumer."""

    def subscription_ended(self, why: str) -> None:
        """The connection, channel or consumer is lost; the broker requeues unsettled deliveries."""

    def stale_deliveries(self, count: int) -> None:
        """Deliveries were in flight on a connection that is lost; the broker redelivers them."""

    def acknowledgements_unheard(self) -> None:
        """The broker did not answer in time at the end of a subscription: the last acknowledged requests may
        be delivered again."""

    def returned(self, count: int, why: str) -> None:
        """Deliveries go back to the queue, in order."""

    def broker_unreachable(self, why: str) -> None:
        """The consuming connection could not be opened."""

    def topology_wrong(self, why: str) -> None:
        """A broker object is missing or differs."""

    def publisher_connected(self) -> None:
        """The publishing connection is open."""

    def publisher_lost(self, why: str) -> None:
        """The publishing connection is lost."""

    def channel_closed(self, name: str, why: str) -> None:
        """The broker closed a publishing channel."""

    def publish_turned_down(self, queue: str, why: str) -> None:
        """One of our own queues did not take a message; it is tried again."""

    def reply_refused(self, why: str) -> None:
        """A `reply_to` was not followed: `unroutable` or `not-allowed`."""

    def call_ended(self, status: int | None, seconds: float) -> None:
        """A registration call ended with an HTTP status, or with none."""

    def token_fetched(self, result: TokenResult, why: str) -> None:
        """A token request ended: `ok`, `refused` (the credentials or the account) or `failed` (no answer);
        `why` quotes the endpoint, without the credentials."""

    def gate_closed(self, why: str) -> None:
        """An outage of Marketing Cloud: the worker pauses."""

    def gate_left(self, seconds: float) -> None:
        """The deliveries went back during a pause, `seconds` long so far. Another worker may get them, and
        this one does not know whether the outage goes on."""

    def gate_opening(self) -> None:
        """Marketing Cloud answers again: requests go on, few at first."""

    def gate_closed_again(self, why: str) -> None:
        """The outage goes on: a request failed while the gate was opening."""

    def gate_opened(self, seconds: float) -> None:
        """The outage is over, after `seconds`."""

    def paused(self, by: str, why: str) -> None:
        """An operator ordered a pause: no calls, and the deliveries go back."""

    def resumed(self) -> None:
        """The pause that was ordered is over."""

    def control_unreadable(self, why: str) -> None:
        """The orders could not be read; the last known ones stay in force."""

    def settled(self, settlement: Settlement, seconds: float) -> None:
        """A request has left the requests queue, `seconds` after its delivery arrived."""

    def epoch_began(self, epoch: int, partitions: int, seconds: float) -> None:
        """This worker routes requests into so many partitions; the barrier took so many seconds."""

    def epoch_ended(self, why: str) -> None:
        """This worker stops routing, and begins anew if it is still the router."""

    def routed(self, partition: int) -> None:
        """A partition has taken a request."""

    def partition_taken(self, partition: int) -> None:
        """A delivery came: this worker is the partition's active consumer."""

    def partition_left(self, partition: int, why: str) -> None:
        """This worker's subscription to a partition has ended."""

    def late_request_ignored(self, partition: int) -> None:
        """A request of a router that had lost its role was ignored; its successor gets the same request."""

    def partition_log_unreadable(self, why: str) -> None:
        """The stream of epochs and barriers cannot be read; no partition is taken over until it can."""

    def journal_unreadable(self, why: str) -> None:
        """The journal could not be read. Only replays wait for it."""

    def as_of_ignored(self, request_id: str, why: str) -> None:
        """A request's `x-ott-as-of` could not be read; the request goes on without."""

    def processing_failed(self, request_id: str, error: str) -> None:
        """A defect of ours: the request goes back to the queue."""

    def draining(self) -> None:
        """The worker was told to stop."""


class EventListeners(EventListener):
    """Passes each event on to the listeners that override it."""

    def __init__(self, *listeners: EventListener) -> None:
        for name in (n for n in vars(EventListener) if not n.startswith("_")):
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
