"""The Python client for upstream systems.

    from worker.client import RegistrationClient

    async with RegistrationClient("amqp://user:password@broker/") as client:
        reply = await client.register({"ottPlatformName": "messenger", "ottPlatformAttributes": {...}})
        if reply.status != "registered":
            print(reply.message, reply.errors)

In code without an event loop, such as Django's and Flask's views, SyncRegistrationClient is the same with
calls that block:

    from worker.client import SyncRegistrationClient

    with SyncRegistrationClient("amqp://user:password@broker/") as client:
        reply = client.register({"ottPlatformName": "messenger", "ottPlatformAttributes": {...}})

Many at once, each with its reply, or with the error, as it comes:

    async for registration, outcome in client.register_many(registrations):
        print(outcome)

A file of registrations is for `ott-worker submit`.

An application that has a connection of aio-pika gives it: RegistrationClient(connection=...). The types
MessengerRegistration and LineRegistration tell a type checker what a registration holds.

It needs a broker that the worker has declared its queues on, and a user as `deploy/rabbitmq/definitions
--publisher NAME` makes: write on the exchange `PREFIX`, configure and read on `PREFIX.job.USER.*`.

An upstream project installs it from a checkout of this repository, or a wheel of it: `pip install PATH`. The
package that is imported is `worker`; what is not exported here may change.
"""

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
