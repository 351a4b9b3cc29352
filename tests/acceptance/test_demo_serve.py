"""`ott-worker demo --serve`: what it prints is pasted into a terminal of 80 columns, twice in a row."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.acceptance.terminal import in_a_terminal
from tests.watchdog import MARK

BIN = str(Path(sys.executable).parent)
VARIABLES = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": os.environ["HOME"], "COLUMNS": "80"}
VARIABLES |= {name: os.environ[name] for name in ("PYTHONPATH", MARK) if name in os.environ}


@asynccontextmanager
async def demonstration(broker_url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The running command, and all that it printed before it began to serve."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "demo", "--serve"),
        env=VARIABLES | {"OTT_AMQP_URL": broker_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(240):
            yield (
                process,
                (
                    await process.stdout.readuntil(b"4. Replay") + await process.stdout.readuntil(b"yes\n")
                ).decode(),
            )
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 60)


def blocks(shown: str) -> list[str]:
    """What there is to paste: the preparation, and the four things to try."""
    return re.findall(r"(?:^  .*\n)+", shown.partition("In another terminal, first:")[2], re.MULTILINE)


async def test_the_four_things_to_try_work_twice_and_fit_into_80_columns(broker_url, tmp_path):
    async with demonstration(broker_url) as (process, shown):
        assert max(map(len, shown.splitlines())) <= 80, shown
        setup, submit, outage, console, replay = blocks(shown)
        assert re.fullmatch(r"  http://127.0.0.1:\d+/\?token=\S+\n", console)
        for _ in range(2):
            for pasted, expected in (
                (submit, "20 registered"),
                (outage, "503"),
                (f"curl -fsL -b '' '{console.strip()}'", "<html"),
                (replay, r"1 failed(.|\n)*forbidden(.|\n)*registered"),
            ):
                code, said = await in_a_terminal(f"{setup}\n{pasted}", VARIABLES, cwd=tmp_path)
                assert code == 0, said
                assert "Traceback" not in said
                assert re.search(expected, said), said
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")


DOCS = Path(__file__).parents[2] / "deploy" / "docs"
BLOCK = re.compile(r"(?:Save as `(\S+)`:\n\n)?^```(sh|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def lines(text: str) -> list[str]:
    """What must be in the output, as regular expressions: `…` stands for anything."""
    return [".*".join(map(re.escape, line.split("…"))) for line in text.splitlines() if line]


@pytest.mark.parametrize("page", ["tutorial-developer.md", "tutorial-bulk.md", "tutorial-operator.md"])
async def test_a_tutorial_works_when_it_is_pasted(broker_url, tmp_path, page):
    said = ""
    async with demonstration(broker_url) as (_, shown):
        setup = f"{blocks(shown)[0]}\nexport COLUMNS=200"
        for name, kind, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
            if kind == "python":
                (tmp_path / name).write_text(text, encoding="utf-8")
            elif kind == "sh":
                code, said = await in_a_terminal(f"set -e\n{setup}\n{text}", VARIABLES, cwd=tmp_path)
                assert code == 0, said
                assert "Traceback" not in said
            else:
                assert [line for line in lines(text) if not re.search(line, said)] == [], said
