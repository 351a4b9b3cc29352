"""Logs: what is written, in which form, and what never is."""

import json
import logging

import pytest
import structlog

from worker.events import EventListener, EventListeners
from worker.settings import load_settings
from worker.telemetry.log import Log, configure, unexpected


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> "Lines":
    return Lines(capsys)


class Lines:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self) -> list[dict[str, object]]:
        """The JSON lines on standard error since the last look; nothing is on standard output."""
        captured = self._capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]


@pytest.fixture(autouse=True)
def _restored() -> "object":
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
    for name in ("aiormq", "aio_pika", "aiohttp", "asyncio"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).handlers[:] = []


def test_a_state_change_is_one_json_line_with_time_and_level(lines: Lines) -> None:
    logger = configure(load_settings(log_format="json"))
    Log(logger, debug=False).gate_closed("Down for repair")
    (line,) = lines()
    assert line["event"] == "paused: Marketing Cloud is not available"
    assert (line["level"], line["why"]) == ("warning", "Down for repair")
    assert str(line["timestamp"]).endswith("Z")


def test_a_field_that_is_not_on_the_list_is_never_written(lines: Lines) -> None:
    logger = configure(load_settings(log_format="json"))
    logger.info("something", status="ok", body="canary", token="canary", channelSecret="canary")
    (line,) = lines()
    assert line["status"] == "ok"
    assert "canary" not in json.dumps(line)


def test_what_cannot_be_encoded_and_what_is_long_is_written_all_the_same(lines: Lines) -> None:
    logger = configure(load_settings(log_format="json"))
    logger.info("something", request_id="\udc80" + "x" * 5000)
    (line,) = lines()
    assert len(str(line["request_id"])) == 500


def test_the_libraries_below_say_nothing(lines: Lines) -> None:
    configure(load_settings(log_format="json", log_level="debug"))
    for name in ("aiormq.connection", "aio_pika", "aiohttp.server", "asyncio", "anything"):
        logging.getLogger(name).error("canary: %s", b"a body")
    assert lines() == []


def test_a_defect_in_the_background_is_told_by_its_kind_alone(lines: Lines) -> None:
    logger = configure(load_settings(log_format="json"))
    unexpected(logger, {"message": "canary", "exception": KeyError("canary")})
    (line,) = lines()
    assert line["error"] == "KeyError"
    assert "canary" not in json.dumps(line)


def test_a_fact_reaches_every_listener_that_hears_it() -> None:
    heard: list[str] = []

    class Hears(EventListener):
        def __init__(self, name: str) -> None:
            self._name = name

        def gate_closed(self, why: str) -> None:
            heard.append(f"{self._name}: {why}")

    together = EventListeners(EventListeners(Hears("one"), EventListener()), Hears("two"))
    together.gate_closed("why")
    together.gate_opened(1.0)
    assert heard == ["one: why", "two: why"]
