"""`leaf show`, `leaf history`, `leaf rename`: what an owner is told of a leaf, and may call it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support_engine import TopicEncoder

from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import Born, Drifted
from leaves.model import GrownFrom, Instant, Kind, Leaf, LeafId, Stage
from leaves.store import ForestStore
from node import leaf_facts, orders
from node.capture.sessions import Session
from node.errors import MisuseError

NOW = Instant(1_700_000_000)
A, B = LeafId("a" * 32), LeafId("b" * 32)


def leaf(id_: LeafId, name: str) -> Leaf:
    centroid = np.zeros(32, np.float32)
    centroid[0] = 1.0
    return Leaf(
        id=id_, name=name, stage=Stage.SEED, stage_since=NOW, level=2, kind=Kind.SKILL,
        grown_from=GrownFrom.DATA, parent=None, lineage=(), created=NOW, sessions=20,
        growth_per_day=1.0, centroid=centroid, stability=0.9, cohesion=0.55,
    )  # fmt: skip


class Home:
    """As much of an app as the commands ask for."""

    def __init__(self, folder: Path) -> None:
        self.forests = ForestStore(folder / "leaves.db", b"\1" * 32)
        self.embeddings = EmbeddingStore.open(folder / "emb", TopicEncoder.enc8, 32)
        asks = {f"w{n}": f"tune the flask route {n}" for n in range(9)}
        asks |= {f"t{n}": f"predict the tide {n}" for n in range(9)}
        self._sessions = {id_: _session(id_, ask) for id_, ask in asks.items()}
        rows = TopicEncoder().encode(
            [ask.split()[0] + f" {n}" for n, ask in enumerate(asks.values())]
        )
        self.embeddings.append(list(asks), [19_000] * len(asks), rows)
        born = [Born(leaf(A, "flask-route"), 0, "of 9"), Born(leaf(B, "tide"), 1, f"near {A}")]
        forest = self.forests.carry_out(self.forests.forest(), born, NOW, 1)
        moved = Drifted(B, 9, forest.leaves[B].centroid, Kind.SKILL, 1.0, 2, None, f"2 went to {A}")
        self.forests.carry_out(forest, [moved], NOW, 2)
        self.forests.assign({id_: A if id_.startswith("w") else B for id_ in asks})

    def sessions(self) -> dict[str, Session]:
        return self._sessions

    def now(self) -> Instant:
        return NOW


def _session(id_: str, ask: str) -> Session:
    return Session(
        session_id=id_, user_id="u", opened=NOW, last=NOW, prompt=ask, completion="", domain="code",
        source="jsonl", group=id_, terms_class="own", closed=True, outcome="accepted", quality=80,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_leaf_is_shown_with_its_terms_its_medoid_and_how_sure_it_is(home: Home) -> None:
    shown = home.forests.forest().leaves[A]
    facts, details = leaf_facts.about(home, shown, texts=False)  # type: ignore[arg-type]
    assert {"flask", "route"} <= {word for term in details["terms"] for word in term.split("-")}
    assert details["medoid"] in home.sessions()
    assert (details["stability"], details["cohesion"]) == (0.9, 0.55)
    assert not any("tune the" in value for _, value in facts)


def test_the_text_of_the_medoid_is_shown_only_when_asked_for(home: Home) -> None:
    shown = home.forests.forest().leaves[A]
    facts, details = leaf_facts.about(home, shown, texts=True)  # type: ignore[arg-type]
    assert details["medoid_text"].startswith("tune the flask route")
    assert any("tune the flask route" in value for _, value in facts)


def test_a_history_calls_leaves_as_they_are_called_today(home: Home) -> None:
    orders.rename(home, "flask-route", "my-web")  # type: ignore[arg-type]
    rows = leaf_facts.history(home, home.forests.forest().leaves[B])  # type: ignore[arg-type]
    assert [row["why"] for row in rows] == ["near my-web", "2 went to my-web"]


@pytest.mark.parametrize("to", ["chassis", "python-starter"])
def test_a_leaf_cannot_be_called_as_the_chassis_or_a_starter(home: Home, to: str) -> None:
    with pytest.raises(MisuseError, match="is reserved"):
        orders.rename(home, "flask-route", to)  # type: ignore[arg-type]
    assert home.forests.forest().leaves[A].name == "flask-route"


def test_a_rename_is_in_the_history_with_both_names(home: Home) -> None:
    renamed = orders.rename(home, "flask-route", "сервер-2")  # type: ignore[arg-type]
    assert renamed.named_by_owner and home.forests.forest().leaves[A].name == "сервер-2"
    last = leaf_facts.history(home, renamed)[-1]  # type: ignore[arg-type]
    assert last["why"] == "by the owner: flask-route is now сервер-2"


def test_a_name_that_is_forgotten_is_in_no_reason(home: Home) -> None:
    home.forests.rename_throughout(A, "leaf-aaaaaaaa")
    for id_ in (A, B):
        shown = home.forests.forest().leaves[id_]
        rows = leaf_facts.history(home, shown)  # type: ignore[arg-type]
        assert not any("flask" in row["why"] for row in rows)


@pytest.mark.parametrize("to", ["Flask", "a b", "../x", "a\u202eb", "x" * 41, "tide", "bbbb"])
def test_a_name_that_would_mislead_is_refused_and_nothing_changes(home: Home, to: str) -> None:
    before = home.forests.revision()
    with pytest.raises(MisuseError):
        orders.rename(home, "flask-route", to)  # type: ignore[arg-type]
    assert home.forests.revision() == before


def test_a_name_of_a_leaf_that_has_ended_is_not_given_again(home: Home) -> None:
    ended = replace(home.forests.forest().leaves[B], stage=Stage.DISSOLVED)
    home.forests.change(ended, "dissolved", "gone", NOW)
    with pytest.raises(MisuseError, match="is or was called"):
        orders.rename(home, "flask-route", "tide")  # type: ignore[arg-type]
