"""Sends requests to the worker. Each is confirmed, and those of one resource keep their order (contract
§2)."""

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Final

from worker.amqp.causes import object_errors
from worker.amqp.connection import connect
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import Publisher
from worker.amqp.queue import FORBIDDEN, MISSING, look
from worker.backoff import REFUSED
from worker.broker.topology import Topology
from worker.contract.words import ACCOUNT_HEADER, AS_OF_HEADER, REQUEST_KEY
from worker.errors import OutcomeUnknown, Problem, PublishRefused, QueueFull, TopologyError, Unroutable
from worker.settings import Settings

MISSING_FOR: Final = 30.0  # seconds that a missing requests queue may take to come back


@dataclass(slots=True, eq=False)
class _Sending:
    request_id: str
    message: Message
    lane: Hashable
    future: "asyncio.Future[None]"
    sent: "asyncio.Future[None] | None" = None
    refusals: int = 0
    unroutable_since: float | None = None


class RequestSender:
    """Publishes requests through a publisher that somebody else runs.

    The next request of a lane is published when the one before it is confirmed, so that none is overtaken by
    one that the broker turned down for a while. A full queue is waited for.
    """

    def __init__(self, publisher: Publisher, prefix: str) -> None:
        self._publisher = publisher
        self._entry = Topology(prefix).entry
        self._prefix = prefix
        self._lanes: dict[Hashable, deque[_Sending]] = {}

    def send(
        self,
        body: bytes,
        *,
        request_id: str,
        reply_to: str | None = None,
        account_id: str | None = None,
        as_of: str | None = None,
        lane: Hashable = None,
    ) -> "asyncio.Future[None]":
        """Publish one request. The future is done when the broker has it, or raises PublishRefused, or
        TopologyError if no queue takes requests. Cancel the future to give the request up; one that is
        already on the wire arrives all the same."""
        headers = {ACCOUNT_HEADER: account_id or "", AS_OF_HEADER: as_of or ""}
        properties = build(
            content_type="application/json",
            message_id=request_id,
            correlation_id=request_id,
            reply_to=reply_to,
            headers={name: value for name, value in headers.items() if value},
        )
        message = Message(self._entry, REQUEST_KEY, properties, body, external=True)
        sending = _Sending(request_id, message, lane, asyncio.get_running_loop().create_future())
        sending.future.add_done_callback(partial(_give_up, sending))
        if lane is not None:
            waiting = self._lanes.setdefault(lane, deque())
            waiting.append(sending)
            if len(waiting) > 1:
                return sending.future
        self._write(sending)
        return sending.future

    def _write(self, sending: _Sending) -> None:
        if sending.future.done():
            self._settled(sending)
        else:
            sending.sent = self._publisher.send(sending.message)
            sending.sent.add_done_callback(partial(self._answered, sending))

    def _answered(self, sending: _Sending, sent: "asyncio.Future[None]") -> None:
        error = None if sent.cancelled() else sent.exception()
        future = sending.future
        if future.done():
            pass
        elif sent.cancelled():
            future.set_exception(OutcomeUnknown(sending.request_id, "The connection was closed"))
        elif error is None:
            future.set_result(None)
        elif self._may_pass(sending, error):
            wait = REFUSED.draw(sending.refusals + 1)
            sending.refusals = min(sending.refusals + 1, 10)
            asyncio.get_running_loop().call_later(wait, self._write, sending)
            return
        else:
            future.set_exception(self._explain(error))
        self._settled(sending)

    def _settled(self, sending: _Sending) -> None:
        """Let the next one of the lane go."""
        waiting = self._lanes.get(sending.lane) if sending.lane is not None else None
        if not waiting:
            return
        waiting.popleft()
        if waiting:
            # Not called directly: a long row of cancelled requests would recurse too deeply.
            asyncio.get_running_loop().call_soon(self._write, waiting[0])
        else:
            del self._lanes[sending.lane]

    def _may_pass(self, sending: _Sending, error: BaseException) -> bool:
        if not isinstance(error, Unroutable):
            return isinstance(error, QueueFull)
        now = asyncio.get_running_loop().time()
        if sending.unroutable_since is None:
            sending.unroutable_since = now
        return now - sending.unroutable_since < MISSING_FOR

    def _explain(self, error: BaseException) -> BaseException:
        if isinstance(error, Unroutable):
            return TopologyError(
                f"No queue takes requests at {self._entry}: start the worker, which declares it"
            )
        if isinstance(error, PublishRefused):
            return PublishRefused(
                f"The broker does not take requests at the exchange {self._entry}: "
                "this user may not write to it, or the message is larger than the broker takes"
            )
        return error


def _give_up(sending: _Sending, future: "asyncio.Future[None]") -> None:
    if future.cancelled() and sending.sent is not None:
        sending.sent.cancel()


async def look_for_workers(settings: Settings) -> int:
    """How many consumers the requests queue has; changes nothing. Raises TopologyError where the queue or
    the exchange is missing, or BrokerUnreachable."""
    names = Topology(settings.prefix)
    connection = await connect(settings, "look")
    try:
        async with connection.asked(f"The exchange {names.entry} could not be looked at") as channel:
            with object_errors(f"exchange {names.entry}", MISSING, FORBIDDEN):
                await channel.declare_exchange(names.entry, "topic", durable=True, passive=True)
        return (await look(connection, names.requests)).consumers
    except TopologyError as error:
        if error.problem is not Problem.MISSING:
            raise
        raise TopologyError(f"Nothing takes requests at {names.entry}: {MISSING}") from None
    finally:
        await connection.close()
