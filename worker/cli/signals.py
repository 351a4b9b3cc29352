"""Signals that end a command."""

import asyncio
import signal
import threading
from collections.abc import Callable


def on_end(stop: Callable[[], object]) -> None:
    """Call `stop` on SIGTERM, SIGINT, and SIGHUP unless that is ignored, as by nohup. Off the main thread,
    which alone hears signals, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
