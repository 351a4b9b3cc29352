"""Settling: the reply, the dead letter and the journal's record are confirmed, and then the request is
acknowledged (contract §4, §5)."""

import asyncio
import time
from collections.abc import Callable

from worker.amqp.confirm_channel import DIRECT_REPLY_TO, Message
from worker.amqp.consumer import COUNTS
from worker.amqp.properties import build
from worker.amqp.publisher import Publisher
from worker.broker.encryption import Seals
from worker.broker.journal import Journal
from worker.broker.topology import Topology
from worker.contract import reply
from worker.contract.words import (
    NOT_ALLOWED,
    RECEIVED_AT_HEADER,
    REPLY_REFUSED_HEADER,
    REPLY_TYPE,
    REQUEST_ID_HEADER,
    UNROUTABLE,
)
from worker.errors import PublishRefused, QueueFull, Unroutable
from worker.events import EventListener, Tracing
from worker.pipeline.request import Outcome, Request, text_of

_REPLY = build(content_type="application/json", type=REPLY_TYPE)
GENERATED = "amq.gen-"
MESSAGE_ID_LENGTH = 255  # bytes; an id that came in a header may be longer
ERROR_LENGTH = 500  # characters of `x-ott-error`

# CC and BCC would route copies elsewhere; the counts are the requests queue's own.
NOT_COPIED = frozenset({"CC", "BCC", *COUNTS})


class Settler:
    """Settles requests; shared by all lanes."""

    def __init__(
        self,
        publisher: Publisher,
        journal: Journal | None,
        topology: Topology,
        seals: Seals,
        events: EventListener,
        tracing: Tracing | None = None,
    ) -> None:
        self._publisher = publisher
        self._journal = journal
        self._topology = topology
        self._seals = seals
        self._events = events
        self._trace = None if tracing is None else tracing.headers

    async def settle(self, request: Request, outcome: Outcome, ack: Callable[[], None]) -> None:
        """Publish what the outcome asks for, wait until the broker has confirmed all of it, then `ack`."""
        completed_at = reply.timestamp(time.time())
        letter = None if outcome.reason is None else self._dead_letter(request, outcome, completed_at)
        promises = [self._reply(request, outcome, completed_at)]
        if letter is not None:
            promises.append(self._publisher.send(letter))
        try:
            if self._journal is not None:
                await self._journal.append(_record(request, outcome, completed_at))
            await self._follow_reply(promises[0], request, outcome, completed_at)
            for promise in promises[1:]:
                await promise
        except asyncio.CancelledError:
            for promise in promises:
                promise.cancel()
            raise
        ack()

    def _reply(self, request: Request, outcome: Outcome, completed_at: str) -> "asyncio.Future[None]":
        reply_to = request.delivery.properties.text("reply_to")
        body = _body(request, outcome, completed_at)
        if reply_to and self._may_follow(reply_to):
            headers = self._trace() if self._trace else None
            return self._publisher.send(
                _reply_message(request, reply_to, body, headers=headers, external=True)
            )
        return self._publisher.send(self._own_reply(request, body, NOT_ALLOWED if reply_to else None))

    async def _follow_reply(
        self, sent: "asyncio.Future[None]", request: Request, outcome: Outcome, completed_at: str
    ) -> None:
        try:
            await sent
        except (Unroutable, PublishRefused) as error:
            refused = UNROUTABLE if isinstance(error, Unroutable | QueueFull) else NOT_ALLOWED
            body = _body(request, outcome, completed_at)
            await self._publisher.send(self._own_reply(request, body, refused))

    def _own_reply(self, request: Request, body: bytes, refused: str | None) -> Message:
        if refused:
            self._events.reply_refused(refused)
        headers = {REPLY_REFUSED_HEADER: refused} if refused else {}
        if self._trace:
            headers |= self._trace()
        return _reply_message(request, self._topology.replies, body, headers=headers)

    def _may_follow(self, reply_to: str) -> bool:
        """Contract §4: not one of our own queues, and of RabbitMQ's only those made for replies."""
        if reply_to.startswith("amq."):
            return reply_to.startswith((GENERATED, DIRECT_REPLY_TO))
        return reply_to not in self._topology.own_queues

    def _dead_letter(self, request: Request, outcome: Outcome, dead_at: str) -> Message:
        properties = request.delivery.properties.changed(
            {
                "x-ott-reason": outcome.reason or "",
                "x-ott-error": f"{outcome.errorcode} {outcome.message}"[:ERROR_LENGTH],
                "x-ott-attempts": request.attempts,
                RECEIVED_AT_HEADER: text_of(request.received_at),
                "x-ott-dead-at": dead_at,
                REQUEST_ID_HEADER: request.id,
            },
            without=NOT_COPIED,
            user_id=None,
            expiration=None,
        ).persistent()
        if (
            not properties.text("message_id")
            and request.id.isascii()
            and len(request.id) <= MESSAGE_ID_LENGTH
        ):
            properties = properties.with_text("message_id", request.id)
        return Message(self._topology.dead, "", *self._seals.seal(properties, request.delivery.body))


def _reply_message(
    request: Request,
    queue: str,
    body: bytes,
    *,
    headers: dict[str, str] | None = None,
    external: bool = False,
) -> Message:
    correlation_id = request.delivery.properties.text("correlation_id") or request.id
    properties = _REPLY.with_text("correlation_id", correlation_id)
    if headers:
        properties = properties.changed(headers)
    return Message("", queue, properties, body, external)


def _body(request: Request, outcome: Outcome, completed_at: str) -> bytes:
    received_at = text_of(request.received_at)
    if outcome.status == "registered":
        return reply.registered(
            request_id=request.id,
            platform=request.platform or "",
            resource_id=request.resource_id or "",
            http_status=outcome.http_status or 0,
            attempts=request.attempts,
            received_at=received_at,
            completed_at=completed_at,
        )
    return reply.not_registered(
        outcome.status,
        outcome.message,
        outcome.errorcode,
        outcome.documentation,
        outcome.errors,
        request_id=request.id,
        platform=request.platform,
        resource_id=request.resource_id,
        http_status=outcome.http_status,
        attempts=request.attempts,
        received_at=received_at,
        completed_at=completed_at,
        superseded_by=outcome.superseded_by,
    )


def _record(request: Request, outcome: Outcome, completed_at: str) -> dict[str, str | int | None]:
    record: dict[str, str | int | None] = {
        "id": request.id,
        "status": outcome.status,
        "reason": outcome.reason,
        "accountId": request.account,
        "ottPlatformName": request.platform,
        "resourceId": request.resource_id,
        "httpStatus": outcome.http_status,
        "errorcode": None if outcome.status == "registered" else outcome.errorcode,
        "attempts": request.attempts,
        "receivedAt": text_of(request.received_at),
        "completedAt": completed_at,
        "supersededBy": outcome.superseded_by,
    }
    if request.is_replay:
        record["replay"] = True
    return record
