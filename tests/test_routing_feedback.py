"""How sessions ended moves the weight of the leaf that answered, and is forgotten with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support_capture import capture
from support_routing import Routed, leaf_id, near, routed

from node import feedback, overview, rights
from node.rights import Selection
from router.weights import BOUND, weigh


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    made = routed(tmp_path, monkeypatch)
    made.grown("tides", "poems", sessions=60)
    return made


def weight(home: Routed, topic: str) -> float:
    table = home.app.tables.load()
    assert table is not None
    return next(entry.weight for entry in table.entries if entry.name == topic)


def counted(home: Routed) -> dict[str, tuple[int, int]]:
    found = feedback.votes(home.app.corpus.files())
    return {str(leaf): tally for leaf, tally in feedback.tallied(found.values()).items()}


def test_accepted_answers_raise_a_leaf_and_rejected_ones_lower_it(home: Routed) -> None:
    for number in range(10):
        home.closed(f"tides-{number:05d}", "tides", "accepted")
        home.closed(f"poems-{number:05d}", "poems", "rejected")
    home.deploy()
    assert weight(home, "poems") < 0 < weight(home, "tides")


def test_no_flood_of_outcomes_passes_the_bound(home: Routed) -> None:
    for number in range(500):
        home.closed(f"s-{number}", "tides", "rejected")
    home.deploy()
    assert -BOUND < weight(home, "tides") < -0.9 * BOUND


def test_the_weight_is_the_router_s(home: Routed) -> None:
    for number in range(7):
        home.closed(f"s-{number}", "tides", "accepted")
    home.deploy()
    assert weight(home, "tides") == weigh([(leaf_id("tides"), True)] * 7)[leaf_id("tides")]


@pytest.mark.parametrize(
    ("outcome", "routing"),
    [
        ("iterated", {}),  # neither well nor badly
        ("", {}),  # not known
        ("accepted", {"fallback_used": True}),  # something else answered
        ("accepted", {"leaf_id": None}),
        ("accepted", {"leaf_id": "../../x"}),
    ],
)
def test_what_says_nothing_of_a_leaf_is_no_vote(
    home: Routed, outcome: str, routing: dict[str, object]
) -> None:
    home.closed("s-1", "tides", outcome, **routing)
    assert counted(home) == {}


def test_of_two_closing_records_the_later_stands(home: Routed) -> None:
    home.closed("s-1", "tides", "accepted")
    home.closed("s-1", "tides", "rejected")
    assert counted(home) == {leaf_id("tides"): (0, 1)}


def test_a_deleted_session_takes_its_vote_away(home: Routed) -> None:
    for number in range(5):
        home.closed(f"tides-{number:05d}", "tides", "accepted")
    home.deploy()
    before = weight(home, "tides")
    rights.delete(home.app, Selection(sessions=("tides-00000",)))  # no leaf was trained on it
    assert 0 < weight(home, "tides") < before
    assert counted(home) == {leaf_id("tides"): (4, 0)}
    (kept,) = home.app.tables.history()
    assert kept.note is not None and kept.note.votes == {leaf_id("tides"): (4, 0)}


def test_no_vector_of_a_deleted_session_stays_in_the_home(home: Routed) -> None:
    home.closed("tides-00000", "tides", "accepted")
    home.deploy()
    vector = home.app.embeddings.vector("tides-00000")
    assert vector is not None
    on_grid = np.rint(vector * (127 / np.abs(vector).max())).astype("i1")
    forms = (vector.tobytes(), on_grid.tobytes())
    assert [held(home, form) for form in forms] == [{"embeddings"}, {"neighbours"}]
    rights.delete(home.app, Selection(sessions=("tides-00000",)))
    assert not home.app.neighbours_path.exists()
    assert [held(home, form) for form in forms] == [set(), set()]
    assert len(home.app.embeddings) == 119


def held(home: Routed, form: bytes) -> set[str]:
    """Where in the home these bytes are: what lies in it, by name."""
    folder = home.app.home
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).parts[0] for path in files if form in path.read_bytes()}


def test_leaf_show_tells_the_votes(home: Routed) -> None:
    for number in range(4):
        home.closed(f"s-{number}", "tides", "accepted")
    home.closed("s-9", "tides", "rejected")
    home.deploy()
    facts, details = overview.describe(home.app, "tides")
    assert dict(facts)["feedback"] == "4 accepted, 1 rejected: weight +0.006"
    assert details["feedback"] == {"accepted": 4, "rejected": 1, "weight": 0.006}


def test_what_a_route_leaves_in_a_session_comes_back_as_a_vote(home: Routed) -> None:
    home.deploy()
    table = home.app.tables.load()
    assert table is not None
    chosen = replace(table.route(near("tides", 3)), fallback_used=False)
    made = capture(home.app.home / "elsewhere")
    session = made.session("s-1")
    session.start()
    session.record_prompt("How do tides work?")
    session.end(outcome="accepted", routing=feedback.routing_record(chosen))
    made.corpus.flush()
    (close,) = [record for record in made.corpus.records() if record.closes]
    assert close.metadata["routing"]["leaf_id"] == leaf_id("tides")
    found = feedback.votes(made.corpus.files())
    assert [(vote.leaf, vote.well) for vote in found.values()] == [(leaf_id("tides"), True)]


def test_what_a_caller_writes_into_the_routing_is_scrubbed_all_the_same(tmp_path: Path) -> None:
    made = capture(tmp_path)
    session = made.session("s-1")
    session.start()
    session.record_prompt("How do tides work?")
    session.end(routing={"leaf_id": leaf_id("tides"), "note": "ask ann@example.com"})
    made.corpus.flush()
    assert b"ann@example.com" not in made.on_disk()
