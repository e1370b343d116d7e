"""The dashboard in headless Chromium: narrow, dark, by keyboard, without JavaScript, and live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support_dashboard import CHROMIUM, Dashboard, dashboard
from support_pages import grown

from leaves.model import Stage
from node import night_book, told
from node.api.pages.make_map import make
from node.app import App

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not Path(CHROMIUM).exists():
    pytest.skip(f"no Chromium at {CHROMIUM}", allow_module_level=True)
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = (
    *("/", "/stop", "/leaves", "/leaves/async-python", "/map", "/routing", "/rounds", "/mesh"),
    *("/rights", "/rights/grant?scope=train&source=codex", "/resources", "/endpoint"),
    *("/leaves/async-python/retract", "/rounds/proposal/1", "/leaves/nobody"),
)
# Contrast of each text to what is behind it, by WCAG 2: those below 4.5, or 3 of large text.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => {
      c /= 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (at) => {
    for (; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0.99) return found;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const each of document.querySelectorAll("body *")) {
    const text = [...each.childNodes].some((x) => x.nodeType === 3 && x.data.trim());
    const style = getComputedStyle(each);
    if (!text || !each.getClientRects().length || style.visibility === "hidden") continue;
    const svg = each.closest("svg") !== null;
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(ground(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    const told = each.textContent.trim().slice(0, 30);
    if (ratio < (large ? 3 : 4.5)) bad.push([each.tagName, each.className, told, ratio]);
  }
  return bad;
}"""
# What a keyboard must be able to reach: everything that does something and is seen.
REACHABLE = """() => [
  ...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']"),
].filter((x) => x.checkVisibility({ contentVisibilityAuto: true }) && x.type !== "hidden").length"""
STEP = "(met.add(document.activeElement), document.activeElement.tagName)"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """So few sessions that the map is laid out by PCA: umap compiles itself for ten seconds."""
    app = grown(tmp_path_factory.mktemp("browser") / "home", count=14)
    make(app)
    yield app
    app.forests.close()


@pytest.fixture(scope="module")
def served(app: App) -> Iterator[Dashboard]:
    with dashboard(app) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def opened(browser: Browser, served: Dashboard, **how: Any) -> Iterator[tuple[Page, list[str]]]:
    """A page in a window of its own; what it complained of, and what it asked of other hosts."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **how})
    context.add_cookies([served.cookie])  # type: ignore[list-item]
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda problem: wrong.append(str(problem)))
    page.on("request", lambda asked: _note(wrong, served.url, asked.url))
    yield page, wrong
    context.close()


def _note(wrong: list[str], ours: str, url: str) -> None:
    if urlsplit(url).netloc != urlsplit(ours).netloc:
        wrong.append(f"asked {url}")


def _expected(path: str, wrong: list[str]) -> list[str]:
    """A page that is not there is told to the console too."""
    return [each for each in wrong if not (path == "/leaves/nobody" and "404" in each)]


def test_no_page_is_wider_than_a_phone_and_none_breaks_the_policy_or_leaves_the_machine(
    browser: Browser, served: Dashboard
) -> None:
    with opened(browser, served, viewport={"width": 375, "height": 812}) as (page, wrong):
        for path in PAGES:
            page.goto(served.url + path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 375, f"{path} is {wide} wide"
            assert _expected(path, wrong) == [], path
            wrong.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(
    browser: Browser, served: Dashboard, scheme: str
) -> None:
    with opened(browser, served, color_scheme=scheme, reduced_motion="reduce") as (page, _):
        for path in PAGES:
            page.goto(served.url + path)
            assert page.evaluate(CONTRAST) == [], path


def test_the_keyboard_reaches_everything_and_begins_with_the_skip_link(
    browser: Browser, served: Dashboard
) -> None:
    with opened(browser, served) as (page, _):
        for path in ("/", "/leaves", "/rounds", "/rights", "/stop", "/map"):
            page.goto(served.url + path)
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            page.evaluate("window.met = new Set([document.activeElement])")
            count = page.evaluate(REACHABLE)
            for _ in range(2 * count + 20):  # a date has three stops
                page.keyboard.press("Tab")
                if page.evaluate(STEP) == "BODY":
                    break
            # Each thing was met, and none held the focus.
            met = page.evaluate("[...met].filter((x) => x !== document.body).length")
            assert met >= count, path


def test_the_focus_is_seen(browser: Browser, served: Dashboard) -> None:
    with opened(browser, served) as (page, _):
        page.goto(served.url)
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_button_works_by_the_keyboard_and_without_javascript(
    browser: Browser, served: Dashboard, app: App
) -> None:
    with opened(browser, served, java_script_enabled=False) as (page, _):
        for path in PAGES:
            page.goto(served.url + path)
            assert page.locator("h1").count() == 1
            assert len(page.locator("main").inner_text()) > 40
        page.goto(f"{served.url}/stop")
        page.get_by_role("button", name="For 2 hours").press("Enter")
        assert "Paused for 2h" in page.locator("[role=status]").last.inner_text()
    assert night_book.resume(app.home)


def test_the_tree_and_growth_are_read_without_the_maps_script(
    browser: Browser, served: Dashboard
) -> None:
    with opened(browser, served, java_script_enabled=False) as (page, _):
        page.goto(f"{served.url}/map")
        assert page.locator("#leaves li").count() > 5


def test_the_map_is_drawn_and_its_keys_zoom(browser: Browser, served: Dashboard) -> None:
    with opened(browser, served) as (page, wrong):
        page.goto(f"{served.url}/map")
        page.locator("#canvas").focus()
        page.keyboard.press("+")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#said").inner_text() != ""
        assert wrong == []


def test_what_happens_is_shown_without_loading_the_page_again(
    browser: Browser, served: Dashboard, app: App
) -> None:
    with opened(browser, served) as (page, wrong):
        page.goto(served.url)
        with page.expect_response(lambda reply: reply.url.endswith("/live")):
            pass
        page.evaluate("window.same = true")
        app.events.tell(told.Told("stage", "tides: seed -> sprout"))
        page.get_by_text("tides: seed -> sprout").wait_for(timeout=15_000)
        assert page.evaluate("window.same") is True
        assert wrong == []


def test_a_new_map_is_shown_once_it_is_there(browser: Browser, served: Dashboard, app: App) -> None:
    with opened(browser, served) as (page, _):
        page.goto(f"{served.url}/map")
        before = page.locator("#state").get_attribute("data-made")
        page.get_by_role("button", name="Show how prompts begin").click()
        page.get_by_text("beginnings of your prompts").wait_for(timeout=60_000)
        assert page.locator("#state").get_attribute("data-made") != before


def test_what_somebody_is_typing_is_not_replaced(
    browser: Browser, served: Dashboard, app: App
) -> None:
    with opened(browser, served) as (page, _):
        page.goto(f"{served.url}/rights")
        page.locator("#sure").fill("delete ev")
        with page.expect_response(lambda reply: "/rights" in reply.url, timeout=15_000):
            (app.home / "capture_counts.json").touch()
        assert page.locator("#sure").input_value() == "delete ev"
        assert page.evaluate("document.activeElement.id") == "sure"


def test_an_archived_leafs_why_is_two_clicks_from_home(
    browser: Browser, served: Dashboard, app: App
) -> None:
    archived = next(x for x in app.forests.forest() if x.stage is Stage.ARCHIVED)
    with opened(browser, served) as (page, _):
        page.goto(served.url)
        page.get_by_role("link", name="Leaves", exact=True).click()
        page.get_by_role("link", name=archived.name, exact=True).click()
        assert page.get_by_text("Why it is archived").is_visible()
