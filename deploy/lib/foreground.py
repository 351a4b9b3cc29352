"""Run a program as a shell would, and end in order whatever signal comes.

Import it first: from then until `end_in_order` Ctrl-C ends this program without a word, because there is
nothing yet to put away, and the other imports take a second.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

GRACE = 60.0  # seconds in which a program that was told to end has to
POLL = 0.5  # seconds
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP unwind this program as Ctrl-C does, so that what it started is put away."""
    for number in _heeded():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _unwind)


def finish_undisturbed() -> None:
    """From here on no signal but SIGKILL interrupts: for the last steps before the end."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run it to its end and return its exit code as a shell does (128 + n for signal n).

    Signals go to the program, which is killed where it has not ended GRACE seconds after one.
    """
    program: subprocess.Popen[bytes] | None = None
    deadline: float | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal deadline
        if program is None:
            _unwind(number, frame)
            return
        deadline = time.monotonic() + GRACE
        if number != signal.SIGINT or not _in_the_foreground():
            program.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _heeded()}
    try:
        program = subprocess.Popen(command, env=environment)
        while program.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(POLL)
            if deadline is not None and time.monotonic() > deadline:
                program.kill()
        code = program.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _heeded() -> list[signal.Signals]:
    # Under nohup, or in the background of a script, some are ignored: they stay so.
    return [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]


def _unwind(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _in_the_foreground() -> bool:
    """Whether a Ctrl-C comes from a terminal, which then sends it to the program as well."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
