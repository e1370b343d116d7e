"""The tree in a terminal: what the owner reads, and that no terminal is too narrow for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support_pictures import DIMENSIONS, a_leaf, planted

from leaves.lifecycle import Rules
from leaves.model import Adapter, Forest, Leaf, LeafId, Stage
from node import overview, show
from node.app import App
from node.foreign import Known, State
from node.mesh import ForeignLeaf
from node.pictures import tree
from node.pictures.atlas import standing
from node.tables import Kind, Note
from router.table import Entry, Table, own_entry

ROOT = Path(__file__).parent.parent


def forest_of(*leaves: Leaf) -> Forest:
    return Forest({leaf.id: leaf for leaf in leaves}, len(leaves))


def small() -> Forest:
    branch = a_leaf(0, "Backend", level=1, sessions=1400)
    python = a_leaf(
        1, "python", parent=branch.id, stage=Stage.MATURE, sessions=1400, growth_per_day=12.0
    )
    part = a_leaf(
        2, "asyncio", level=3, parent=python.id, stage=Stage.SPROUT, sessions=600, trainings=1
    )
    seed = a_leaf(3, "poems", sessions=280, growth_per_day=24.0)
    return forest_of(branch, python, part, seed)


def plain(told: tree.Standing, width: int | None = None) -> list[str]:
    return [line.plain for line in tree.drawn(told, width)]


def test_the_tree_is_drawn_as_the_specification_draws_it() -> None:
    forest = small()
    told = tree.Standing(forest, Rules(), 2020, 340)
    lines = plain(told)
    ids = {leaf.name: leaf.id[:8] for leaf in forest}
    assert lines == [
        "Tree: 2,020 sessions, 3 leaves [1 seed, 1 sprout, 1 mature]",
        "├── Backend  1,400 sessions",
        f"│   └── python [MATURE, 1,400 sessions, +12/day]  {ids['python']}",
        f"│       └── asyncio [SPROUT, 600 sessions, won 0 of 2 rounds]  {ids['asyncio']}",
        "├── poems [SEED, 280 sessions, waiting for 500, about 9 days at this pace, +24/day]"
        f"  {ids['poems']}",
        "└── 340 unassigned sessions "
        "(noise, or newer than the last round: waiting for leaves to form)",
    ]


def test_a_leaf_of_another_chassis_is_marked_as_set_aside() -> None:
    made = Adapter("b" * 64, "d" * 64, "c" * 64, "e" * 16, 8)
    forest = forest_of(a_leaf(1, "python", stage=Stage.MATURE, adapter=made))
    for chassis in (None, "e" * 16):
        assert "set aside" not in plain(tree.Standing(forest, Rules(), 1, 0, chassis=chassis))[1]
    moved = plain(tree.Standing(forest, Rules(), 1, 0, chassis="f" * 16))
    assert "set aside: made for another chassis" in moved[1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sessions": 280}, ("waiting for 500",)),
        (
            {"sessions": 280, "growth_per_day": 0.1},
            ("waiting for 500", "more than a year at this pace"),
        ),
        ({"sessions": 500}, ("to be trained in the next round",)),
        ({"stage": Stage.SPROUT}, ("to be trained in the next round",)),
        ({"stage": Stage.SPROUT, "trainings": 1, "sessions": 300}, ("waiting for 500",)),
        (
            {"stage": Stage.SPROUT, "trainings": 1, "sessions": 600, "wins": 1},
            ("won 1 of 2 rounds",),
        ),
        (
            {"stage": Stage.SPROUT, "trainings": 1, "sessions": 600, "wins": 2},
            ("to be retrained once",),
        ),
        ({"stage": Stage.MATURE, "sessions": 600}, ()),
    ],
)
def test_each_leaf_says_what_its_next_stage_waits_for(
    fields: dict[str, object], told: tuple[str, ...]
) -> None:
    assert tree.missing(a_leaf(1, "any", **fields), Rules()) == told


@pytest.mark.parametrize("fields", [{"sessions": 500}, {"stage": Stage.SPROUT}])
def test_what_is_due_for_training_waits_for_the_owners_consent(fields: dict[str, object]) -> None:
    due = tree.missing(a_leaf(1, "any", **fields), Rules(), train=False)
    assert due == ("waits for consent: train",)


def test_starters_are_shown_while_they_serve_and_the_first_discovery_is_waited_for() -> None:
    told = tree.Standing(forest_of(), Rules(), 340, 340, starters=("python", "react"))
    assert plain(told)[1:] == [
        "├── python (starter)",
        "├── react (starter)",
        "└── 340 unassigned sessions (waiting for 1,000 for a first discovery)",
    ]


def test_a_new_home_has_its_ten_starters(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir(mode=0o700)
    fresh = plain(standing(App(tmp_path / "fresh")))
    assert fresh[0] == "Tree: 0 sessions, 0 leaves"
    assert len(fresh) == 11 and all(line.endswith("(starter)") for line in fresh[1:])


def test_a_gate_is_told_of_a_leaf_that_can_serve(tmp_path: Path) -> None:
    app = planted(tmp_path / "home")
    leaf = next(x for x in app.forests.forest().live() if x.name == "python")
    starter = Entry(
        LeafId("ef" * 16), "rust-starter", 1, Stage.SPROUT, leaf.centroid, system="Be exact."
    )
    entries = [replace(own_entry(leaf, servable=True), gate=0.41), starter]
    table = Table.build(app.enc8, DIMENSIONS, entries)
    app.tables.put(table, Note(at=0, kind=Kind.ROUND, why="a round"))
    lines = plain(standing(app))
    assert "gate 0.41" in next(line for line in lines if "python [" in line)
    assert "├── rust (starter)" in lines
    assert overview.describe(app, "python")[1]["confidence_gate"] == 0.41
    assert show.as_json(leaf, standing(app).gates)["confidence_gate"] == 0.41
    seed = replace(leaf, stage=Stage.SEED)
    assert show.as_json(seed, standing(app).gates)["confidence_gate"] is None


def test_a_mature_leaf_of_a_peer_stands_apart_and_cannot_command_the_terminal() -> None:
    leaf = ForeignLeaf(
        origin="ab" * 32,
        leaf=LeafId("cd" * 16),
        version=1,
        stage=Stage.MATURE,
        sessions_log2=10,
        root=None,
        label="",
        size_bytes=0,
        chassis="00" * 8,
        centroid=a_leaf(1, "x").centroid,
    )
    known = Known(leaf, State.ACCEPTED, name="go\x1b[2Jgone", detail={})
    lines = plain(tree.Standing(small(), Rules(), 2020, 0, foreign=(known,)))
    assert lines[-2] == "└── leaves of peers"
    assert lines[-1].strip().startswith("└── go\N{REPLACEMENT CHARACTER}[2Jgone (of abababab)")
    assert "\x1b" not in lines[-1] and "~512 sessions" in lines[-1]


@given(st.integers(20, 120), st.text(min_size=1, max_size=40))
def test_no_line_is_wider_than_the_terminal(width: int, name: str) -> None:
    forest = small()
    for leaf in list(forest):
        forest = forest.with_leaf(replace(leaf, name=name))
    told = tree.Standing(forest, Rules(), 2020, 340, weekly={x.id: [1, 2, 3] for x in forest})
    room = max(width, len("│       └── ") + tree.NAME_MIN)
    assert all(cell_len(line) <= room for line in plain(told, width))


def test_on_a_narrow_terminal_the_stage_stays_longest() -> None:
    line = plain(tree.Standing(small(), Rules(), 2020, 0), 38)[4]
    assert line == "└── poems [SEED, 280 sessions]"


def test_a_sparkline_is_as_high_as_its_counts() -> None:
    assert tree.sparkline([0, 1, 0, 7]) == "▂ █"
    assert tree.sparkline([0, 0]) == tree.sparkline([]) == ""


def test_the_last_weeks_of_each_leaf_are_counted(tmp_path: Path) -> None:
    told = standing(planted(tmp_path / "home"))
    python = next(leaf for leaf in told.forest if leaf.name == "python")
    assert len(told.weekly[python.id]) == tree.SPARK_WEEKS
    assert 0 < sum(told.weekly[python.id]) < 30  # of the thirty that it has in all
    assert "█" in "".join(plain(told))


def test_the_tree_of_a_past_day_is_of_the_sessions_and_leaves_of_that_day(tmp_path: Path) -> None:
    app = planted(tmp_path / "home")
    now, then = standing(app), standing(app, "2026-04-01")
    assert now.sessions == 300
    assert {leaf.stage for leaf in then.forest.live()} == {Stage.SEED}
    assert then.sessions == 97 and 0 < then.unassigned < 97
    assert not plain(standing(app, "2026-01-01"))


def test_growth_is_told_by_the_day_or_by_the_month() -> None:
    assert tree.pace(a_leaf(1, "x", growth_per_day=12.4)) == "+12/day"
    assert tree.pace(a_leaf(1, "x", growth_per_day=0.1)) == "+3/month"
    assert tree.pace(a_leaf(1, "x", growth_per_day=0.01)) == ""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree") / "home"
    assert groove(folder, "init", "--json").returncode == 0
    planted(folder)
    return folder


def groove(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        env={**os.environ, "GROOVE_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_draws_without_colours_into_a_pipe(home: Path) -> None:
    shown = groove(home, "tree").stdout
    assert shown.startswith("Tree: 300 sessions, 4 leaves [3 seed, 1 mature]\n├── Everything")
    assert shown.count("starters serve; 4 leaves of the tree are not in the routing table\n") == 1
    assert "\x1b" not in shown and "poems [SEED" in shown and "unassigned" in shown
    assert groove(home, "tree", "--at", "2026-01-01").stdout == "no leaves on 2026-01-01\n"
    assert groove(home, "tree", "--at", "soon").returncode == 2


def test_the_table_and_the_document_keep_their_form(home: Path) -> None:
    table = groove(home, "tree", "--table").stdout.splitlines()
    assert " ".join(table[0].split()) == "LEAF STAGE SESSIONS GAIN OVER STYLE LAST ROUTED ID"
    document = json.loads(groove(home, "tree", "--json").stdout)
    assert {"leaves", "foreign"} <= document.keys()
    assert {"leaf_id", "name", "stage", "session_count"} <= document["leaves"][0].keys()
    assert document["routing"]["line"].startswith("starters serve; ")
    assert document["sessions"] == 300 and document["unassigned"] > 0
