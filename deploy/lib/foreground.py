"""Run a program as a shell would, and end in order whatever signal comes.

Import it first: from then until `end_in_order` Ctrl-C ends this program without a word, because there is
nothing yet to put away, and the other imports take a second.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

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

    Signals go to the program, which may take its time to end.
    """
    program: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if program is None:
            _unwind(number, frame)
        elif number != signal.SIGINT or not _in_the_foreground():
            program.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _heeded()}
    try:
        program = subprocess.Popen(command, env=environment)
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
