"""How quick the pages are over a long dead letter queue: `python -m tests.console.measure [LETTERS]`.

By default there are 20,000. The console runs in a process of its own; the first contentful paint is
Chromium's own figure.
"""

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

from playwright.async_api import Page

from tests.console.browser import browser
from tests.console.world import world
from tests.rig import environment

PAGES = ("/", "/dead-letters", "/dead-letters?reason=exhausted&page=20")
ROUNDS = 20
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
READ_TIMEOUT = 120_000  # milliseconds


async def main(letters: int) -> None:
    async with world(letters) as settings, browser() as open_page:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "console"),
            env=environment(settings),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        try:
            async with open_page(url) as page:
                await _measure(page, letters, process.pid)
        finally:
            process.terminate()
            await process.wait()


async def _measure(page: Page, letters: int, console: int) -> None:
    started = time.monotonic()
    await page.goto("/dead-letters")
    print(f"{letters:,} letters, nothing read yet: first paint {await _paint(page):.0f} ms")
    await page.get_by_text(f"Page 1 of {-(-letters // 50):,}").wait_for(timeout=READ_TIMEOUT)
    print(f"all read and shown after {time.monotonic() - started:.1f} s")
    for path in PAGES:
        paints, cpu = [], _cpu(console)
        for _ in range(ROUNDS):
            await page.goto(path)
            paints.append(await _paint(page))
        cpu = (_cpu(console) - cpu) / ROUNDS
        print(
            f"{path}: first paint {statistics.median(paints):.0f} ms, worst {max(paints):.0f} ms; "
            f"{cpu * 1000:.0f} ms of the console's CPU"
        )


def _cpu(process: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _paint(page: Page) -> float:
    while (paint := await page.evaluate(PAINT)) is None:
        await asyncio.sleep(0.01)
    return float(paint)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 20_000))
