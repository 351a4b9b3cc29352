"""Logs: what is written, in which form, and what never is."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest
import structlog

from tests.unit.test_replies import REGISTERED, REJECTED
from worker.cli.app import main
from worker.contract.settlement import Settlement
from worker.contract.words import Reason, Status
from worker.events import EVENTS, EventListener, EventListeners
from worker.settings import load_settings
from worker.telemetry import log
from worker.telemetry.log import LineWriter, Log, Summary, configure, unexpected


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
    yield
    structlog.reset_defaults()


def test_a_state_change_is_one_json_line_with_time_and_level(lines):
    logger = configure(load_settings(log_format="json"))
    Log(logger, debug=False).gate_closed("Down for repair")
    (line,) = lines()
    assert line["event"] == "paused: Marketing Cloud is unavailable"
    assert (line["level"], line["why"]) == ("warning", "Down for repair")
    assert str(line["timestamp"]).endswith("Z")


def settlement(status: Status, reason: Reason | None = None, attempts: int = 1) -> Settlement:
    base = REJECTED if reason == "invalid" else REGISTERED
    return base._replace(status=status, reason=reason, attempts=attempts)


async def test_a_minute_of_requests_is_one_line_with_an_example_of_each_error(lines):
    summary = Summary(configure(load_settings(log_format="json")), interval=0.2)
    for each in (
        *[settlement("registered")] * 3,
        settlement("registered", attempts=4),
        *[settlement("rejected", "invalid", attempts=0)] * 2,
        settlement("failed", "exhausted", attempts=6),
    ):
        summary.settled(each, 0.1)
    assert lines() == []
    await asyncio.sleep(0.4)
    (line,) = lines()
    assert (line["event"], line["level"]) == ("requests settled", "info")
    told = {name: line[name] for name in ("registered", "rejected", "failed", "superseded", "retried")}
    assert told == {"registered": 4, "rejected": 2, "failed": 1, "superseded": 0, "retried": 2}
    assert line["reasons"] == {"invalid": 2, "exhausted": 1}
    assert line["examples"]["invalid"] == "EndpointUrl must be provided"
    await asyncio.sleep(0.4)
    assert lines() == []


@pytest.mark.parametrize("name", [name for name, event in EVENTS.items() if event.level])
def test_an_events_line_has_all_its_fields(lines, name):
    # None of these holds a secret.
    known = "account by count epoch error offset partition partitions pace prefetch queue request_id result"
    known += " seconds stream variable why"
    log = Log(configure(load_settings(log_format="json", log_level="debug")), debug=False)
    getattr(log, name)(*EVENTS[name].fields)
    (line,) = lines()
    assert (line["event"], line["level"]) == (EVENTS[name].text, EVENTS[name].level)
    assert {field: line[field] for field in EVENTS[name].fields} == {f: f for f in EVENTS[name].fields}
    assert set(EVENTS[name].fields) <= set(known.split())


def test_the_same_failure_is_told_once_a_minute_and_again_when_it_had_ended(lines):
    log = Log(configure(load_settings(log_format="json")), debug=False)
    for _ in range(3):
        log.broker_unreachable("refused")
        log.broker_unreachable("no route")
        log.topology_wrong("refused")
    assert len(lines()) == 3
    log.consumer_connected()
    log.broker_unreachable("refused")
    log.topology_wrong("refused")
    assert [line["level"] for line in lines()] == ["info", "warning"]


def test_what_cannot_be_encoded_and_what_is_long_is_written_all_the_same(lines):
    logger = configure(load_settings(log_format="json"))
    logger.info("something", request_id="\udc80" + "x" * 5000)
    (line,) = lines()
    assert len(str(line["request_id"])) == 500


def test_the_libraries_below_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ott-worker", "--wrong"])
    with pytest.raises(SystemExit):
        main()
    assert "--wrong" in capsys.readouterr().err
    for name in ("aiormq.connection", "aio_pika", "aiohttp.server", "asyncio", "anything"):
        logging.getLogger(name).error("canary: %s", b"a body")
    assert capsys.readouterr() == ("", "")


def test_a_defect_in_the_background_is_told_by_its_kind_alone(lines):
    logger = configure(load_settings(log_format="json"))
    unexpected(logger, {"message": "canary", "exception": KeyError("canary")})
    (line,) = lines()
    assert line["error"] == "KeyError"
    assert "canary" not in json.dumps(line)


class Defective(EventListener):
    def settled(self, settlement: Settlement, seconds: float) -> None:
        raise ValueError("a secret")


async def test_a_listener_with_a_defect_holds_up_neither_the_others_nor_the_work(lines):
    logger = configure(load_settings(log_format="json", log_level="debug"))
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected(logger, context))
    events = EventListeners(Defective(), Log(logger, debug=True))
    events.settled(settlement("registered"), 0.1)
    EventListeners(Defective()).settled(settlement("registered"), 0.1)
    defect = ("internal error in the background", "ValueError")
    assert [(line["event"], line.get("error")) for line in lines()] == [defect, ("settled", None), defect]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_lines_come_in_their_order(pipe):
    dropped = []
    lines = LineWriter(pipe[1], lambda: dropped.append(True))
    for number in range(100):
        lines.write(f"{number} é \udc80\n")
    lines.close()
    assert os.read(pipe[0], 100_000).decode().splitlines() == [f"{n} é \\udc80" for n in range(100)]
    assert dropped == []


def test_a_reader_that_stalls_holds_up_nobody(pipe, monkeypatch):
    monkeypatch.setattr(log, "END_TIMEOUT", 0.1)
    dropped = []
    lines = LineWriter(pipe[1], lambda: dropped.append(True))
    for _ in range(3000):
        lines.write("x" * 100 + "\n")
    lines.close()
    assert len(dropped) > 1000
