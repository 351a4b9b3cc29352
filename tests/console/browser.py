"""Chromium, the system's own, for the tests that need a real browser."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, ViewportSize, async_playwright, expect

TIMEOUT = 15_000  # milliseconds that a page may take
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
WIDE = ViewportSize(width=1280, height=860)
NARROW = ViewportSize(width=360, height=740)
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser was tested: none of {', '.join(NAMES)} is installed"
)


OpenPage = Callable[..., contextlib.AbstractAsyncContextManager[Page]]


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[OpenPage]:
    """A browser. `async with open_page(url, **options) as page` opens a page with cookies of its own. That
    fails where the browser's console told an error, such as a violation of the content security policy."""
    expect.set_options(timeout=TIMEOUT)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        @contextlib.asynccontextmanager
        async def open_page(url: str, **options: Any) -> AsyncIterator[Page]:
            told: list[str] = []
            context = await chromium.new_context(**{"base_url": url, "viewport": WIDE, **options})
            context.set_default_timeout(TIMEOUT)
            page = await context.new_page()
            page.on("console", lambda line: told.append(line.text) if line.type == "error" else None)
            page.on("pageerror", lambda error: told.append(str(error)))
            if "?token=" in url:
                await page.goto(url)
            yield page
            await context.close()
            assert told == []

        yield open_page
        await chromium.close()


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page for those who cannot see or point at it."""
    await page.evaluate(AXE)
    found: list[dict[str, Any]] = await page.evaluate("axe.run().then(result => result.violations)")
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found]
