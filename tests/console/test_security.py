"""Who the console answers, and what leaves it."""

import asyncio
import contextlib
import re
import signal
import sys

import aiohttp
import pytest

from tests.console.conftest import Running
from tests.rig import environment
from worker.console import server
from worker.console.security import GUESSES
from worker.console.server import Console
from worker.errors import SettingsError

pytestmark = pytest.mark.asyncio(loop_scope="module")
PASSWORD = "correct horse battery staple"
FORM = {"why": "a test"}


async def status(running: Running, method: str, path: str, **request: object) -> int:
    async with running.session.request(method, path, allow_redirects=False, **request) as response:
        return response.status


async def test_it_does_not_start_beyond_loopback_without_a_password(make_settings):
    with pytest.raises(SettingsError, match="OTT_CONSOLE_PASSWORD must be set"):
        Console(make_settings(console_host="0.0.0.0"))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", ""])
async def test_a_host_name_that_is_not_its_own_is_turned_away(console, host):
    assert await status(console, "GET", "/", headers={"Host": host}) == 421
    assert await status(console, "GET", "/", headers={"Host": "localhost:1"}) == 200


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
async def test_a_change_from_another_site_is_turned_away(console, headers):
    assert await status(console, "POST", "/logout", headers=headers) == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": console.console.url}
    assert await status(console, "POST", "/logout", headers=own) == 303


