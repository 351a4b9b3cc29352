"""The Python client for upstream systems.

    from worker.client import RegistrationClient

    async with RegistrationClient("amqp://user:password@broker/") as client:
        reply = await client.register({"ottPlatformName": "messenger", "ottPlatformAttributes": {...}})
        if reply.status != "registered":
            print(reply.message, reply.errors)

For code without an event loop, such as views of Django and Flask, SyncRegistrationClient has the same
methods, which block:

    from worker.client import SyncRegistrationClient

    with SyncRegistrationClient("amqp://user:password@broker/") as client:
        reply = client.register({"ottPlatformName": "messenger", "ottPlatformAttributes": {...}})

Many at once, each with its reply or error, as soon as it is known:

    async for registration, outcome in client.register_many(registrations):
        print(outcome)

For a file of registrations, use `ott-worker submit`.

An application can pass its own aio-pika connection: RegistrationClient(connection=...). The types
MessengerRegistration and LineRegistration describe a registration for type checkers.

The worker's queues must be declared, and the user needs the permissions of `deploy/rabbitmq/definitions
--publisher NAME`: write on the exchange `PREFIX`, configure and read on `PREFIX.job.USER.*`.

An upstream project installs it from a checkout or a wheel of this repository: `pip install PATH`. The package
is `worker`; names that are not exported here may change."""

from worker.client.registration_client import RegistrationClient, SyncRegistrationClient
from worker.client.types import LineRegistration, MessengerRegistration
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
    "LineRegistration",
    "MessengerRegistration",
    "OutcomeUnknown",
    "PublishRefused",
    "RegistrationClient",
    "Reply",
    "SettingsError",
    "Status",
    "SyncRegistrationClient",
    "TopologyError",
    "WorkerError",
]
