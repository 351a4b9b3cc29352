"""Log lines that cannot be written are dropped and counted."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from worker.telemetry import line_writer
from worker.telemetry.line_writer import LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_lines_come_in_their_order(pipe: tuple[int, int]) -> None:
    lines = LineWriter(pipe[1])
    for number in range(100):
        lines.write(f"{number} é \udc80\n")
    lines.close()
    assert os.read(pipe[0], 100_000).decode().splitlines() == [f"{n} é \\udc80" for n in range(100)]
    assert lines.dropped == 0


def test_a_reader_that_stalls_holds_up_nobody(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "END_TIMEOUT", 0.1)
    lines = LineWriter(pipe[1])
    for _ in range(3000):
        lines.write("x" * 100 + "\n")
    lines.close()
    assert lines.dropped > 1000


def test_a_reader_that_is_gone_costs_its_lines(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    lines = LineWriter(pipe[1])
    lines.write("lost\n")
    lines.close()
    assert lines.dropped == 1


def test_a_full_disk_costs_its_lines() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lines = LineWriter(full)
    lines.write("lost\n")
    lines.close()
    os.close(full)
    assert lines.dropped == 1
