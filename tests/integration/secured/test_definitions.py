"""The definitions of deploy/rabbitmq in a real broker: each user can do its work and nothing else."""

import json
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import aio_pika.exceptions
import aiohttp
import aiormq.exceptions
import pytest

from tests.commands import ott_worker
from tests.integration.secured.conftest import DEPLOY, SecuredBroker
from tests.rig import Requester, Rig, messenger, until
from tests.sandbox_faults import Status
from worker.broker.topology import Topology
from worker.client import RegistrationClient
from worker.console.server import Console
from worker.settings import Settings, load_settings

VHOST = "ott-test"
PREFIX = "ott.registration"
NAMES = Topology(PREFIX)


@dataclass(frozen=True)
class Deployment:
    """A vhost as the definitions make it."""

    broker: SecuredBroker
    passwords: Path
    document: Path
    vhost: str = VHOST

    def url(self, user: str) -> str:
        return self.broker.url_of(f"{self.vhost}-{user}", (self.passwords / user).read_text(), self.vhost)

    def make_anew(self) -> None:
        """Undo what a user has done to it."""
        self.broker.ctl("delete_vhost", VHOST)
        self.broker.ctl("import_definitions", str(self.document))

    def settings(self, user: str, **more: Any) -> Settings:
        return load_settings(
            **{
                "amqp_url": self.url(user),
                "prefix": PREFIX,
                "declare": False,
                "mc_client_id": "sandbox",
                "mc_client_secret": "sandbox",
                "admin_port": None,
                **more,
            }
        )


