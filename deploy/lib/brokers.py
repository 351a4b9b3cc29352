"""Find a RabbitMQ, in this order:

1. the one that `OTT_AMQP_URL` names (or its file, or .env): it must answer
2. one that answers guest/guest on localhost:5672
3. a private node of an installed `rabbitmq-server`, ended and deleted afterwards
4. the same, after `rabbitmq-server` was installed with Debian's or Ubuntu's apt-get (as root or by sudo)
5. a container of Docker, removed afterwards

`OTT_BROKER=localhost|private|install|docker` takes that one and no other, whatever OTT_AMQP_URL says.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import private_broker
from foreground import finish_undisturbed
from private_broker import BrokerError, PrivateBroker

from worker.amqp.connection import connect
from worker.errors import BrokerUnreachable
from worker.settings import environment, load_settings

LOCALHOST = "amqp://guest:guest@localhost:5672/"
IMAGE = "rabbitmq:4.3.6"
CONTAINER_START_LIMIT = 180.0  # seconds; the image may have to be fetched first
CHOICES = ("localhost", "private", "install", "docker")


@contextlib.contextmanager
def broker() -> Iterator[dict[str, str]]:
    """The environment in which the worker finds a RabbitMQ that answers, for as long as the block lasts.

    Raises BrokerError, BrokerUnreachable or SettingsError: one line each.
    """
    choice = os.environ.get("OTT_BROKER", "")
    if choice and choice not in CHOICES:
        raise BrokerError(f"OTT_BROKER must be one of {', '.join(CHOICES)}, or not set")
    if not choice and _is_configured():
        _check()
        say("RabbitMQ: the one that OTT_AMQP_URL names")
        yield dict(os.environ)
        return
    os.environ.pop("OTT_AMQP_URL_FILE", None)  # it would count as a second answer
    with _found(choice) as url:
        yield os.environ | {"OTT_AMQP_URL": url}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _found(choice: str) -> contextlib.AbstractContextManager[str]:
    def wanted(branch: str) -> bool:
        return choice in ("", branch)

    if wanted("localhost") and _answers(LOCALHOST):
        say("RabbitMQ: the one on localhost:5672")
        return contextlib.nullcontext(LOCALHOST)
    if wanted("private") and private_broker.installed():
        return _private_node()
    if wanted("install") and _install():
        return _private_node()
    if wanted("docker") and _docker_answers():
        return _container()
    raise BrokerError(_NONE_OF_THEM.get(choice, _NOTHING))


_NOTHING = (
    "No RabbitMQ was found: start one on localhost:5672 (guest/guest), install rabbitmq-server, "
    "start Docker, or name one with OTT_AMQP_URL"
)
_NONE_OF_THEM = {
    "localhost": "OTT_BROKER=localhost: no RabbitMQ answers guest/guest on localhost:5672",
    "private": "OTT_BROKER=private: rabbitmq-server is not installed",
    "install": "OTT_BROKER=install: that needs Debian or Ubuntu, and root or sudo",
    "docker": "OTT_BROKER=docker: no Docker engine answers",
}


def _is_configured() -> bool:
    given = environment()
    return bool(given.get("OTT_AMQP_URL") or given.get("OTT_AMQP_URL_FILE"))


def _check(**overrides: str) -> None:
    """Connect once. Raises BrokerUnreachable or SettingsError, in one line."""
    logging.disable()  # of the library's own words about it

    async def open_and_close() -> None:
        connection = await connect(load_settings(**overrides), "set-up")
        await connection.close()

    asyncio.run(open_and_close())


def _answers(url: str) -> bool:
    try:
        _check(amqp_url=url)
    except BrokerUnreachable:
        return False
    return True


@contextlib.contextmanager
def _private_node() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="ott-rabbitmq-"))
    node = PrivateBroker(folder)
    try:
        say("RabbitMQ: starting a private one, which is ended and deleted afterwards")
        yield node.start()
    finally:
        finish_undisturbed()
        node.kill()  # nothing in it is kept, so there is nothing to close in order
        shutil.rmtree(folder, ignore_errors=True)


def _install() -> bool:
    installer = Path(__file__).parent / "system-install"
    purpose = "a RabbitMQ to run against"
    code = subprocess.run([installer, "rabbitmq-server", purpose], stdout=sys.stderr, check=False).returncode
    return code == 0 and private_broker.installed() is not None


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return (
            subprocess.run(["docker", "info"], capture_output=True, timeout=15, check=False).returncode == 0
        )
    return False


@contextlib.contextmanager
def _container() -> Iterator[str]:
    name = f"ott-rabbitmq-{secrets.token_hex(4)}"
    say(f"RabbitMQ: starting a container of {IMAGE}, which is removed afterwards")
    try:
        _docker("run", "--detach", "--rm", "--name", name, "--publish", "127.0.0.1::5672", IMAGE)
        address = _docker("port", name, "5672/tcp").splitlines()[0]
        url = f"amqp://guest:guest@{address}/"
        deadline = time.monotonic() + CONTAINER_START_LIMIT
        while not _answers(url):
            if time.monotonic() > deadline:
                raise BrokerError(f"the RabbitMQ in the container {name} did not answer in time")
            time.sleep(0.5)
        yield url
    finally:
        finish_undisturbed()
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False)


def _docker(*arguments: str) -> str:
    # Its standard error is left to the terminal: it shows how far the image is.
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BrokerError(f"docker {arguments[0]} failed (above)")
    return done.stdout.strip()
