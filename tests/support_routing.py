"""A home whose sessions and leaves a test puts where it wants them: points near known topics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_capture import NOON, HandClock, record

from leaves.lifecycle import Rules
from leaves.model import (
    DAY_S,
    Adapter,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Matrix,
    Stage,
    Vector,
    unit,
)
from leaves.ports import Report, silent
from node.app import App
from node.told import Told
from router.minilm_encoder import DIMENSIONS, ENC8
from router.starters import STARTERS

TODAY = int(NOON) // DAY_S
ABLE: dict[str, Any] = {  # a leaf that answers for itself
    "stage": Stage.SPROUT,
    "trainings": 1,
    "wins": 1,
    "adapter": Adapter("b" * 64, "c" * 64, "d" * 64, "ab" * 8, 8),
}


def towards(topic: str) -> Vector:
    return _drawn(f"topic {topic}")


def near(topic: str, number: int, spread: float = 0.6) -> Vector:
    """Session `number` of a topic: at a cosine of about 0.86 to its centre."""
    vector: Vector = unit((towards(topic) + spread * _drawn(f"{topic} {number}"))[None])[0]
    return vector


class StarterEncoder:
    """An ask of a starter lies near the topic of the starter's key; so does "KEY ask NUMBER"."""

    enc8 = ENC8
    name = "topics"
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self._topic = {ask: starter.key for starter in STARTERS for ask in starter.asks}

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        return np.stack([self.encode_one(text) for text in texts])

    def encode_one(self, text: str) -> Vector:
        topic = self._topic.get(text) or text.split()[0]
        return near(topic, int(hashlib.sha256(text.encode()).hexdigest()[:6], 16))


@dataclass
class Routed:
    """One home. Leaves are named after their topics; a leaf's sessions are TOPIC-NUMBER."""

    app: App
    told: list[Told] = field(default_factory=list)
    records: int = 0

    def sessions(self, topic: str, numbers: range, *, leaf: str | None = None) -> list[str]:
        """Embed sessions of a topic; of the same leaf, if one is named."""
        ids = [f"{topic}-{number:05d}" for number in numbers]
        vectors = np.stack([near(topic, number) for number in numbers])
        self.app.embeddings.append(ids, [TODAY] * len(ids), vectors)
        if leaf is not None:
            self.assign(dict.fromkeys(ids, leaf_id(leaf)))
        return ids

    def assign(self, more: dict[str, LeafId]) -> None:
        self.app.forests.assign({**self.app.forests.assignment(), **more})

    def leaf(self, topic: str, *, at: str | None = None, **about: Any) -> Leaf:
        """Put a leaf in the forest, its centroid at a topic."""
        fields: dict[str, Any] = {
            "id": leaf_id(topic),
            "name": topic,
            "stage": Stage.SEED,
            "stage_since": Instant(1),
            "level": 2,
            "kind": Kind.SKILL,
            "grown_from": GrownFrom.DATA,
            "parent": None,
            "lineage": (),
            "created": Instant(1),
            "sessions": 300,
            "growth_per_day": 5.0,
            "centroid": towards(at or topic),
        }
        leaf = Leaf(**{**fields, **about})
        self.app.forests.change(leaf, "born", "by a test", Instant(1))
        return leaf

    def grown(self, *topics: str, sessions: int = 300, **about: Any) -> None:
        """Leaves of these topics, each with its sessions."""
        for topic in topics:
            self.leaf(topic, sessions=sessions, **about)
            self.sessions(topic, range(sessions), leaf=topic)

    def closed(self, session: str, leaf: str, outcome: str, **routing: Any) -> None:
        """A session that a leaf answered, and how it ended."""
        self.records += 1
        about = {"leaf_id": leaf_id(leaf), "fallback_used": False, **routing}
        self.app.corpus.add_records(
            [
                record(
                    self.records,
                    at=NOON + self.records,
                    session_id=session,
                    content_type="workflow",
                    content="SESSION_CLOSE",
                    metadata={"event": "SESSION_CLOSE", "outcome": outcome, "routing": about},
                )
            ]
        )

    def deploy(self) -> dict[str, Any]:
        """As the last phase of a round; its figures."""
        self.told.clear()
        return self.app.deploy_anew(self.told.append).figures

    def events(self) -> list[str]:
        return [told.event for told in self.told]

    def names(self) -> set[str]:
        table = self.app.tables.load()
        return {entry.name for entry in table.entries} if table else set()


def leaf_id(topic: str) -> LeafId:
    return LeafId(hashlib.sha256(topic.encode()).hexdigest()[:32])


def routed(folder: Path, monkeypatch: pytest.MonkeyPatch, rules: Rules | None = None) -> Routed:
    monkeypatch.setenv("GROOVE_HOME", str(folder / "home"))
    monkeypatch.setenv("GROOVE_STATE", str(folder / "state"))
    app = App.open(create=True)
    assert app.origin
    any_app: Any = app
    any_app.clock = HandClock()
    any_app.encoder = StarterEncoder
    if rules is not None:
        from msgspec import structs

        any_app.config = structs.replace(app.config, rules=rules)
    return Routed(app)


def _drawn(seed: str) -> Vector:
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    drawn = np.random.default_rng(key).normal(size=(1, DIMENSIONS)).astype(np.float32)
    row: Vector = unit(drawn)[0]
    return row
