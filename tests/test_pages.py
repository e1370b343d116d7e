"""The dashboard without a browser: every page of every home, what buttons do, what is escaped."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from support_pages import HOSTILE, PEER, grown
from support_pictures import FixedClock

from leaves.model import Stage
from node import consenting, night_book, publishing, rights
from node.api.pages import desk, drawing, routes, views
from node.api.pages.hub import Hub
from node.api.pages.map_page import ERRAND
from node.api.pages.page import Ask
from node.api.pages.serving import Pages
from node.api.pages.worker import WAITING_MAX, Worker, WorkerBusyError
from node.app import App
from node.consent import Scope
from node.foreign import State
from node.mailbox import Retract

PAGES = (
    *("/", "/stop", "/leaves", "/map", "/routing", "/rounds", "/mesh", "/rights"),
    *("/resources", "/endpoint", "/rights/grant?scope=train", "/leaves?at=2026-06-01&q=a"),
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Not written to by any test."""
    app = grown(tmp_path_factory.mktemp("grown") / "home", count=1_200)
    yield app
    app.forests.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = grown(tmp_path / "home", count=300)
    yield app
    app.forests.close()


@pytest.fixture
def empty(tmp_path: Path) -> App:
    (tmp_path / "home").mkdir(mode=0o700)
    return App(tmp_path / "home", FixedClock())


class Browser:
    """Asks for pages as a browser does, without one."""

    def __init__(self, app: App, hub: Hub | None = None) -> None:
        self.asgi = Starlette(routes=routes(app, hub))

    def get(self, path: str) -> httpx.Response:
        return self._ask("GET", path)

    def post(self, path: str, **form: str) -> httpx.Response:
        return self._ask("POST", path, form)

    def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.asgi)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.request(method, path, data=form, follow_redirects=True)

        return trio.run(ask)


