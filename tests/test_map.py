"""The map: one file, of nothing that the owner did not ask for, the same for the same sessions."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support_pictures import DAYS, FIRST_DAY, a_leaf, grow, planted, vectors

from leaves.lifecycle import Rules
from leaves.model import DAY_S, Instant, LeafId, Stage, leaf_id
from leaves.ports import Progress
from leaves.store import HistoryEntry
from node import overview
from node.app import App
from node.cli import main
from node.errors import MisuseError, OwnerError
from node.pictures import atlas as atlas_of
from node.pictures import marks, target
from node.pictures.atlas import Atlas, gather
from node.pictures.growth import BARS_MAX, events, growth, life
from node.pictures.page import page
from node.pictures.png import png
from node.pictures.projection import densest, project, sampled

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def laid_out_by_pca(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """umap compiles itself for ten seconds, so that only the test of it lets it be imported."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = planted(tmp_path / "home")
    yield app
    app.forests.close()


# Marks


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60, unique=True), st.data())
def test_a_birth_changes_no_mark_of_an_older_leaf(births: list[int], data: st.DataObject) -> None:
    leaves = [
        replace(a_leaf(1, "x"), id=leaf_id(b"\1" * 32, birth), created=Instant(at))
        for at, birth in enumerate(births)
    ]
    known = marks.marks(leaves[: data.draw(st.integers(0, len(leaves)))])
    assert known.items() <= marks.marks(reversed(leaves)).items()


def test_the_first_thirty_two_leaves_have_a_mark_of_their_own() -> None:
    leaves = [replace(a_leaf(1, "x"), id=leaf_id(b"\1" * 32, n)) for n in range(32)]
    assert len(set(marks.marks(leaves).values())) == 32


def test_no_two_colours_are_alike_to_any_eye() -> None:
    """OKLab distance of 0.02 is just noticed; dichromats' views after Machado et al. 2009."""
    views = [np.eye(3), *(np.array(view) for view in DICHROMATS)]
    colours = [*marks.COLOURS, marks.UNASSIGNED.colour]
    seen = [[oklab(view @ linear(colour)) for view in views] for colour in colours]
    for (one, a), (other, b) in combinations(zip(colours, seen, strict=True), 2):
        apart = min(float(np.linalg.norm(x - y)) for x, y in zip(a, b, strict=True))
        assert apart > 0.1, (one, other, apart)


