"""The console as an operator uses it, in a real browser."""

import pytest
from playwright.async_api import expect

from tests.console.browser import NARROW, WIDE, needs_chromium, violations
from tests.console.conftest import Running
from tests.console.test_changes import dead, refusal
from tests.rig import messenger, until

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]
SECRET = "the-new-token-that-nobody-may-see"


async def test_what_happens_appears_by_itself_and_disturbs_nobody(requester, console, open_page):
    for page_id in range(12):
        await dead(requester, str(page_id))
    async with open_page(console.console.entry, viewport={"width": 1280, "height": 500}) as page:
        await page.goto("/dead-letters")
        await expect(page.locator("#letters tbody tr")).to_have_count(12)
        await page.check("#letters tbody tr >> nth=4 >> input")
        picked = await page.locator("input[name=pick]:checked").get_attribute("value")
        await page.fill("#filter-error", "half a wo")
        await page.evaluate("scrollTo(0, 150)")
        await dead(requester, "13")
        await expect(page.locator("h1")).to_contain_text("13")
        await expect(page.locator("input[name=pick]:checked")).to_have_attribute("value", str(picked))
        await expect(page.locator("#filter-error")).to_be_focused()
        await expect(page.locator("#filter-error")).to_have_value("half a wo")
        assert await page.evaluate("scrollY") == 150


async def test_live_can_be_stopped_and_nothing_is_asked_for_while_nobody_looks(rig, console, open_page):
    await rig.start()
    async with open_page(console.console.entry) as page:
        await page.clock.install()
        await page.goto("/")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.run_for(2_100)
        await until(lambda: asked, "a refresh")
        await page.click("#live-toggle")
        await expect(page.locator("#live-toggle")).to_have_attribute("aria-pressed", "false")
        before = len(asked)
        await page.clock.run_for(10_000)
        assert len(asked) == before
        await page.click("#live-toggle")
        await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
        before = len(asked)
        await page.clock.run_for(10_000)
        assert len(asked) == before


async def test_a_cause_is_replayed_by_plan_and_canary(rig, requester, console, open_page):
    rig.sandbox.faults.add(refusal(3))
    for page_id in ("1", "2", "3"):
        await dead(requester, page_id, endpointUrl="https://example.com")
    await dead(requester, "4")
    async with open_page(console.console.entry) as page:
        await page.goto("/")
        await page.get_by_role("link", name="3 rejected").click()
        await expect(page.locator("#letters tbody tr")).to_have_count(3)
        await page.get_by_role("button", name="Replay all 3…").click()
        await expect(page.locator("h1")).to_have_text("Replay 3 letters?")
        await expect(page.get_by_text("3 would be replayed")).to_be_visible()
        await expect(page.get_by_label("1 letter")).to_be_checked()
        await page.get_by_role("button", name="Replay 3").click()
        await expect(page.locator("h1")).to_have_text("Replay 3 letters?")  # it wants a reason
        await page.get_by_label("Why?").fill("the scope was granted")
        await page.get_by_role("button", name="Replay 3").click()
        await expect(page.locator("h1")).to_have_text("3 replayed")
        await expect(page.locator("tbody .status", has_text="registered")).to_have_count(3)
        await page.get_by_role("link", name="Audit").click()
        await expect(page.locator("tbody tr").first).to_contain_text("the scope was granted")
        await page.goto("/resources/messenger/1")
        await expect(page.locator(".timeline li")).to_have_count(2)
        await expect(page.locator(".timeline li").first).to_contain_text("registered")


async def test_a_letter_is_mended_in_a_form_that_never_shows_a_secret(requester, console, open_page):
    request_id = await dead(requester, "1")
    async with open_page(console.console.entry) as page:
        await page.goto(f"/dead-letters/{request_id}")
        await page.locator("#correct summary").click()
        await page.get_by_label("endpointUrl").fill("https://example.com/new")
        await page.get_by_label("pageAccessToken").fill(SECRET)
        await page.get_by_role("button", name="Show the difference…").click()
        difference = page.locator(".difference")
        await expect(difference).to_contain_text("https://example.com/new")
        assert SECRET not in await page.content()
        assert SECRET not in page.url
        await page.get_by_label("Why?").fill("the token expired")
        await page.get_by_role("button", name="Replay 1").click()
        await expect(page.locator("tbody .status", has_text="registered")).to_have_count(1)


async def letters(console: Running, count: int) -> list[str]:
    """The keys of so many letters, the newest first."""
    shown = await console.becomes("/dead-letters", lambda page: len(page["letters"]) == count)
    return [each["letter"] for each in shown["letters"]]


async def test_everything_can_be_reached_by_keys(requester, console, open_page):
    for page_id in ("1", "2", "3"):
        await dead(requester, page_id)
    newest = await letters(console, 3)
    async with open_page(console.console.entry) as page:
        await page.goto("/")
        await page.keyboard.press("?")
        await expect(page.locator("#help")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#help")).to_be_hidden()
        await page.keyboard.press("g")
        await page.keyboard.press("d")
        await expect(page.locator("#letters tbody tr")).to_have_count(3)
        await page.keyboard.press("j")  # the row of the cause
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await expect(page.locator("input[name=pick]:checked")).to_have_attribute("value", newest[1])
        await page.keyboard.press("k")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{console.console.url}/dead-letters/{newest[0]}")


async def test_pages_can_be_looked_at_and_used_without_a_script(requester, console, open_page):
    await dead(requester, "1")
    (key,) = await letters(console, 1)
    async with open_page(console.console.entry, java_script_enabled=False) as page:
        await page.goto("/dead-letters")
        await page.get_by_role("link", name=key, exact=True).click()
        await expect(page.locator("h1")).to_contain_text("invalid")
        await page.get_by_role("button", name="Discard…").click()
        await page.get_by_label("Enter 1").fill("1")
        await page.get_by_label("Why?").fill("a test")
        await page.get_by_role("button", name="Discard 1").click()
        await expect(page.locator("h1")).to_have_text("1 discarded")


@pytest.mark.parametrize(("theme", "size"), [("light", WIDE), ("dark", NARROW)])
async def test_pages_are_for_everybody(requester, console, open_page, theme, size):
    await requester.ask(messenger("1932555047025799"))
    paths = await console.paths(requester)
    async with open_page(console.console.entry, color_scheme=theme, viewport=size) as page:
        for path in paths:
            await page.goto(path)
            await expect(page.locator("h1, .banner p").first).to_be_visible()
            assert (path, await violations(page)) == (path, [])
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert (path, width) == (path, size["width"])