class Outline(HTMLParser):
    """What of a page is promised: no inline script or style, landmarks, labelled fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.tags: dict[str, int] = {}
        self.fields: list[dict[str, str | None]] = []
        self.labels: set[str | None] = set()
        self.foreign: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.inline += [name for name in found if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and not found.get("src")):
            self.inline += [] if found.get("type") == "application/json" else [tag]
        if tag in ("input", "select") and found.get("type") != "hidden":
            self.fields.append(found)
        if tag == "label":
            self.labels.add(found.get("for"))
        links = (found.get(name) or "" for name in ("src", "href", "action"))
        self.foreign += [link for link in links if re.match(r"(?i)\s*([a-z]+:|//)", link)]


def _sound(page: str) -> None:
    outline = Outline(page)
    assert outline.inline == []
    assert outline.foreign == []
    assert outline.tags["main"] == outline.tags["h1"] == 1
    unnamed = [
        x for x in outline.fields if "aria-label" not in x and x.get("id") not in outline.labels
    ]
    assert unnamed == []


def _files(home: Path) -> dict[str, bytes]:
    """What a page could change; what SQLite keeps for itself beside a database is none of it."""
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


@pytest.mark.parametrize("path", PAGES)
def test_every_page_of_an_empty_home_says_what_to_do_next(empty: App, path: str) -> None:
    reply = Browser(empty).get(path)
    assert reply.status_code == 200, reply.text
    _sound(reply.text)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_of_a_grown_home_is_sound(full: App, path: str) -> None:
    reply = Browser(full).get(path)
    assert reply.status_code == 200, reply.text
    _sound(reply.text)


def test_every_leaf_has_a_page_whatever_became_of_it(full: App) -> None:
    browser = Browser(full)
    for leaf in full.forests.forest():
        reply = browser.get(f"/leaves/{leaf.id}")
        assert reply.status_code == 200, leaf
        _sound(reply.text)
        assert leaf.stage.live or f"Why it is {leaf.stage.value}" in reply.text
    for known in full.foreign.all():
        assert browser.get(f"/leaves/{known.leaf.leaf}").status_code == 200


def test_why_a_leaf_was_archived_is_two_clicks_away(full: App) -> None:
    browser = Browser(full)
    assert 'href="/leaves"' in browser.get("/").text
    listed = browser.get("/leaves").text
    archived = next(x for x in full.forests.forest() if x.stage is Stage.ARCHIVED)
    why = "not routed to for 30 days here nor by others"
    assert why in listed and f'href="/leaves/{archived.id}"' in listed
    assert why in browser.get(f"/leaves/{archived.id}").text


@pytest.mark.parametrize("path", PAGES)
def test_stopping_everything_and_what_leaves_are_two_clicks_from_anywhere(
    full: App, path: str
) -> None:
    page = Browser(full).get(path).text
    assert 'href="/stop"' in page and 'href="/rights"' in page


@pytest.mark.parametrize("path", [*PAGES, "/leaves?q=%3Cscript%3E", "/mesh?q=%3Cscript%3E"])
def test_words_of_peers_and_of_prompts_are_never_markup(full: App, path: str) -> None:
    for known in full.foreign.all():
        assert HOSTILE not in Browser(full).get(f"/leaves/{known.leaf.leaf}").text
    assert "<script>" not in Browser(full).get(path).text


def test_the_mesh_shows_a_hostile_name_as_the_text_that_it_is(full: App) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in Browser(full).get("/mesh").text


def test_looking_changes_nothing(app: App) -> None:
    browser = Browser(app)
    browser.get("/")  # opens what there is, and makes the databases that are not there yet
    leaf = next(iter(app.forests.forest())).id
    every = [*PAGES, f"/leaves/{leaf}", f"/leaves/{leaf}/retract", "/rounds/proposal/1"]
    for path in every:
        browser.get(path)
    before = _files(app.home)
    for path in every:
        browser.get(path)
    assert _files(app.home) == before


def test_no_button_is_pressed_by_a_get(app: App) -> None:
    browser = Browser(app)
    for act in ("pause", "consent/revoke-all", "data/delete", "approve"):
        assert browser.get(f"/do/{act}").status_code == 405
    assert night_book.read_pause(app.home) is None


def test_an_unknown_leaf_and_an_unknown_button_are_told_as_such(app: App) -> None:
    reply = Browser(app).get("/leaves/nobody")
    assert reply.status_code == 404 and "no leaf is called" in reply.text
    assert Browser(app).post("/do/nothing").status_code == 404


def test_pause_and_resume_are_one_button_each(app: App) -> None:
    browser = Browser(app)
    reply = browser.post("/do/pause", **{"for": "2h", "back": "/stop"})
    assert "Paused for 2h" in reply.text and reply.url.path == "/stop"
    pause = night_book.read_pause(app.home)
    assert pause is not None and pause.until == app.now() + 7200
    browser.post("/do/resume", back="/")
    assert night_book.read_pause(app.home) is None


def test_a_length_of_time_that_is_none_is_told_and_pauses_nothing(app: App) -> None:
    reply = Browser(app).post("/do/pause", **{"for": "soon", "back": "/resources"})
    assert 'role="alert"' in reply.text and "nothing was paused" in reply.text
    assert night_book.read_pause(app.home) is None


def test_a_button_never_leads_to_another_host(app: App) -> None:
    for evil in (
        "//evil.example",
        "https://evil.example",
        "/leaves//evil",
        "/\\evil",
        "javascript:",
    ):
        reply = Browser(app).post("/do/resume", back=evil)
        assert (reply.url.host, reply.url.path) == ("node", "/")


def test_a_message_is_only_shown_to_who_was_sent_there(app: App) -> None:
    assert "call this number" not in Browser(app).get("/?said=call+this+number").text


def test_a_form_of_another_session_does_nothing(app: App) -> None:
    hub = Hub(form_token=lambda request: "mine", form_fits=lambda request, word: word == "mine")
    browser = Browser(app, hub)
    assert browser.post("/do/pause").status_code == 403
    assert night_book.read_pause(app.home) is None
    assert 'name="form_token" value="mine"' in browser.get("/stop").text
    assert browser.post("/do/pause", form_token="mine").status_code == 200
    assert night_book.read_pause(app.home) is not None


def test_a_proposal_is_answered_with_what_it_would_do_in_sight(app: App) -> None:
    browser = Browser(app)
    assert "2 parts of 100 sessions or more" in browser.get("/rounds").text
    assert "Goes to" in browser.get("/rounds/proposal/1").text
    browser.post("/do/approve", proposal="1")
    assert app.forests.proposals.current()[0].yes is True
    browser.post("/do/refuse", proposal="1")
    assert app.forests.proposals.current()[0].yes is False


def test_consent_is_granted_only_after_its_words(app: App) -> None:
    browser = Browser(app)
    browser.post("/do/consent/revoke", scope="publish", back="/rights")
    assert not app.allows("publish") and app.allows("train")
    words = browser.get("/rights/grant?scope=publish").text
    assert "An adapter can retain traces of what it was trained on" in words
    browser.post("/do/consent/grant", scope="publish")
    assert app.allows("publish")
    browser.post("/do/consent/revoke-all", back="/stop")
    assert app.consent.scopes(app.user_id) == frozenset[Scope]()


def test_a_folder_that_is_not_there_is_not_asked_for(app: App, tmp_path: Path) -> None:
    reply = Browser(app).get(f"/rights/grant?folder={tmp_path}/nowhere")
    assert reply.status_code == 503 and "no such folder" in reply.text


def test_a_leaf_is_renamed_and_a_bad_name_is_refused_in_words(app: App) -> None:
    leaf = next(x for x in app.forests.forest() if x.stage is Stage.MATURE)
    browser = Browser(app)
    assert "cannot be a name" in browser.post("/do/leaf/rename", leaf=leaf.id, to="A B!").text
    assert (
        "It is called snakes now" in browser.post("/do/leaf/rename", leaf=leaf.id, to="snakes").text
    )
    assert app.forests.forest().leaves[leaf.id].name == "snakes"


def test_a_leaf_is_retracted_after_a_page_that_asks(app: App) -> None:
    leaf = next(x for x in app.forests.forest() if x.stage is Stage.MATURE)
    browser = Browser(app)
    assert "Peers drop it for ever" in browser.get(f"/leaves/{leaf.id}/retract").text
    assert app.mailbox.waiting() == []
    assert "Retracted" in browser.post("/do/leaf/retract", leaf=leaf.id).text
    assert [letter.order for letter in app.mailbox.waiting()] == [Retract(leaf.id)]


def test_the_owners_word_on_a_topic_is_kept(app: App) -> None:
    leaf = next(x for x in app.forests.forest() if x.stage is Stage.MATURE)
    Browser(app).post("/do/leaf/withhold", leaf=leaf.id)
    assert publishing.words(app.home).said == {leaf.id: False}


def test_a_peers_leaf_is_pinned_and_fetched_only_while_a_node_runs(app: App) -> None:
    known = next(x for x in app.foreign.all() if x.state is State.HEARD and x.leaf.root)
    browser, form = Browser(app), {"origin": PEER, "leaf": known.leaf.leaf, "back": "/mesh"}
    assert "no node is running" in browser.post("/do/mesh/fetch", **form).text
    assert "stays on disk" in browser.post("/do/mesh/pin", **form).text
    assert "makes room" in browser.post("/do/mesh/unpin", **form).text


def test_deletion_wants_its_sentence_typed(app: App) -> None:
    reply = Browser(app).post("/do/data/delete", sure="yes")
    assert "was not typed" in reply.text and len(app.embeddings) == 300


def test_the_token_is_shown_by_a_button_alone(app: App) -> None:
    browser = Browser(app, Hub(secret=lambda: "sesame", url=lambda: "http://127.0.0.1:9"))
    page = browser.get("/endpoint").text
    assert "sesame" not in page and "http://127.0.0.1:9/v1" in page
    assert "sesame" in browser.post("/do/endpoint/token").text


def test_a_copy_of_what_is_stored_is_what_lies_on_disk(app: App) -> None:
    folder = app.home / "training_data"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "training_2026-07-01.jsonl").write_bytes(b'{"a":1}\n')
    (folder / "training_2026-07-02.jsonl").write_bytes(b'{"b":2}\n')
    assert Browser(app).get("/rights/export").content == b'{"a":1}\n{"b":2}\n'


def test_a_damaged_database_costs_its_page_and_says_what_to_do(app: App) -> None:
    app.forests.close()
    (app.home / "leaves.db").write_bytes(b"no database" * 500)
    for extra in ("-wal", "-shm"):
        (app.home / f"leaves.db{extra}").unlink(missing_ok=True)
    hub = Hub()
    reply = Browser(app, hub).get("/leaves")
    assert reply.status_code == 503 and "leaves.db" in reply.text
    assert hub.counts.failures["page_HomeError"] == 1


def test_a_map_is_made_in_a_child_and_shown_with_its_tree(tmp_path: Path) -> None:
    app = grown(tmp_path / "home", count=14)  # so few are laid out by PCA, within a second
    pages = Pages(app, Hub())
    errands = pages._desk.errands

    async def made() -> str:
        asgi = Starlette(routes=pages.routes())
        transport = httpx.ASGITransport(asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            assert "There is no map yet" in (await client.get("/map")).text
            await client.post("/do/map")
            with trio.fail_after(60):
                while errands.running(ERRAND):
                    await trio.sleep(0.05)
            return (await client.get("/map")).text

    page = trio.run(made)
    _sound(page)
    assert "Laid out by PCA" in page and 'id="canvas"' in page and "/static/map.js" in page
    assert '"texts":null' in page
    assert (app.home / "map" / "map.json").stat().st_mode & 0o777 == 0o600
    rights.delete(app)
    assert not (app.home / "map").exists()


def test_open_pages_are_told_what_changed_and_no_more(app: App) -> None:
    pages = Pages(app, Hub())

    async def told() -> list[bytes]:
        events = pages._live.open()
        assert events is not None
        found = [await anext(events)]
        night_book.pause(app.home, app.now(), None)
        with trio.fail_after(30):
            found.append(await anext(events))
        await events.aclose()
        return found

    opened, changed = trio.run(told)
    assert opened.startswith(b"retry:")
    assert changed == b'event: changed\ndata: ["night"]\n\n'


def test_no_more_than_a_bounded_number_of_pages_listens(app: App) -> None:
    live = Pages(app, Hub())._live

    async def crowd() -> int:
        opened: list[AsyncGenerator[bytes, None]] = []
        while len(opened) < 100 and (events := live.open()) is not None:
            opened.append(events)
            await anext(events)
        for events in opened:
            await events.aclose()
        return len(opened)

    assert trio.run(crowd) == 32


def test_the_thread_takes_no_more_than_can_wait() -> None:
    worker = Worker()
    busy: list[WorkerBusyError] = []

    async def crowd() -> None:
        gate = threading.Event()

        async def one() -> None:
            try:
                await worker.do(gate.wait)
            except WorkerBusyError as problem:
                busy.append(problem)

        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_MAX + 8):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()

    trio.run(crowd)
    assert 1 <= len(busy) <= 8


def test_figures_over_very_many_sessions_are_counted_after_the_page(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "AT_ONCE_MAX", 10)
    pages = Pages(app, Hub())
    told = pages._desk.stamps()["figures"]

    async def twice() -> tuple[str, str]:
        transport = httpx.ASGITransport(Starlette(routes=pages.routes()))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            first = (await client.get("/leaves")).text
            with trio.fail_after(30):
                while pages._desk.stamps()["figures"] == told:
                    await trio.sleep(0.01)
            return first, (await client.get("/leaves")).text

    first, second = trio.run(twice)
    assert "last twelve" not in first and "last twelve" in second


def test_a_replay_of_very_many_sessions_is_left_to_a_child(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views.rounds, "AT_ONCE_MAX", 10)
    pages = Pages(app, Hub())

    async def twice() -> tuple[str, str]:
        transport = httpx.ASGITransport(Starlette(routes=pages.routes()))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            first = (await client.get("/rounds/proposal/1")).text
            with trio.fail_after(60):
                while pages._desk.errands.running("replay"):
                    await trio.sleep(0.05)
            return first, (await client.get("/rounds/proposal/1")).text

    first, second = trio.run(twice)
    assert "look again in a moment" in first and "Goes to" not in first
    assert "Goes to" in second


def test_trouble_of_the_endpoint_is_told_on_the_first_page(full: App) -> None:
    hub = Hub()
    hub.counts.failures["upstream_down"] = 3
    assert "upstream down 3" in Browser(full, hub).get("/").text


@given(st.text(min_size=1), st.lists(st.integers(0, 10**9), min_size=1, max_size=70))
def test_a_drawing_holds_no_markup_but_its_own(name: str, counts: list[int]) -> None:
    evil = f'<script>{name}</script>"'
    series = [drawing.Series(evil, "#000", tuple(counts))]
    drawn = str(drawing.stacked(series, 20_000, 7)) + str(drawing.sparkline(counts, evil))
    assert "<script" not in drawn
    ElementTree.fromstring(f"<all>{''.join(c for c in drawn if c.isprintable())}</all>")


@given(st.lists(st.floats(-1, 1), max_size=50), st.none() | st.floats(0, 1))
def test_a_histogram_takes_any_cosine(values: list[float], gate: float | None) -> None:
    drawn = str(drawing.histogram(values, gate=gate))
    assert bool(drawn) == bool(values)


@given(st.text())
def test_a_number_of_an_address_is_one_within_its_bounds_or_none(text: str) -> None:
    assert 1 <= Ask("/", {"page": text}).number("page", 1, 7, 1) <= 7


def test_what_is_raised_in_the_thread_is_raised_where_it_is_waited_for() -> None:
    async def ask() -> None:
        with pytest.raises(ZeroDivisionError):
            await Worker().do(lambda: 1 // 0)

    trio.run(ask)


def test_the_endpoint_can_be_allowed_as_a_source_on_its_page(app: App) -> None:
    browser = Browser(app)
    for source in ("endpoint", "otlp", "litellm"):
        assert f"/rights/grant?source={source}" in browser.get("/rights").text
    browser.post("/do/consent/grant", source="endpoint", scope="capture")
    assert "endpoint" in consenting.standing(app)["sources"]


def test_the_first_page_says_that_the_node_is_paused_and_where_to_go_on(app: App) -> None:
    browser = Browser(app)
    browser.post("/do/pause", **{"for": "2h", "back": "/"})
    assert ">Resume</a>" in browser.get("/").text
