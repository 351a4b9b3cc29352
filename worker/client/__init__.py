"""The Python client for upstream systems.

    from worker.client import RegistrationClient

    async with RegistrationClient("amqp://user:password@broker/") as client:
        reply = await client.register({"ottPlatformName": "messenger", "ottPlatformAttributes": {...}})
        if reply.status != "registered":
            print(reply.message, reply.errors)

It needs a broker that the worker has declared its queues on, and for the user: write on the exchange
`PREFIX`, and configure and read on `PREFIX.job.*`.
"""

from worker.client.registration_client import RegistrationClient
from worker.contract.registration import FieldError
from worker.contract.reply import Reply
from worker.contract.words import Status
from worker.errors import (
    BrokerUnreachable,
    OutcomeUnknown,
    PublishRefused,
    SettingsError,
    TopologyError,
    WorkerError,
)

__all__ = [
    "BrokerUnreachable",
    "FieldError",
    "OutcomeUnknown",
    "PublishRefused",
    "RegistrationClient",
    "Reply",
    "SettingsError",
    "Status",
    "TopologyError",
    "WorkerError",
]
