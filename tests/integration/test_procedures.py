"""The procedures of deploy/docs, rehearsed."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.rig import Requester, Rig, messenger, until
from worker.events import EventListener, EventListeners
from worker.settings import load_settings
from worker.telemetry.metrics import Metrics
from worker.telemetry.state import WorkerPhase

ONE_BROKER = "What is rehearsed is no matter of RabbitMQ's version."


async def test_a_client_secret_is_rotated_by_file_without_a_restart(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("the-old-one\n")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET_FILE", str(file))
    given = rig.settings()
    from_file = {k: getattr(given, k) for k in given.model_fields_set if k != "mc_client_secret"}
    await rig.start_worker(load_settings(**from_file))
    async with Requester(given.amqp_url.get_secret_value(), given.prefix) as requester:
        waiting = await requester.publish(messenger())
        await until(lambda: _refused(rig), "the refusal of the old secret")
        file.write_text("sandbox\n")
        assert (await requester.reply(waiting))["status"] == "registered"


def _refused(rig: Rig) -> bool:
    return any(call.status == 401 for call in rig.sandbox.history if call.endpoint == "token")


class Watched(EventListener):
    """When deliveries came to a worker and when they stopped to."""

    def __init__(self, name: str, story: list[str]) -> None:
        self._name = name
        self._story = story

    def active(self) -> None:
        self._story.append(f"{self._name} active")

    def draining(self) -> None:
        self._story.append(f"{self._name} draining")


async def test_a_rolling_update_has_one_active_worker_at_a_time_and_loses_nothing(rig: Rig) -> None:
    story: list[str] = []
    metrics, phase = Metrics(), WorkerPhase()
    requester = await rig.start(EventListeners(Watched("old", story), metrics, phase))
    old = rig.services[0]
    sent = [await requester.publish(messenger(f"page-{n % 9}", f"version {n}")) for n in range(60)]
    new = await rig.start_worker(rig.settings(), Watched("new", story))
    assert new.intake.subscription is not None
    later = asyncio.create_task(rig.stop_worker(old))
    sent += [await requester.publish(messenger(f"page-{n % 9}", f"version {n}")) for n in range(60, 120)]
    await later
    for correlation_id in sent:
        assert (await requester.reply(correlation_id))["status"] == "registered"
    assert story == ["old active", "old draining", "new active"]
    held = {key.id: registration.body for key, registration in rig.sandbox.registrations.items()}
    newest = {f"page-{n % 9}": f"version {n}" for n in range(120)}
    assert {page: _name(body) for page, body in held.items()} == newest


def _name(body: object) -> str:
    document = body if isinstance(body, dict) else json.loads(str(body))
    return str(document["ottPlatformAttributes"]["pageName"])
