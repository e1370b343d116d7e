"""`groove-node route` and `restore`: what an owner types and reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support_routing import Routed, StarterEncoder, routed, towards

from leaves.model import Adapter, LeafId, Stage
from node import asking
from node.app import App
from node.cli import main
from node.foreign import State
from node.mesh import ForeignLeaf
from router.table import Considered, Entry, Route

Type = Callable[..., str]
ADAPTER = Adapter("b" * 64, "c" * 64, "d" * 64, "ab" * 8, 8)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    monkeypatch.setattr(App, "encoder", lambda app: StarterEncoder())
    return routed(tmp_path, monkeypatch)


@pytest.fixture
def typed(home: Routed, capsys: pytest.CaptureFixture[str]) -> Type:
    """What a command prints."""

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        ended = 0
        try:
            main(arguments)
        except SystemExit as end:
            ended = int(end.code or 0)
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.out if code == 0 else printed.err

    return run


def document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_on_a_fresh_home_a_starter_answers_and_it_says_what_is_missing(typed: Type) -> None:
    text = typed("route", "rust ask 1", "--explain")
    assert "answered by  rust-starter" in text
    assert "starters serve; 0 of 1,000 sessions for the first discovery" in text
    assert "rust-starter, a starter, takes it: its cosine is" in text
    assert "rust-starter answers, by its system prompt" in text


def test_explain_shows_candidates_with_their_scores_gates_and_votes(
    home: Routed, typed: Type
) -> None:
    home.grown("tides", "poems", sessions=120)
    for number in range(6):
        home.closed(f"tides-{number:05d}", "tides", "accepted")
    home.deploy()
    found = document(typed("route", "tides ask 1", "--json"))
    tides = found["candidates"][0]
    assert (tides["name"], tides["votes"], tides["passes"]) == ("tides", 1.0, True)
    assert tides["weight"] == 0.0115 and tides["cosine"] > 0.8
    assert tides["chosen_by"] == pytest.approx(
        tides["cosine"] - tides["hubness"] + tides["weight"], abs=2e-4
    )
    assert tides["score"] >= tides["gate"] and "familiarity" in tides["why"]
    others = [other["cosine"] for other in found["not_asked"]]
    assert len(others) == 3 and others == sorted(others, reverse=True)
    text = typed("route", "tides ask 1", "--explain")
    columns = text.splitlines()[-4 - len(found["not_asked"])].split("  ")
    assert [c.strip() for c in columns if c.strip()][:3] == ["LEAF", "LEVEL", "COSINE"]
    assert tides["hubness"] != 0 and f"{tides['hubness']:+.3f}" in text


def test_the_path_goes_from_who_was_asked_first_to_whoever_answers(
    home: Routed, typed: Type
) -> None:
    home.leaf("tides", stage=Stage.MATURE, wins=2, adapter=ADAPTER)
    home.sessions("tides", range(300), leaf="tides")
    home.sessions("python", range(300))
    home.deploy()
    path = document(typed("route", "rust ask 1", "--json"))["path"]
    assert path[0].startswith("tides, a domain, does not: ")
    assert path[1].startswith("rust-starter, a starter, takes it: its cosine is ")
    assert path[2:] == ["rust-starter answers, by its system prompt"]
    path = document(typed("route", "tides ask 1", "--json"))["path"]
    assert path[0].startswith("tides, a domain, takes it: ")
    assert path[1:] == ["tides answers, by its adapter"]


def entry(name: str, **about: Any) -> Entry:
    return Entry(LeafId(f"{len(name):032x}"), name, 2, Stage.SPROUT, towards(name), **about)


@pytest.mark.parametrize(
    ("server", "bundle", "said"),
    [
        (None, None, "tides has no adapter yet, nor has a leaf above it one: the chassis answers"),
        ("waters", "b" * 64, "tides has not won yet: waters above it answers"),
        ("python-starter", None, "tides has no adapter yet: python-starter answers, by its system"),
        ("seas", None, "tides has no adapter yet: seas of 01010101, of its domain, answers"),
    ],
)
def test_whoever_answers_instead_is_named_with_the_reason(
    server: str | None, bundle: str | None, said: str
) -> None:
    about = {
        "waters": {"servable": True},
        "python-starter": {"system": "You know Python."},
        "seas": {"servable": True, "origin": "01" * 32},
    }
    leaf = entry("tides", bundle=bundle)
    by = entry(server, **about[server]) if server else None  # type: ignore[arg-type]
    asked = [Considered(leaf, 0.6, 0.4, True, why="its cosine is 0.600, and the gate is 0.400")]
    path = asking.path(Route(leaf, by, 0.6, 0.4, 2, True), asked)
    assert path[0] == "tides, a domain, takes it: its cosine is 0.600, and the gate is 0.400"
    assert path[1].startswith(said)


def test_a_peer_s_leaf_is_routed_to_by_its_centroid(home: Routed, typed: Type) -> None:
    typed("consent", "grant", "fetch", "--yes")
    leaf = ForeignLeaf(
        origin="02" * 32,
        leaf=LeafId("e" * 32),
        version=1,
        stage=Stage.MATURE,
        sessions_log2=9,
        root="e" * 64,
        label="f" * 64,
        size_bytes=1000,
        chassis="ab" * 8,
        centroid=towards("seas"),
    )
    home.app.foreign.replace_origin(leaf.origin, [leaf])
    known = home.app.foreign.all()[0]
    home.app.foreign.settle(known, State.ACCEPTED, {"gate": 0.3}, "seas")
    home.app.deploy()
    found = document(typed("route", "seas ask 1", "--json"))
    assert (found["served_by_name"], found["origin"]) == ("seas", "02" * 32)
    assert found["candidates"][0]["votes"] is None


def test_history_lists_the_tables_with_date_reason_leaves_and_accuracy(
    home: Routed, typed: Type
) -> None:
    assert "no table yet" in typed("route", "--history")
    typed("route", "rust ask 1")
    home.grown("tides", "poems", sessions=120)
    home.deploy()
    newest, oldest = typed("route", "--history").splitlines()[1:]
    assert newest.split()[0] == "2" and "in force" in newest and "97.9% of 240" in newest
    assert newest.endswith("a round: 2 leaves, starters below them")
    assert oldest.split()[0] == "1" and oldest.endswith("starters serve from the first minute")
    rows = document(typed("route", "--history", "--json"))["tables"]
    assert [(row["table"], row["in_force"], row["leaves"]) for row in rows] == [
        (2, True, 2),
        (1, False, 0),
    ]


def test_restore_puts_a_table_in_force_and_pins_it_if_asked(home: Routed, typed: Type) -> None:
    typed("route", "rust ask 1")
    home.grown("tides", "poems", sessions=120)
    home.deploy()
    text = typed("restore", "--table", "1", "--pin")
    assert text == "table 1 is in force again, as table 3, until it is unpinned\n"
    assert "in force, pinned" in typed("route", "--history")
    assert "is pinned" in typed("status")
    assert typed("restore", "--unpin") == "table 3 is no longer pinned\n"


def test_what_restore_and_route_cannot_take_is_misuse(typed: Type) -> None:
    assert "--table NUMBER" in typed("restore", code=2)
    assert "give a prompt" in typed("route", code=2)
    assert "neither a prompt" in typed("route", "x", "--history", code=2)
    assert "no routing table yet" in typed("restore", "--pin", code=2)
    assert "`groove-node route --history` lists" in typed("restore", "--table", "9", code=1)


def test_a_damaged_table_is_no_failure_of_the_command(home: Routed, typed: Type) -> None:
    typed("route", "rust ask 1")
    (home.app.home / "router" / "table-00000001.bin").write_bytes(b"garbage")
    text = typed("route", "rust ask 1", "--explain")
    assert "answered by  chassis" in text and "groove-node round" in text
    assert "in force, damaged" in typed("route", "--history")
    assert "the chassis answers" in typed("status")
