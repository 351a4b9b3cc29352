"""Takes the pictures of deploy/docs/console.md: `python -m tests.console.pictures [FOLDER]`."""

import asyncio
import sys
from pathlib import Path

from tests.console.browser import browser
from tests.console.world import world
from worker.console.server import Console

FOLDER = Path(__file__).parents[2] / "deploy" / "console"
SIZE = {"width": 1100, "height": 700}


async def main(folder: Path) -> None:
    async with (
        world(letters=312, prefix="ott.registration.pictures") as settings,
        Console(settings) as console,
        browser() as open_page,
    ):
        for theme, path, name in (("light", "/", "overview"), ("dark", "/dead-letters", "dead-letters")):
            async with open_page(console.url, viewport=SIZE, color_scheme=theme) as page:
                await page.goto(path)
                await page.locator(".badge").wait_for()
                await page.locator(".chart rect, #letters tbody tr").first.wait_for()
                await page.locator(".causes li, tr[id^=cause]").first.wait_for()
                await page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(target))
