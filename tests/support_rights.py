"""A home with everything that is made of captured texts, and a hundred phrases to look for."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_capture import NOON, HandClock, record

from leaves.model import Adapter, GrownFrom, Instant, Kind, Leaf, LeafId, Stage, unit
from leaves.store import Role
from node.app import App
from node.capture import PIIScrubber, TrainingRecord
from node.consent import Scope
from node.mesh import Shown
from node.told import Told

PHRASES = [f"zymurgy{number:03d} qwxv" for number in range(100)]
_PLANTED = re.compile(rb"zymurgy\d{3} qwxv")
PUBLISHED, KEPT_HOME, HEIR, ALIEN = (LeafId(f"{number:032x}") for number in range(1, 5))


@dataclass
class World:
    """One home and what is remembered outside it. `restore` puts both back as they were."""

    folder: Path
    user: str = ""

    @property
    def home(self) -> Path:
        return self.folder / "world" / "home"

    def save(self) -> None:
        shutil.copytree(self.folder / "world", self.folder / "saved")

    def restore(self) -> None:
        shutil.rmtree(self.folder / "world")
        shutil.copytree(self.folder / "saved", self.folder / "world")

    def open(self, *, create: bool = False) -> App:
        app = App.open(create=create)
        any_app: Any = app
        any_app.clock = HandClock()
        any_app.scrubber = PIIScrubber()  # the machine's own secrets are of no use here
        return app

    def found(self, phrases: list[str] = PHRASES) -> list[str]:
        """Which phrases stand anywhere in the home, in whatever file."""
        everything = b"\0".join(
            path.read_bytes() for path in sorted(self.home.rglob("*")) if path.is_file()
        )
        planted = set(_PLANTED.findall(everything))  # a hundred searches take 30 ms
        return [
            phrase
            for phrase in phrases
            if phrase.encode() in (planted if phrases is PHRASES else everything)
        ]


def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A home with 120 sessions of two domains, four leaves, and all traces of an open round.

    The sessions s-000 to s-099 hold one phrase each; those from s-050 on are tagged planning.
    PUBLISHED was trained on s-000 to s-009, KEPT_HOME on s-050 to s-059; HEIR was split from
    KEPT_HOME; ALIEN was trained on sessions without a phrase.
    """
    made = World(folder)
    (folder / "world").mkdir(parents=True)
    monkeypatch.setenv("GROOVE_HOME", str(made.home))
    monkeypatch.setenv("GROOVE_STATE", str(folder / "world" / "state"))
    app = made.open(create=True)
    assert app.origin
    made.user = app.user_id
    app.consent.record_consent(
        app.user_id, True, "1.0", scopes=(Scope.CAPTURE, Scope.TRAIN, Scope.PUBLISH)
    )
    app.corpus.add_records(_records(app.user_id))
    _leaves(app)
    _traces(app)
    app.corpus.close()
    app.consent.close()
    app.forests.close()
    app.mailbox.close()
    made.save()
    return made


def _records(user: str) -> list[TrainingRecord]:
    out: list[TrainingRecord] = []
    for number in range(120):
        phrase = PHRASES[number] if number < 100 else "an ordinary phrase"
        about: dict[str, Any] = {
            "at": NOON + number,
            "user": user,
            "session_id": f"s-{number:03d}",
            "domain": "planning" if 50 <= number < 100 else "code",
        }
        out += [
            record(3 * number, **about, content=f"How is {phrase} made?"),
            record(
                3 * number + 1,
                **about,
                content_type="completion",
                content=f"With {phrase} and care.",
                terms_class="open",
            ),
            record(
                3 * number + 2,
                **about,
                content_type="workflow",
                content="SESSION_CLOSE",
                metadata={
                    "event": "SESSION_CLOSE",
                    "outcome": "accepted",
                    "session_embedding": {"source_text": f"How is {phrase} made?"},
                },
            ),
        ]
    return out


def _leaves(app: App) -> None:
    vectors = np.random.default_rng(0).normal(size=(120, 384)).astype(np.float32)
    ids = [f"s-{number:03d}" for number in range(120)]
    app.embeddings.append(ids, [20_000] * 120, unit(vectors))
    trained = {PUBLISHED: range(10), KEPT_HOME: range(50, 60), ALIEN: range(100, 110)}
    for leaf in (PUBLISHED, KEPT_HOME, HEIR, ALIEN):
        blob = f"an adapter of {leaf}".encode()
        adapter = Adapter(
            app.bundles.put(blob), "f" * 64, app.bundles.put(blob + b" control"), "ab" * 8, 8
        )
        app.forests.change(_leaf(leaf, vectors[int(leaf, 16)], adapter), "born", "", Instant(1))
        sessions = [ids[number] for number in trained.get(leaf, ())]
        app.forests.use(leaf, Role.TRAIN, sessions, 1)
    app.bundles.put(b"an adapter that was not taken")
    app.forests.assign(dict.fromkeys(ids[:50], PUBLISHED) | dict.fromkeys(ids[50:], KEPT_HOME))
    app.remember_shown({PUBLISHED: Shown(b"\1" * 384, 500)})
    app.deploy()


def _leaf(id_: LeafId, vector: Any, adapter: Adapter) -> Leaf:
    return Leaf(
        id=id_,
        name="zymurgy007-made" if id_ == PUBLISHED else f"domain-{id_[-1]}",
        stage=Stage.MATURE,
        stage_since=Instant(1),
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(KEPT_HOME,) if id_ == HEIR else (),
        created=Instant(1),
        sessions=500,
        growth_per_day=5.0,
        centroid=unit(vector[None])[0],
        trainings=3,
        trained_at=Instant(1),
        wins=2,
        adapter=adapter,
    )


def _traces(app: App) -> None:
    """What a round that was killed, and other work, leave lying about."""
    row = app.forests.begin_round(Instant(2), "train", {"due": [], "done": {}})
    for name in (f"rounds/{row.id}.json", f"training/{KEPT_HOME}/1/leaf/examples.json"):
        path = app.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": PHRASES[3], "other": PHRASES[53]}))
    (app.home / "adapters-x1").mkdir()
    (app.home / "adapters-x1" / "0.safetensors").write_bytes(b"a copy of an adapter")
    (app.home / ".shown.json.1.tmp").write_bytes(PHRASES[4].encode())
    app.events.tell(Told("stage", "zymurgy007-made: seed -> sprout"))
    torn = next(iter(app.corpus.files()))
    torn.with_name(torn.name + ".torn").write_bytes(PHRASES[5].encode() + b"\n")
