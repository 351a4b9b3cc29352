"""What all tests share: brokers to run against, a prefix of one's own, and nothing left behind."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from uuid import uuid4

import hypothesis
import pytest

from tests import watchdog
from tests.faults.proxy import Proxy
from tests.rig import DEFAULT_URL, Requester, Rig, delete_objects, until
from worker.amqp.connection import Connection, connect
from worker.amqp.publisher import Publisher
from worker.broker import topology
from worker.contract.platforms import SECRET_FIELDS
from worker.events import EventListener
from worker.settings import Settings, load_settings

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

BROKER_URLS = [
    url
    for url in os.environ.get("OTT_TEST_AMQP_URLS", os.environ.get("OTT_AMQP_URL", DEFAULT_URL)).split(",")
    if url
]
PASSED_ON = frozenset({"OTT_TEST_AMQP_URLS", "OTT_TEST_RABBITMQ_ROOT", "OTT_TEST_RABBITMQ_ROOTS"})


def pytest_configure() -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does. It has a minute: a task that swallows its cancellation
    would keep the event loop for ever. What nothing has unwound by then the watchdog puts away."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.alarm(60)  # seconds
        signal.default_int_handler(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    watchdog.start()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine, and no `.env`, reaches a test."""
    for name in [name for name in os.environ if name.startswith("OTT_") and name not in PASSED_ON]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.NOTSET)  # which a command sets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run on each broker in turn; once where the module says, in ONE_BROKER, why its version does not
    matter, and for what a command or a page shows."""
    module = metafunc.module.__name__
    once = hasattr(metafunc.module, "ONE_BROKER") or module.startswith(
        ("tests.acceptance.", "tests.console.")
    )
    for name in {"broker_url", "module_broker_url"} & set(metafunc.fixturenames):
        urls = BROKER_URLS[:1] if once else BROKER_URLS
        metafunc.parametrize(
            name, urls, indirect=True, ids=[url.rpartition("@")[2].strip("/") for url in urls]
        )


@pytest.fixture
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each broker that `OTT_TEST_AMQP_URLS` names, in turn."""
    return str(request.param)


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has."""
    return f"test.{uuid4().hex[:12]}"


@pytest.fixture
async def clean_broker(broker_url: str, prefix: str) -> AsyncIterator[str]:
    """The broker's URL; everything below the prefix is deleted afterwards."""
    yield broker_url
    await delete_objects(broker_url, prefix)


@pytest.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    """A proxy before this test's broker, which can be made to misbehave."""
    async with Proxy.to(broker_url) as a_proxy:
        yield a_proxy


@pytest.fixture
def make_settings(clean_broker: str, prefix: str) -> Callable[..., Settings]:
    """Settings for this test's broker and prefix, without a journal's long life or an admin port."""

    def make(**overrides: object) -> Settings:
        base: dict[str, object] = {
            "amqp_url": clean_broker,
            "prefix": prefix,
            "mc_client_id": "sandbox",
            "mc_client_secret": "sandbox",
            "admin_port": None,
            "retry_base": 0.02,
        }
        return load_settings(**{**base, **overrides})

    return make


@pytest.fixture
async def connection(make_settings: Callable[..., Settings]) -> AsyncIterator[Connection]:
    """A connection to a broker where all objects of the prefix are declared."""
    settings = make_settings()
    a_connection = await connect(settings, "test")
    await topology.ensure(a_connection, settings)
    yield a_connection
    await a_connection.close()


@pytest.fixture
async def publisher(
    connection: Connection, make_settings: Callable[..., Settings]
) -> AsyncIterator[Publisher]:
    """A publisher that is connected."""
    a_publisher = Publisher(make_settings(), EventListener())
    a_publisher.start()
    await until(lambda: a_publisher.ready, "the publisher")
    yield a_publisher
    await a_publisher.stop()


@pytest.fixture
async def rig(make_settings: Callable[..., Settings]) -> AsyncIterator[Rig]:
    """A worker, the sandbox and a real broker; `await rig.start(...)` begins."""
    async with Rig(make_settings) as a_rig:
        yield a_rig


@pytest.fixture
async def requester(rig: Rig) -> Requester:
    """A publisher of requests, beside a worker."""
    return await rig.start()


@pytest.fixture
def secret_values() -> dict[str, str]:
    """A canary for each secret field."""
    return {name: f"canary-{name}-{uuid4().hex}" for name in sorted(SECRET_FIELDS)}
