"""Ports that nobody listens on yet."""

import contextlib
import socket
import time


def free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for_port(port: int) -> None:
    """Return when somebody listens there."""
    deadline = time.monotonic() + 30
    while not listens(port):
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.05)