async def test_every_answer_forbids_what_its_pages_do_not_need(console):
    for path in ("/", "/nowhere", "/static/console.js"):
        async with console.session.get(path) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_password_is_asked_for_and_opens_a_session(start_console):
    console = await start_console(console_password=PASSWORD)
    async with console.session.get("/journal?status=failed", allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/login?next=/journal?status%3Dfailed"
    assert await status(console, "GET", "/", headers={"Accept": "application/json"}) == 401
    assert await status(console, "POST", "/login", data={"password": "wrong"}) == 401
    async with console.session.post(
        "/login", data={"password": PASSWORD, "next": "//evil.example"}, allow_redirects=False
    ) as response:
        assert response.headers["Location"] == "/"
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        value = response.cookies[console.cookie].value
    ours = {"Cookie": f"{console.cookie}={value}"}
    forged = {"Cookie": f"{console.cookie}={'9' + value}"}
    async with aiohttp.ClientSession(console.console.url, cookie_jar=aiohttp.DummyCookieJar()) as plain:
        assert (await plain.get("/", headers=ours, allow_redirects=False)).status == 200
        assert (await plain.get("/", headers=forged, allow_redirects=False)).status == 303


async def test_guesses_slow_down_the_guesser_alone(start_console):
    console = await start_console(console_password=PASSWORD, console_url="https://console.example/ott")
    guesser, other = ({"X-Forwarded-For": f"10.0.0.9, {address}"} for address in ("10.0.0.1", "10.0.0.2"))
    for _ in range(GUESSES):
        assert await status(console, "POST", "/login", headers=guesser, data={"password": "wrong"}) == 401
    assert await status(console, "POST", "/login", headers=guesser, data={"password": PASSWORD}) == 429
    assert await status(console, "POST", "/login", headers=other, data={"password": PASSWORD}) == 303


async def test_a_session_ends_everywhere_when_its_owner_logs_out(start_console):
    console = await start_console(console_password=PASSWORD)
    stolen = {"Cookie": f"{console.cookie}={await _log_in(console)}"}
    assert await status(console, "GET", "/", headers=stolen) == 200
    assert await status(console, "POST", "/logout", headers=stolen) == 303
    assert await status(console, "GET", "/", headers=stolen) == 303


async def test_a_change_on_loopback_wants_the_token_of_the_printed_url(console):
    token = console.console.entry.partition("?token=")[2]
    console.session.cookie_jar.clear()
    assert await status(console, "GET", "/") == 200
    assert await status(console, "POST", "/resume", data=FORM) == 403
    assert await status(console, "POST", "/resume?token=wrong", data=FORM) == 403
    assert await status(console, "POST", "/login", data={"password": ""}) == 401
    assert await status(console, "POST", "/resume", data=FORM) == 403
    async with console.session.get(f"/journal?token={token}&status=failed", allow_redirects=False) as entered:
        assert (entered.status, entered.headers["Location"]) == (303, "/journal?status=failed")
    assert await status(console, "POST", "/resume", data=FORM) != 403
    console.session.cookie_jar.clear()
    assert await status(console, "POST", f"/resume?token={token}", data=FORM) != 403


@pytest.mark.parametrize("is_stripped", [True, False])
async def test_behind_a_proxy_links_cookies_and_the_origin_follow_its_url(start_console, is_stripped):
    console = await start_console(console_password=PASSWORD, console_url="https://ops.example:8443/ott")
    base = "" if is_stripped else "/ott"
    proxied = {"Host": "ops.example", "Origin": "https://ops.example:8443"}
    async with console.session.get(f"{base}/journal", headers=proxied, allow_redirects=False) as response:
        assert response.headers["Location"] == "/ott/login?next=/journal"
    form = {"password": PASSWORD, "next": "/journal"}
    async with console.session.post(
        f"{base}/login", headers=proxied, data=form, allow_redirects=False
    ) as response:
        assert response.headers["Location"] == "/ott/journal"
        cookie = response.cookies[console.cookie]
        assert (cookie["path"], cookie["secure"]) == ("/ott", True)
    session = {**proxied, "Cookie": f"{console.cookie}={cookie.value}"}
    async with console.session.get(f"{base}/", headers=session) as response:
        links = re.findall(r'(?:href|src|action|hx-get)="(/[^"]*)"', await response.text())
    assert len(links) > 10
    assert all(link.startswith("/ott/") for link in links)
    assert await status(console, "GET", f"{base}/static/console.css", headers=session) == 200
    async with console.session.get(base or "/ott", headers=session, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/ott/")
    elsewhere = {**session, "Origin": "https://ops.example"}
    assert await status(console, "POST", f"{base}/logout", headers={**elsewhere, "Host": "127.0.0.1"}) == 403
    assert await status(console, "POST", f"{base}/logout", headers=session) == 303


async def test_two_consoles_on_one_host_have_cookies_of_their_own(make_settings):
    places = [{"prefix": "one"}, {"prefix": "two"}, {"prefix": "two", "console_url": "https://ops.example/b"}]
    names = {Console(make_settings().model_copy(update=place)).guard.cookie for place in places}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
async def test_no_other_site_loads_a_page_as_its_part(start_console, headers, answer):
    assert await status(await start_console(), "GET", "/journal?id=x", headers=headers) == answer


async def test_requests_that_are_half_sent_are_closed(start_console, monkeypatch):
    monkeypatch.setattr(server, "SILENCE", 0.5)
    console = await start_console()
    port = int(console.console.url.rpartition(":")[2])
    halves = [await asyncio.open_connection("127.0.0.1", port) for _ in range(server.CONNECTION_LIMIT + 50)]
    for _, writer in halves:
        writer.write(b"POST /pause HTTP/1.1\r\nHost: loc")
    assert await status(console, "GET", "/") == 200
    for reader, writer in halves:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert await status(console, "GET", "/") == 200


async def _log_in(console: Running) -> str:
    async with console.session.post("/login", data={"password": PASSWORD}, allow_redirects=False) as response:
        value: str = response.cookies[console.cookie].value
    console.session.cookie_jar.clear()
    return value


async def test_no_page_holds_a_secret(requester, console, secret_values):
    known = {name: secret_values[name] for name in ("applicationSecret", "pageAccessToken")}
    leaky = {**known, "page_access_tokn": known["pageAccessToken"]}
    for path in await console.paths(requester, **leaky):
        text = await console.html(path) + str(await console.json(path))
        assert "1732555047025799" in text or path in ("/audit", "/")
        assert [name for name, value in known.items() if value in text] == []


async def test_the_command_prints_its_url_first_and_ends_on_a_signal(rig):
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