@pytest.fixture(scope="module")
def deployment(secured: SecuredBroker, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = deploy(secured, tmp_path_factory.mktemp("definitions"))
    secured.ctl("import_definitions", str(made.document))  # once more changes nothing
    return made


def deploy(secured: SecuredBroker, folder: Path, *more: str, vhost: str = VHOST) -> Deployment:
    """A vhost as the script's definitions make it."""
    document = folder / "definitions.json"
    document.write_text(written_by_the_script(folder / "passwords", *more, vhost=vhost))
    secured.ctl("import_definitions", str(document))
    return Deployment(secured, folder / "passwords", document, vhost)


def written_by_the_script(passwords: Path, *more: str, vhost: str = VHOST) -> str:
    done = subprocess.run(
        [DEPLOY / "rabbitmq" / "definitions", passwords, "--vhost", vhost, *more],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_worker_and_publisher_do_their_work_with_their_users(deployment):
    async with Rig(lambda **given: deployment.settings("worker", **given)) as rig:
        await rig.start_worker(rig.settings())
        async with Requester(deployment.url("publisher"), PREFIX) as publisher:
            reply = await publisher.ask(messenger(), key="request")
            assert reply["status"] == "registered"
            reply = await publisher.ask(b"{broken", key="request")
            assert reply["status"] == "rejected"
            own = await publisher.channel.declare_queue(f"{PREFIX}.job.1", durable=True)
            await publisher.ask(messenger(), key="request")
            await own.delete()


async def test_the_commands_do_their_work_with_the_users_that_are_meant_for_them(deployment, tmp_path):
    deployment.make_anew()
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(messenger("page-1") + b"\n" + messenger("page-2") + b"\n")
    operator = deployment.settings("operator")
    async with Rig(lambda **given: deployment.settings("worker", **given)) as rig:
        rig.sandbox.faults.add(Status(path="registration", status=403, resource_id="page-2", count=1))
        await rig.start_worker(rig.settings())
        submitted = await ott_worker(deployment.settings("publisher"), "submit", str(rows))
        assert submitted.code == 1, submitted.err
        listed = await ott_worker(operator, "dead-letters", "list", "--json")
        assert [letter["resourceId"] for letter in listed.documents] == ["page-2"], listed.err
        replayed = await ott_worker(operator, "dead-letters", "replay", "--all", "--yes")
        assert replayed.code == 0, replayed.err
        await until(lambda: len(rig.sandbox.registrations) == 2, "the replay")
        recorded = await ott_worker(operator, "journal", "--json")
        assert {record["status"] for record in recorded.documents} == {"registered", "failed"}, recorded.err


async def test_the_console_does_its_work_with_an_operators_user(deployment):
    deployment.make_anew()
    operator = deployment.settings("operator", console_port=0)
    async with (
        Rig(lambda **given: deployment.settings("worker", **given)) as rig,
        Requester(deployment.url("publisher"), PREFIX) as publisher,
        Console(operator) as console,
        aiohttp.ClientSession(
            console.url,
            headers={"Accept": "application/json"},
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # of an address, not a name
        ) as session,
    ):
        rig.sandbox.faults.add(Status(path="registration", status=404, count=1))
        await rig.start_worker(rig.settings())
        await publisher.ask(messenger(), key="request")
        overview = await (await session.get(console.entry.removeprefix(console.url))).json()
        assert (overview["problems"], overview["queues"]["dead"]) == ([], 1)
        assert (await session.post("/pause", data={"why": "a test"})).status == 200
        assert (await session.post("/resume", data={"why": "a test"})).status == 200
        run = await (await session.post("/runs", data={"do": "replay"})).json()
        await session.post(f"/runs/{run['run']}/start", data={"why": "a test"})

        async def is_registered() -> bool:
            now = await (await session.get(f"/runs/{run['run']}")).json()
            assert now["phase"] in ("running", "done"), now
            return bool(now["outcomes"] == {"registered": 1})

        await until(is_registered, "the replay's outcome")


Operation = Callable[[aio_pika.abc.AbstractChannel], Awaitable[object]]


def publish(exchange: str, key: str) -> Operation:
    async def do(channel: aio_pika.abc.AbstractChannel) -> None:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(aio_pika.Message(b"x", headers={"probe": True}), key, mandatory=False)

    return do


def read(queue: str) -> Operation:
    async def do(channel: aio_pika.abc.AbstractChannel) -> None:
        # A stream is read with a prefetch, and only by a consumer; so is everything else here.
        await channel.set_qos(1)
        consumer = await (await channel.get_queue(queue, ensure=False)).consume(_hold)
        await (await channel.get_queue(queue, ensure=False)).cancel(consumer)

    return do


async def _hold(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Not acknowledged: it goes back when the channel closes."""


def declare(queue: str) -> Operation:
    return lambda channel: channel.declare_queue(queue, durable=True, auto_delete=False)


def purge(queue: str) -> Operation:
    async def do(channel: aio_pika.abc.AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge()

    return do


def bind(queue: str, exchange: str, key: str) -> Operation:
    async def do(channel: aio_pika.abc.AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)

    return do


def delete(queue: str) -> Operation:
    return lambda channel: channel.queue_delete(queue)


# What is tried, and who may do it. Who consumes may purge: RabbitMQ asks for the right to read. The
# provisioner makes the queues, and so may unmake them; it sends no request.
READERS = {
    "requests": "worker provisioner",
    "replies": "operator",
    "dead": "operator provisioner",
    "journal": "worker operator observer",
    "status": "worker publisher operator observer provisioner",
    "control": "worker operator observer",
}
OPERATIONS: dict[str, tuple[Operation, str]] = {
    "publish a request": (publish(PREFIX, "request"), "publisher"),
    "publish a replay": (publish(PREFIX, "replay"), "operator"),
    "give an order": (publish(PREFIX, "control"), "operator"),
    "publish with another key": (publish(PREFIX, "other"), ""),
    "publish a dead letter": (publish(NAMES.dead, ""), "worker provisioner"),
    "publish to any queue": (publish("", "nobody"), "worker"),
    "publish to amq.topic": (publish("amq.topic", "x"), ""),
    **{f"read {name}": (read(f"{PREFIX}.{name}"), users) for name, users in READERS.items()},
    **{
        f"purge {name}": (purge(f"{PREFIX}.{name}"), READERS[name])
        for name in ("requests", "dead", "replies")
    },
    "declare a job's queue": (declare(f"{PREFIX}.job.x"), "publisher"),
    "declare the operators' locks": (declare(f"{NAMES.dead}.change"), "operator"),
    "declare another queue": (declare("another"), ""),
    "declare an exchange": (lambda channel: channel.declare_exchange("another", durable=True), ""),
    "bind dead to the entry": (bind(NAMES.dead, PREFIX, "request"), "provisioner"),
    "bind requests to amq.topic": (bind(NAMES.requests, "amq.topic", "#"), ""),
    **{f"delete {name}": (delete(f"{PREFIX}.{name}"), "provisioner") for name in READERS},
}
USERS = ("worker", "publisher", "operator", "observer", "provisioner")


@pytest.mark.parametrize("user", USERS)
async def test_a_user_can_do_what_it_must_and_nothing_else(deployment, user):
    connection = await aio_pika.connect(deployment.url(user))
    async with connection:
        done = {
            name for name, (operation, _) in OPERATIONS.items() if await _is_allowed(connection, operation)
        }
    if user == "provisioner":  # who has deleted the queues
        deployment.make_anew()
    assert done == {name for name, (_, users) in OPERATIONS.items() if user in users.split()}


async def _is_allowed(connection: aio_pika.abc.AbstractConnection, operation: Operation) -> bool:
    channel = await connection.channel()
    try:
        await operation(channel)
    except aiormq.exceptions.ChannelAccessRefused:
        return False
    except (aio_pika.exceptions.ChannelClosed, aio_pika.exceptions.DeliveryError) as error:
        raise AssertionError(f"neither allowed nor refused: {error}") from error
    finally:
        if not channel.is_closed:
            await channel.close()
    return True


async def test_a_worker_divides_the_requests_with_its_user(secured, tmp_path):
    divided = deploy(secured, tmp_path, "--partitions", "2", vhost=f"{VHOST}-partitions")
    async with Rig(lambda **given: divided.settings("worker", **given)) as rig:
        await rig.start_worker(rig.settings(partitions=2))
        async with Requester(divided.url("publisher"), PREFIX) as publisher:
            for page in ("page-1", "page-2", "page-3"):
                reply = await publisher.ask(messenger(page), key="request")
                assert reply["status"] == "registered"
            into = aio_pika.Message(messenger())
            with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
                await publisher.channel.default_exchange.publish(into, f"{PREFIX}.requests.1")
    pruned = await ott_worker(divided.settings("provisioner"), "partitions", "prune")
    assert pruned.code == 0, pruned.err
    assert pruned.out.count("deleted") == 2


async def test_publishers_with_users_of_their_own_cannot_touch_each_others_replies(secured, tmp_path):
    vhost = f"{VHOST}-two"
    two = deploy(secured, tmp_path, "--publisher", "crm", "--publisher", "onboarding", vhost=vhost)
    async with Rig(lambda **given: two.settings("worker", **given)) as rig:
        await rig.start_worker(rig.settings())
        async with RegistrationClient(two.url("crm"), prefix=PREFIX) as client:
            assert (await client.register(json.loads(messenger()))).status == "registered"
            queues = secured.ctl("list_queues", "--vhost", vhost, "--no-table-headers", "name").split()
            (replies,) = [name for name in queues if name.startswith(f"{PREFIX}.job.{vhost}-crm.")]
            connection = await aio_pika.connect(two.url("onboarding"))
            async with connection:
                forbidden = {
                    "read": read(replies),
                    "empty": purge(replies),
                    "delete": delete(replies),
                    "make": declare(f"{PREFIX}.job.{vhost}-crm.other"),
                    "read what names no queue": read(NAMES.replies),
                    "empty what names no queue": purge(NAMES.replies),
                    "replay": publish(PREFIX, "replay"),
                }
                done = [name for name, each in forbidden.items() if await _is_allowed(connection, each)]
                assert done == []
            assert (await client.register(json.loads(messenger()))).status == "registered"
    secured.ctl("delete_vhost", vhost)


def test_a_publisher_may_not_take_the_name_of_another_user(tmp_path):
    for name in ("operator", "a b", ".*"):
        with pytest.raises(subprocess.CalledProcessError):
            written_by_the_script(tmp_path / "passwords", "--publisher", name)


async def test_the_definitions_hold_no_password(deployment):
    document = written_by_the_script(deployment.passwords)
    for user in USERS:
        assert (deployment.passwords / user).read_text() not in document
        assert ((deployment.passwords / user).stat().st_mode & 0o077) == 0


async def test_a_broker_password_is_rotated_by_file_without_a_restart(deployment, tmp_path, monkeypatch):
    file = tmp_path / "url"
    file.write_text(deployment.url("worker"))
    monkeypatch.setenv("OTT_AMQP_URL_FILE", str(file))
    async with Rig(lambda **given: deployment.settings("worker", **given)) as rig:
        settings = load_settings(
            **{k: getattr(rig.settings(), k) for k in rig.settings().model_fields_set if k != "amqp_url"}
        )
        service = await rig.start_worker(settings)
        async with Requester(deployment.url("publisher"), PREFIX) as publisher:
            deployment.broker.ctl("change_password", f"{VHOST}-worker", "the-new-one")
            file.write_text(deployment.broker.url_of(f"{VHOST}-worker", "the-new-one", VHOST))
            deployment.broker.ctl("close_all_user_connections", f"{VHOST}-worker", "the password was rotated")
            assert (await publisher.ask(messenger(), key="request"))["status"] == "registered"
            assert service.publisher.ready
    deployment.broker.ctl("change_password", f"{VHOST}-worker", (deployment.passwords / "worker").read_text())
