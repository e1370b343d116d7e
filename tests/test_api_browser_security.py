"""Foreign pages in a real browser, which has the owner's session: they get nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support_endpoint import Endpoint, endpoint, running

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"{CHROMIUM} is not here", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

# Every way that a page has of asking another origin; what it was given is in `got`.
ATTACK = """<!doctype html><body><script>
const at = URL, got = [], tries = [];
const say = (how, what) => got.push(how + ": " + what);
const tried = (how, doing) => tries.push(
  Promise.resolve().then(doing).catch(() => {}));
for (const path of ["/", "/v1/models", "/metrics", "/healthz", "/live"]) {
  for (const mode of ["cors", "no-cors", "same-origin"]) tried("fetch", async () => {
    const told = await fetch(at + path, {mode, credentials: "include"});
    const text = await told.text();
    if (text.includes("secret") || text.includes("data: 0")) say("fetch " + mode + path, text);
  });
}
for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json"])
  tried("post", () => fetch(at + "/v1/echo", {method: "POST", mode: type.endsWith("json") ?
    "cors" : "no-cors", credentials: "include", headers: {"content-type": type}, body: "{}"}));
tried("post", () => fetch(at + "/do/thing", {method: "POST", mode: "no-cors",
  credentials: "include", body: new URLSearchParams({what: "attack"})}));
tried("beacon", () => navigator.sendBeacon(at + "/do/thing", new URLSearchParams({what: "x"})));
tried("img", () => new Promise(done => {
  const img = new Image(); img.onload = () => { say("img", "loaded"); done(); };
  img.onerror = done; img.src = at + "/"; document.body.append(img); }));
tried("script", () => new Promise(done => {
  const s = document.createElement("script"); s.onload = () => { say("script", "ran"); done(); };
  s.onerror = done; s.src = at + "/v1/models"; document.body.append(s); }));
tried("events", () => new Promise(done => {
  const e = new EventSource(at + "/live", {withCredentials: true});
  e.onmessage = m => { say("events", m.data); e.close(); done(); };
  e.onerror = () => { e.close(); done(); }; }));
tried("websocket", () => new Promise(done => {
  const w = new WebSocket(at.replace("http", "ws") + "/live");
  w.onopen = () => { say("websocket", "open"); done(); }; w.onerror = done; }));
const frame = name => { const f = document.createElement("iframe"); f.name = name;
  document.body.append(f); return f; };
tried("frame", () => new Promise(done => {
  const f = frame("page"); f.onload = () => { try {
    const text = f.contentDocument.body.innerText;
    if (text.includes("secret")) say("frame", text); } catch {} done(); };
  f.src = at + "/"; }));
tried("form", () => new Promise(done => {
  const f = frame("sent"); f.onload = done;
  const form = document.createElement("form"); form.method = "post"; form.target = "sent";
  form.action = at + "/do/thing"; form.innerHTML = '<input name=what value=attack>';
  document.body.append(form); form.submit(); }));
Promise.race([Promise.all(tries), new Promise(r => setTimeout(r, 4000))])
  .then(() => { window.results = got; });
</script>"""


class Foreign(BaseHTTPRequestHandler):
    """Any page of this server attacks the node at the address in its query."""

    def do_GET(self) -> None:
        body = ATTACK.replace("URL,", f"{self.path.partition('?')[2]!r},", 1).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    made = endpoint(tmp_path_factory.mktemp("home"), time.monotonic)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    resolved = "--host-resolver-rules=MAP evil.test 127.0.0.1"
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=str(CHROMIUM), args=[*flags, resolved])
        yield made
        made.close()


@pytest.fixture
def owner(browser: Any, node: Endpoint) -> Iterator[Any]:
    """A browser of the owner's, let in by a link."""
    context = browser.new_context(java_script_enabled=True)
    page = context.new_page()
    page.goto(f"{node.url}/entry?code={node.sessions.link()}")
    page.click("button")
    page.wait_for_selector("#secret")
    yield context
    context.close()


def attacked(owner: Any, page_url: str, target: str) -> list[str]:
    page = owner.new_page()
    page.goto(f"{page_url}/?{target}")
    page.wait_for_function("window.results !== undefined", timeout=20_000)
    found: list[str] = page.evaluate("window.results")
    page.close()
    return found


def test_a_page_of_another_port_gets_nothing_and_changes_nothing(
    owner: Any, node: Endpoint, foreign: int
) -> None:
    """The same site as far as cookies go: SameSite does not help here, the origin does."""
    before = node.counts.refused.copy()
    for host in ("127.0.0.1", "localhost"):
        assert attacked(owner, f"http://{host}:{foreign}", node.url) == []
    assert node.changed == []
    assert (node.counts.refused - before)["fetch_site"] > 10


def test_a_page_of_another_name_gets_nothing(owner: Any, node: Endpoint, foreign: int) -> None:
    assert attacked(owner, f"http://evil.test:{foreign}", node.url) == []
    assert node.changed == []


def test_a_name_that_is_bound_to_this_machine_gets_nothing(
    owner: Any, node: Endpoint, foreign: int
) -> None:
    """DNS rebinding: to the browser, page and node are then of one origin."""
    before = node.counts.refused.copy()
    rebound = f"http://evil.test:{node.port}"
    page = owner.new_page()
    answer = page.goto(f"{rebound}/")
    assert answer.status == 421
    assert "secret" not in page.content()
    told = page.evaluate(
        """async () => Promise.all(["/", "/v1/models", "/healthz", "/entry"].map(async path =>
            (await fetch(path, {credentials: "include"}).then(r => r.status, () => 0))))"""
    )
    assert set(told) <= {0, 421}
    page.close()
    assert attacked(owner, f"http://evil.test:{foreign}", rebound) == []
    assert (node.counts.refused - before)["host"] > 5
    assert node.changed == []


def test_an_injected_inline_script_does_not_run(owner: Any, node: Endpoint) -> None:
    page = owner.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(node.url)
    assert page.title() == "own"
    assert any("Content Security Policy" in text for text in said)
    page.close()


def test_the_owners_own_button_works_also_without_javascript(browser: Any, node: Endpoint) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{node.url}/entry?code={node.sessions.link()}")
    page.click("button")
    page.wait_for_selector("#secret")
    before = len(node.changed)
    page.click("#send")
    page.wait_for_selector("#secret")
    assert node.changed[before:] == ["thing"]
    node.changed.clear()
    context.close()
