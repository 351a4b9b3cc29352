"""Settling: publish the reply, the dead letter and the journal record (contract §4, §5). Only when the broker
has confirmed them may the request be acknowledged."""

import asyncio
from dataclasses import dataclass

from worker.amqp.consumer import COUNTS
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import DIRECT_REPLY_TO, Publisher
from worker.broker.encryption import Encryptor
from worker.broker.journal import Journal
from worker.broker.request_message import operator_headers
from worker.broker.topology import Topology
from worker.contract.reply import reply_body
from worker.contract.settlement import Settlement, dead_letter_headers, journal_record
from worker.contract.timestamps import now
from worker.contract.words import (
    NOT_ALLOWED,
    REDUCED_HEADER,
    REPLY_REFUSED_HEADER,
    REPLY_TYPE,
    UNROUTABLE,
    USER_HEADER,
)
from worker.errors import PublishRefused, QueueFull, Unroutable
from worker.events import EventListener, Tracing
from worker.pipeline.request import Outcome, Request

_REPLY = build(content_type="application/json", type=REPLY_TYPE)
_REDUCED_REPLY = _REPLY.changed({REDUCED_HEADER: True})
GENERATED = "amq.gen-"
MESSAGE_ID_LENGTH = 255  # bytes; an id from a header may be longer

# CC and BCC would route copies to other queues; the counts belong to the requests queue.
NOT_COPIED = frozenset({"CC", "BCC", *COUNTS})


@dataclass(frozen=True, slots=True)
class Settler:
    """Settles requests; shared by all lanes."""

    publisher: Publisher
    journal: Journal | None
    topology: Topology
    encryptor: Encryptor
    events: EventListener
    tracing: Tracing | None = None

    async def settle(self, request: Request, outcome: Outcome) -> Settlement:
        """Publish what the outcome requires, and return when the broker has confirmed all of it."""
        settlement = Settlement(
            **outcome._asdict(),
            request_id=request.id,
            account=request.account,
            platform=request.parsed.platform,
            resource_id=request.parsed.resource_id,
            attempts=request.attempts,
            received_at=request.received_at,
            completed_at=now(),
            is_replay=request.is_replay,
            as_of=request.as_of,
        )
        body = reply_body(settlement)
        reply = self.publisher.send(self._reply(request, body))
        letter = None
        if settlement.reason is not None and not request.delivery.oversize:
            letter = self.publisher.send(self._dead_letter(request, settlement))
        try:
            if self.journal is not None:
                await self.journal.append(journal_record(settlement))
            try:
                await reply
            except (Unroutable, PublishRefused) as error:
                refused = UNROUTABLE if isinstance(error, Unroutable | QueueFull) else NOT_ALLOWED
                await self.publisher.send(self._reply(request, body, refused))
            if letter is not None:
                await letter
        except asyncio.CancelledError:
            reply.cancel()
            if letter is not None:
                letter.cancel()
            raise
        return settlement

    def _reply(self, request: Request, body: bytes, refused: str = "") -> Message:
        """The reply. It goes to the replies queue if there is no `reply_to`, or if that was `refused`."""
        properties = request.delivery.properties
        queue = properties.text("reply_to")
        if queue and not refused and not self._may_follow(queue):
            refused = NOT_ALLOWED
        headers = self.tracing.headers() if self.tracing else {}
        if refused:
            self.events.reply_refused(refused)
            headers[REPLY_REFUSED_HEADER] = refused
        reply = _REPLY.with_text("correlation_id", properties.text("correlation_id") or request.id)
        if headers:
            reply = reply.changed(headers)
        if not queue or refused:
            return Message("", self.topology.replies, reply, body, reduced=_REDUCED_REPLY)
        return Message("", queue, reply, body, external=True, reduced=_REDUCED_REPLY)

    def _may_follow(self, reply_to: str) -> bool:
        """Whether a reply may go to this queue: not to the worker's own queues, and of RabbitMQ's only to
        those for replies (contract §4)."""
        if reply_to.startswith("amq."):
            return reply_to.startswith((GENERATED, DIRECT_REPLY_TO))
        return not self.topology.is_own(reply_to)

    def _dead_letter(self, request: Request, settlement: Settlement) -> Message:
        properties = request.delivery.properties
        without = NOT_COPIED if request.is_replay else NOT_COPIED | operator_headers(properties)
        headers = dead_letter_headers(settlement)
        if (user := properties.text("user_id")) and not request.is_replay:
            headers[USER_HEADER] = user
        # RabbitMQ refuses the `user_id` of another user.
        properties = properties.changed(headers, without=without, user_id=None, expiration=None).persistent()
        has_id = bool(properties.text("message_id"))
        if not has_id and request.id.isascii() and len(request.id) <= MESSAGE_ID_LENGTH:
            properties = properties.with_text("message_id", request.id)
        return Message(self.topology.dead, "", *self.encryptor.encrypt(properties, request.delivery.body))