DICHROMATS = (  # protanopes, deuteranopes, tritanopes; on linear RGB
    [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
)


def linear(colour: str) -> NDArray[np.float64]:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    rgb: NDArray[np.float64] = np.where(
        parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
    )
    return rgb


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[np.float64] = opponents @ np.cbrt(np.clip(cones @ rgb, 0, None))
    return lab


# Where sessions lie


def test_a_sample_depends_on_the_ids_alone_and_grows_by_addition() -> None:
    ids = [f"s{n}" for n in range(500)]
    few = {ids[row] for row in sampled(ids, 50)}
    assert few == {ids[::-1][row] for row in sampled(ids[::-1], 50)}
    assert len(few) == 50 and few <= {ids[row] for row in sampled(ids, 120)}
    assert [ids[row] for row in sampled(ids, 1000)] == sorted(ids)


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_few_sessions_are_laid_out_by_pca_and_told_so(count: int) -> None:
    laid = project(vectors(count, 3)[2])
    assert (laid.method, "15" in laid.why) == ("PCA", True)
    assert laid.places.shape == (count, 2) and np.isfinite(laid.places).all()
    assert laid.places.min() >= 0 and laid.places.max() <= 1


def test_without_umap_learn_pca_lays_out_and_it_is_told() -> None:
    laid = project(vectors(60, 3)[2])
    assert (laid.method, laid.why) == ("PCA", "umap-learn is not installed")


def test_sessions_that_are_all_alike_have_a_place() -> None:
    laid = project(np.repeat(vectors(1, 1)[2], 40, axis=0))
    assert laid.method == "PCA" and np.isfinite(laid.places).all()


@pytest.mark.slow
def test_umap_gives_the_same_picture_whatever_the_order_and_can_be_cancelled() -> None:
    ids, _, rows = vectors(400, 4)
    forth, back = np.argsort(ids), np.argsort(ids[::-1])
    told: list[Progress] = []
    first = project(rows[forth], told.append)
    again = project(rows[::-1][back])
    assert first.method == "UMAP" and not first.why
    assert (first.places == again.places).all()
    phases = [progress.phase for progress in told]
    assert set(phases) == {"map: loading", "map: neighbours", "map: layout"}
    assert any(p.phase == "map: neighbours" and p.done == p.total == 400 for p in told)
    topics = np.arange(400)[forth] % 4
    assert nearest_is_of_the_same(first.places, topics) > 0.8

    def cancel(progress: Progress) -> None:
        if progress.phase == "map: layout":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(rows, cancel)


def nearest_is_of_the_same(places: NDArray[np.float32], topics: NDArray[np.int64]) -> float:
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(len(places))
    return float((topics[apart.argmin(axis=1)] == topics).mean())


def test_a_name_goes_where_its_leaf_is_densest() -> None:
    crowd = np.full((30, 2), 0.8, np.float32) + np.linspace(0, 0.01, 30, dtype=np.float32)[:, None]
    strays = np.linspace(0, 0.5, 20, dtype=np.float32)[:, None].repeat(2, axis=1)
    assert densest(np.concatenate([strays, crowd])) == pytest.approx((0.805, 0.805), abs=0.02)


# Growth


@given(st.lists(st.tuples(st.integers(0, 40_000), st.sampled_from("abc")), min_size=1, max_size=50))
def test_every_session_is_counted_once_in_a_week_that_begins_on_a_monday(
    sessions: list[tuple[int, str]],
) -> None:
    ids = [str(n) for n in range(len(sessions))]
    days = [day for day, _ in sessions]
    leaf_of = {id_: LeafId(leaf) for id_, (_, leaf) in zip(ids, sessions, strict=True)}
    found = growth(ids, days, leaf_of, [LeafId("a"), LeafId("b")])
    assert found.counts.sum() == len(sessions)
    assert found.counts[2].sum() == sum(leaf == "c" for _, leaf in sessions)
    assert found.counts.shape[1] <= BARS_MAX and found.days_per_bar % 7 == 0
    assert (found.first_day + 3) % 7 == 0 and found.first_day <= min(days)


def entry(day: int, stage: Stage, sessions: int) -> HistoryEntry:
    leaf = a_leaf(1, "x", stage=stage, sessions=sessions)
    return HistoryEntry(Instant(day * DAY_S), 1, leaf, "drifted", "")


def test_a_life_keeps_every_change_of_stage_and_one_entry_a_week() -> None:
    days = range(FIRST_DAY, FIRST_DAY + 14)
    daily = [entry(day, Stage.SEED, day - FIRST_DAY) for day in days]
    later = [entry(days[-1], Stage.SPROUT, 20), entry(days[-1], Stage.MATURE, 20)]
    told = [(then.day - FIRST_DAY, then.stage, then.sessions) for then in life(daily + later)]
    seed = [(0, Stage.SEED, 6), (7, Stage.SEED, 13)]
    assert told == [*seed, (13, Stage.SPROUT, 20), (13, Stage.MATURE, 20)]
    assert [event.what for event in events(daily + later)] == ["born", "sprout", "mature"]


# The page


class Parsed(HTMLParser):
    """Tags with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.append((self.tags[-1][0], data))


def data_of(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return found


def test_the_page_needs_no_network_and_allows_only_its_own_script_and_style(app: App) -> None:
    text = page(gather(app)).decode()
    parsed = Parsed(text)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(", re.sub(r"^\s*//.*", "", text, flags=re.M)
    )
    for tag, attributes in parsed.tags:
        assert not {"src", "href", "style", "srcset"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    csp = next(a["content"] for _, a in parsed.tags if "http-equiv" in a)
    assert csp and csp.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in csp
    for kind, inline in parsed.inline:
        if not inline.startswith("{"):
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in csp


def test_every_control_of_the_page_has_a_name_and_is_no_mere_picture(app: App) -> None:
    text = page(gather(app)).decode()
    for tag, attributes in Parsed(text).tags:
        if tag in ("input", "canvas", "section"):
            assert attributes.get("aria-label"), attributes
        if tag == "canvas":
            assert attributes["tabindex"] == "0"
    assert '<meta name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_holds_each_session_its_leaf_and_its_day(app: App) -> None:
    atlas = gather(app)
    data = data_of(page(atlas).decode())
    leaf_of = np.frombuffer(base64.b64decode(str(data["leaf_of"])), "<u2")
    days = np.frombuffer(base64.b64decode(str(data["days"])), "<u2")
    places = np.frombuffer(base64.b64decode(str(data["places"])), "<u2")
    leaves = data["leaves"]
    assert isinstance(leaves, list) and len(places) == 2 * len(days) == 2 * 300
    assert (days.min(), days.max()) == (FIRST_DAY, FIRST_DAY + DAYS - 1)
    assert [leaf["name"] for leaf in leaves][-1] == "kubernetes"  # archived: no dots, a history
    assert set(leaf_of.tolist()) == {0, 1, 2, 3, len(leaves)}
    assert (leaf_of == len(leaves)).sum() == atlas.standing.unassigned
    assert data["ids"] == [id_[:8] for id_ in atlas.dots.ids] and data["texts"] is None


def test_a_hostile_name_of_a_leaf_stays_a_name(app: App) -> None:
    leaf = next(leaf for leaf in app.forests.forest() if leaf.name == "poems")
    name = "</script><img src=x onerror=alert(1)>\"'&<!--"
    app.forests.change(replace(leaf, name=name), "renamed", "", app.now())
    text = page(gather(app)).decode()
    parsed = Parsed(text)
    assert "img" not in {tag for tag, _ in parsed.tags}
    assert any(attributes.get("data-name") == name for _, attributes in parsed.tags)
    assert name in [leaf["name"] for leaf in data_of(text)["leaves"]]  # type: ignore[attr-defined]


def test_a_sample_is_told_of_on_the_page(app: App) -> None:
    text = page(gather(app, sample=100)).decode()
    assert "100 of 300 sessions are shown, chosen by hash" in text
    assert "Map of 300 sessions" in text
    with pytest.raises(MisuseError):
        gather(app, sample=0)


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript engine is here")
def test_the_script_draws_hovers_searches_hides_and_replays(app: App, tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    target.write(path, gather(app))
    harness = ROOT / "tests" / "support_page.js"
    done = subprocess.run(
        ["node", str(harness), str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    steps = {each["step"]: each for each in json.loads(done.stdout)}
    opened = steps["opened"]
    assert set(opened["names"]) <= {"python", "poems", "tides", "gears"} and opened["names"]
    assert opened["date"] == "2026-07-05: 300 sessions"
    assert steps["by keys"]["said"] and steps["hovered"]["tip"][1].startswith("2026-")
    assert steps["searched"]["found"] == "1 found" and len(steps["searched"]["names"]) <= 1
    assert steps["first leaf hidden"]["dots"] < opened["dots"]
    assert set(steps["first day"]["stages"]) == {"not yet", ""}  # the unassigned have no stage
    assert steps["replayed"]["stages"] == opened["stages"]
    assert "mature" in opened["stages"] and "archived" in opened["stages"]


# Texts


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with imported sessions whose every prompt holds one word that is nowhere else."""
    folder = tmp_path_factory.mktemp("texts")
    home, history = folder / "home", folder / "asks.jsonl"
    rows = [
        {"prompt": f"Why does zanzibarquux fail in case {n}?", "completion": f"Because of {n}."}
        for n in range(12)
    ]
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert groove(home, "init", "--json").returncode == 0
    assert groove(home, "consent", "grant", "capture", "--yes").returncode == 0
    assert groove(home, "import", "jsonl", str(history)).returncode == 0
    app = App(home)
    ids = sorted(app.sessions())
    assert len(ids) == 12
    app.embeddings.append(ids, [FIRST_DAY] * 12, vectors(12, 5)[2])
    grow(app, ids)
    app.forests.close()
    return home


def groove(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        env={**os.environ, "GROOVE_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["map.html", "map.png"])
def test_no_text_of_a_prompt_is_in_a_file_unless_it_was_asked_for(
    told: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    done = groove(told, "map", str(path), "--json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    document = json.loads(done.stdout)
    assert (document["sessions"], document["shown"], document["texts"]) == (12, 12, False)
    assert document["bytes"] == path.stat().st_size and path.stat().st_mode & 0o777 == 0o600
    for word in (b"zanzibarquux", b"zanzibar", "zanzibarquux".encode("utf-16-le"), b"Because of"):
        assert word not in path.read_bytes()


def test_texts_are_shown_when_asked_for_and_the_page_says_so(told: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.html"
    done = groove(told, "map", str(path), "--texts")
    assert done.returncode == 0 and "do not share it" in done.stderr
    text = path.read_text()
    assert text.count("zanzibarquux") == 12
    assert '<p class="warn" role="note">This page holds texts of your prompts' in text
    assert path.stat().st_mode & 0o777 == 0o600


# The file


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return gather(planted(tmp_path_factory.mktemp("atlas") / "home", count=12))


@pytest.mark.parametrize("name", ["map.html", "map.png"])
def test_only_what_this_command_made_is_replaced_without_force(
    atlas: Atlas, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"the owner's own")
    with pytest.raises(OwnerError, match="no map made it"):
        target.check(path, force=False, texts=False, growth=False)
    target.check(path, force=True, texts=False, growth=False)
    target.write(path, atlas)
    target.check(path, force=False, texts=False, growth=False)


def test_a_file_that_cannot_be_written_is_refused_before_anything_long(tmp_path: Path) -> None:
    for name in ("map.pdf", "map", "map.HTML"):
        with pytest.raises(MisuseError):
            target.check(tmp_path / name, force=True, texts=False, growth=False)
    with pytest.raises(MisuseError):
        target.check(tmp_path / "a.png", force=False, texts=True, growth=False)
    with pytest.raises(MisuseError):
        target.check(tmp_path / "a.html", force=False, texts=False, growth=True)
    with pytest.raises(OwnerError, match="no folder"):
        target.check(tmp_path / "absent" / "a.html", force=False, texts=False, growth=False)
    (tmp_path / "b.html").mkdir()
    with pytest.raises(OwnerError, match="is a folder"):
        target.check(tmp_path / "b.html", force=True, texts=False, growth=False)


def test_a_picture_that_is_not_finished_leaves_the_file_before_it(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.html"
    target.write(path, atlas)
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target.write(path, atlas)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_png_is_a_picture_with_or_without_growth(atlas: Atlas) -> None:
    leaf = atlas.standing.forest.live()[-1]
    forest = atlas.standing.forest.with_leaf(replace(leaf, name="$\\frac{$ 文"))
    odd = replace(atlas, standing=replace(atlas.standing, forest=forest, rules=Rules()))
    for growth_too in (False, True):
        assert png(odd, growth=growth_too).startswith(PNG)


def test_without_matplotlib_a_png_is_refused_with_advice(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OwnerError, match="not installed") as refused:
        png(atlas)
    assert "pip install" in refused.value.next_step


def test_an_interrupted_map_says_that_it_starts_anew(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("GROOVE_HOME", str(app.home))
    monkeypatch.setattr(atlas_of, "project", interrupted)
    for _ in range(2):  # what one command says, the next does not
        with pytest.raises(SystemExit) as end:
            main(["map", str(tmp_path / "a.html")])
        assert end.value.code == 130 and not list(tmp_path.glob("*.html"))
        said = "interrupted; no file was written; the same command starts anew\n"
        assert capsys.readouterr().err == said
        monkeypatch.setattr(overview, "status", interrupted)
        with pytest.raises(SystemExit):
            main(["status"])
        assert "the same command goes on from what was reached" in capsys.readouterr().err


def test_a_home_without_sessions_says_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert groove(home, "init", "--json").returncode == 0
    done = groove(home, "map", str(tmp_path / "map.html"))
    assert done.returncode == 1 and "groove-node import" in done.stderr
    assert groove(home, "map", str(tmp_path / "map.pdf")).returncode == 2
    assert not list(tmp_path.glob("map.*"))
