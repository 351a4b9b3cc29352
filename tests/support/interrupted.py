"""What test_interrupted_runs.py runs and interrupts. Its name keeps it out of every other run."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from tests.commands import begin
from tests.faults.network import Network, NoNamespaces
from tests.faults.node import Node


async def test_everything_is_started_that_tests_start(broker_url: str) -> None:
    given = {
        "OTT_AMQP_URL": broker_url,
        "OTT_MC_SUBDOMAIN": "x",
        "OTT_MC_CLIENT_ID": "x",
        "OTT_PREFIX": "x",
    }
    with Node() as node, contextlib.ExitStack() as stack:
        stubborn = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import signal; signal.signal(15, 1); signal.pause()"
        )
        command = await begin(None, "sandbox", "--port=0", **given)
        await command.stdout.readline()
        try:
            namespaces = stack.enter_context(Network()).namespaces
        except NoNamespaces:
            namespaces = []
        os.kill(stubborn.pid, signal.SIGSTOP)
        lines = [node.url, str(node.folder), str(stubborn.pid), str(command.pid), *namespaces]
        Path(os.environ["TOLD"]).write_text("\n".join(lines) + "\nall\n")
        time.sleep(300)
