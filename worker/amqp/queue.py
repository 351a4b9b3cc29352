"""One look at a queue: what waits in it, and who consumes it."""

from typing import NamedTuple

from worker.amqp.causes import object_errors
from worker.amqp.connection import Connection
from worker.errors import Problem, TopologyError

MISSING = "start the worker once, or check OTT_PREFIX and the virtual host in OTT_AMQP_URL"
FORBIDDEN = (
    "may not be looked at by this user: from RabbitMQ 4.3 on that needs a permission on it. "
    "Grant write, which is the least"
)


class QueueState(NamedTuple):
    """Messages that are ready, and consumers; of a single active consumer queue the active one only. RabbitMQ
    reports zero for both if the queue's leader does not answer within a quarter of a second."""

    ready: int
    consumers: int


async def look(connection: Connection, queue: str) -> QueueState:
    """Look at a queue; changes nothing. Raises TopologyError (it is missing, or may not be looked at) or
    BrokerUnreachable."""
    async with connection.asked(f"{queue} could not be looked at") as channel:
        with object_errors(f"queue {queue}", MISSING, FORBIDDEN):
            declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    return QueueState(declared.message_count or 0, declared.consumer_count or 0)


async def exists(connection: Connection, queue: str) -> bool:
    """Whether there is such a queue; also one that this user may not look at. Raises BrokerUnreachable."""
    try:
        await look(connection, queue)
    except TopologyError as error:
        return error.problem is not Problem.MISSING
    return True


async def delete(connection: Connection, queue: str) -> int:
    """Delete a queue; the number of messages that were in it. Raises TopologyError where this user may not,
    or BrokerUnreachable."""
    forbidden = "may not be deleted by this user: it needs the right to configure it, as the provisioner has"
    async with connection.asked(f"{queue} could not be deleted") as channel:
        with object_errors(f"queue {queue}", MISSING, forbidden):
            return (await channel.queue_delete(queue)).message_count or 0
