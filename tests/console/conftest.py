"""A console on a free port, over a real broker."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest_asyncio

from tests.console.browser import OpenPage, browser
from tests.rig import Requester, Rig, messenger, until
from worker.console.rendering import PAGES
from worker.console.server import Console
from worker.settings import Settings

JSON = {"Accept": "application/json"}


class Running:
    """A console and a client for it, without cookies unless `session` is used again."""

    def __init__(self, console: Console, session: aiohttp.ClientSession) -> None:
        self.console = console
        self.cookie = console.guard.cookie
        self.session = session

    async def json(self, path: str) -> dict[str, Any]:
        async with self.session.get(path, headers=JSON) as response:
            document = await response.json()
            assert isinstance(document, dict)
            return document

    async def becomes(self, path: str, is_so: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait until the page is so; its document."""

        async def page() -> dict[str, Any] | None:
            document = await self.json(path)
            return document if is_so(document) else None

        return dict(await until(page, f"what is expected of {path}"))

    async def paths(self, requester: Requester, **attributes: str) -> list[str]:
        """One path for each page of PAGES, with a letter of its own behind them."""
        reply = await requester.ask(messenger("1732555047025799", endpointUrl="", **attributes))
        letter = str(reply["requestId"])
        await self.becomes("/dead-letters", lambda page: letter in str(page))
        async with self.session.post(
            "/runs", headers=JSON, data={"do": "replay", "letter": letter}
        ) as response:
            run = (await response.json())["run"]
        known = {"letter": letter, "number": run, "platform": "messenger", "resource": "1732555047025799"}
        return [re.sub(r"{(\w+)[^}]*}", lambda found: known[found[1]], page.path) for page in PAGES]

    async def html(self, path: str) -> str:
        async with self.session.get(path) as response:
            return await response.text()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(make_settings: Callable[..., Settings]) -> AsyncIterator[Rig]:
    """As everywhere, in the loop that the tests of a module share with their browser."""
    async with Rig(make_settings) as a_rig:
        yield a_rig


@pytest_asyncio.fixture(loop_scope="module")
async def requester(rig: Rig) -> Requester:
    return await rig.start()


@pytest_asyncio.fixture(loop_scope="module")
async def start_console(rig: Rig) -> AsyncIterator[Callable[..., object]]:
    """`await start_console(**settings)` serves the broker objects of `rig`."""
    started: list[Running] = []

    async def start(**overrides: object) -> Running:
        settings: Settings = rig.settings(console_port=0, **overrides)
        console = await Console(settings).__aenter__()
        jar = aiohttp.CookieJar(unsafe=True)  # the console is at an address
        running = Running(console, aiohttp.ClientSession(console.url, cookie_jar=jar))
        if console.entry.startswith(console.url):
            await (
                await running.session.get(console.entry.removeprefix(console.url), allow_redirects=False)
            ).release()
        started.append(running)
        return running

    yield start
    for running in started:
        await running.session.close()
        await running.console.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="module")
async def console(start_console: Callable[..., Awaitable[Running]]) -> Running:
    return await start_console()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def open_page() -> AsyncIterator[OpenPage]:
    """Opens pages in one browser, which the tests of a module share."""
    async with browser() as opens:
        yield opens
