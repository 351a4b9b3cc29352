"""Who the console answers, and what leaves it."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from tests.console.conftest import Running
from tests.rig import Rig, environment, messenger, until
from worker.console.server import Console
from worker.console.session import GUESSES
from worker.errors import SettingsError
from worker.settings import Settings

Start = Callable[..., Awaitable[Running]]
pytestmark = pytest.mark.asyncio(loop_scope="module")
PASSWORD = "correct horse battery staple"
FORM = {"why": "a test"}


async def status(running: Running, method: str, path: str, **request: object) -> int:
    async with running.session.request(method, path, allow_redirects=False, **request) as response:  # type: ignore[arg-type]
        return response.status


async def test_it_does_not_start_beyond_loopback_without_a_password(
    make_settings: Callable[..., Settings],
) -> None:
    with pytest.raises(SettingsError, match="OTT_CONSOLE_PASSWORD must be set"):
        Console(make_settings(console_host="0.0.0.0"))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", ""])
async def test_a_host_name_that_is_not_its_own_is_turned_away(start_console: Start, host: str) -> None:
    console = await start_console()
    assert await status(console, "GET", "/", headers={"Host": host}) == 421
    assert await status(console, "GET", "/", headers={"Host": "localhost:1"}) == 200


async def test_a_host_name_that_was_allowed_is_answered(start_console: Start) -> None:
    console = await start_console(console_allowed_hosts="console.example, other.example")
    assert await status(console, "GET", "/", headers={"Host": "console.example"}) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_a_change_from_another_site_is_turned_away(
    start_console: Start, headers: dict[str, str]
) -> None:
    console = await start_console()
    assert await status(console, "POST", "/theme", headers=headers, data={"theme": "dark"}) == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": console.console.url}
    assert await status(console, "POST", "/theme", headers=own, data={"theme": "dark"}) == 303


async def test_every_answer_forbids_what_its_pages_do_not_need(start_console: Start) -> None:
    console = await start_console()
    for path in ("/", "/nowhere", "/static/console.js"):
        async with console.session.get(path) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_password_is_asked_for_and_opens_a_session(start_console: Start) -> None:
    console = await start_console(console_password=PASSWORD)
    async with console.session.get("/journal?status=failed", allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/login?next=/journal%3Fstatus%3Dfailed"
    assert await status(console, "GET", "/", headers={"Accept": "application/json"}) == 401
    assert await status(console, "POST", "/login", data={"password": "wrong"}) == 401
    async with console.session.post(
        "/login", data={"password": PASSWORD, "next": "//evil.example"}, allow_redirects=False
    ) as response:
        assert response.headers["Location"] == "/"
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        value = response.cookies["ott-console"].value
    ours = {"Cookie": f"ott-console={value}"}
    forged = {"Cookie": f"ott-console={'9' + value}"}
    async with aiohttp.ClientSession(console.console.url, cookie_jar=aiohttp.DummyCookieJar()) as plain:
        assert (await plain.get("/", headers=ours, allow_redirects=False)).status == 200
        assert (await plain.get("/", headers=forged, allow_redirects=False)).status == 303


async def test_guesses_are_limited(start_console: Start) -> None:
    console = await start_console(console_password=PASSWORD)
    for _ in range(GUESSES):
        assert await status(console, "POST", "/login", data={"password": "wrong"}) == 401
    assert await status(console, "POST", "/login", data={"password": PASSWORD}) == 429


async def test_a_changed_password_ends_the_sessions(
    start_console: Start, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = os.path.join(str(tmp_path), "password")
    with open(file, "w") as written:
        written.write(PASSWORD)
    monkeypatch.setenv("OTT_CONSOLE_PASSWORD_FILE", file)
    console = await start_console()
    jar = {"Cookie": f"ott-console={await _log_in(console)}"}
    assert await status(console, "GET", "/", headers=jar) == 200
    with open(file, "w") as written:
        written.write("another")
    console.session.cookie_jar.clear()
    assert await status(console, "GET", "/", headers=jar) == 303


async def _log_in(console: Running) -> str:
    async with console.session.post("/login", data={"password": PASSWORD}, allow_redirects=False) as response:
        value: str = response.cookies["ott-console"].value
    console.session.cookie_jar.clear()
    return value


async def test_no_page_holds_a_secret(rig: Rig, start_console: Start, secret_values: dict[str, str]) -> None:
    requester = await rig.start()
    known = {name: secret_values[name] for name in ("applicationSecret", "pageAccessToken")}
    reply = await requester.ask(messenger(endpointUrl="", **known, page_access_tokn=known["pageAccessToken"]))
    console = await start_console()
    request_id = str(reply["requestId"])
    await until(lambda: _lists(console, request_id), "the letter on its page")
    for path in (
        "/",
        "/dead-letters",
        f"/dead-letters/{request_id}",
        "/journal",
        "/resources/messenger/1732555047025799",
        "/audit",
    ):
        text = await console.html(path) + str(await console.json(path))
        assert [name for name, value in known.items() if value in text] == []


async def _lists(console: Running, request_id: str) -> bool:
    return request_id in str(await console.json("/dead-letters"))


async def test_the_command_prints_its_url_first_and_ends_on_a_signal(rig: Rig) -> None:
    settings = rig.settings(console_port=0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "console", env=environment(settings), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
