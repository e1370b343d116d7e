"""A home whose rounds split, merge, prefer and propose: clusters by label, all models simulated."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from support_engine import (
    DIMENSIONS,
    RULES,
    Bench,
    Killed,
    TopicEncoder,
    TopicEvaluator,
    sessions,
)

from leaves.lifecycle import Rules
from leaves.model import DAY_S, Instant, LeafId, Matrix, Vector, unit
from leaves.ports import (
    Cluster,
    Clustering,
    ClusterSizes,
    EvaluateJob,
    Losses,
    Report,
    Schedule,
    silent,
)
from leaves.training.chassis import open_chassis
from node.capture.sessions import Session
from node.classroom import Classroom
from node.engine import Round, Tools

NOW = Instant(1_700_100_000)
ASKS: Rules = msgspec.structs.replace(RULES, approve="ask", stay_days=0, part_looks=1)
NEAR = {"waves": "tides"}  # so near that the two are to be merged


def day(number: int) -> Instant:
    return Instant(NOW + number * DAY_S)


def asked(topics: Sequence[str], start: int, count: int) -> list[Session]:
    """Sessions of these topics, numbered from `start`; the owner mends answers in one of them."""
    return [_session(topic, number) for topic in topics for number in range(start, start + count)]


def _session(topic: str, number: int) -> Session:
    plain = replace(
        sessions(1)[0],
        session_id=f"{topic}-{number:04d}",
        prompt=f"{topic} question {number}",
        completion=f"an answer about {topic} number {number}",
        group=f"{topic}-{number}",
    )
    if topic != "late":
        return plain
    word = hashlib.sha256(plain.session_id.encode()).hexdigest()
    ask = " ".join(word[at : at + 6] for at in range(0, 60, 6))
    said = f"unloved {word}"
    return replace(
        plain,
        prompt=f"late question {number} {ask}",
        edited_ask=f"late question {number} {ask}",
        edited_terms="own",
        completion=said,
        edited=f"loved {word[::-1]}",
        edited_from=said,
    )


class PartedEncoder(TopicEncoder):
    """Each topic has two parts, of even and of odd numbers, as far apart in every topic."""

    def encode_one(self, text: str) -> Vector:
        topic, _, number = text.split()[:3]
        centre = _direction(NEAR.get(topic, topic)) + 0.15 * _direction(f"only {topic}")
        part = _direction(f"part {int(number) % 2}")
        near = np.random.default_rng(_seed(text)).normal(0, 0.03, DIMENSIONS)
        vector: Vector = unit((centre + 0.6 * part + near)[None].astype(np.float32))[0]
        return vector


@dataclass
class LabelClusterer:
    """A domain for each topic of at least 20 sessions, with parts where they are to be seen."""

    parted: frozenset[str] = frozenset()

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        topics = sorted({id_.partition("-")[0] for id_ in ids})
        branch = Cluster(1, tuple(sorted(ids)), None)
        domains, parts = [], []
        for at, topic in enumerate(topics):
            mine = tuple(sorted(id_ for id_ in ids if id_.startswith(f"{topic}-")))
            domains.append(Cluster(2, mine, 0))
            if topic in self.parted:
                for odd in (0, 1):
                    members = tuple(id_ for id_ in mine if int(id_[-4:]) % 2 == odd)
                    parts.append(Cluster(3, members, at))
        return Clustering(((branch,), tuple(domains), tuple(parts)), ())


class PreferringEvaluator(TopicEvaluator):
    """What was moved towards the liked answers tells them from the others."""

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        labels = [label for label, _ in job.adapters]
        if "preferred" not in labels:
            return super().losses(job, report)
        noise = Random(len(job.examples))
        base = [2.0 + noise.gauss(0, 0.01) for _ in job.examples]
        worse = [0.5 if "unloved" in example.completion else 0.0 for example in job.examples]
        moved = tuple(loss + extra for loss, extra in zip(base, worse, strict=True))
        return Losses({"candidate": tuple(base), "preferred": moved}, (10,) * len(job.examples))


@dataclass
class Reshaping(Bench):
    """Rounds that ask before they split or merge."""

    parted: frozenset[str] = frozenset()
    rules: Rules = ASKS
    encoder: Callable[[], TopicEncoder] = PartedEncoder
    chassis_tag: str | None = None

    def round(self) -> Round:
        tools = Tools(
            folder=self.home / "rounds",
            sessions=lambda: self.captured,
            embeddings=self.embeddings,
            store=self.store,
            encoder=self.encoder,
            clusterer=LabelClusterer(self.parted),
            classroom=self._room if self.train else None,
            deploy=self._deploy,
            now=lambda: Instant(0),
        )
        return Round(tools, self.rules, self.told.append)

    def leaf(self, name: str) -> LeafId:
        """The live domain whose sessions are of this topic."""
        held = self.store.leaf_of([f"{name}-0000"])[f"{name}-0000"]
        leaf = self.store.forest().leaves[held]
        return leaf.parent if leaf.level == 3 and leaf.parent is not None else held

    def say(self, yes: bool, *kinds: str) -> None:
        for proposal in self.store.proposals.waiting():
            if proposal.kind in kinds:
                self.store.proposals.answer(proposal.id, yes, NOW)

    def _room(self, rules: Rules) -> Classroom:
        (self.home / "training").mkdir(exist_ok=True)
        return Classroom(
            self.home / "training",
            self.store,
            self.bundles,
            open_chassis(self.chassis),
            self.trainer,
            self.trainer,
            PreferringEvaluator(),
            Schedule(),
            0.08,
            rules=rules,
        )


def prepared(home: Path, chassis: Path) -> Reshaping:
    """A home before the round that splits gears, merges tides and waves, prefers in late, and
    comes to propose a split of poems."""
    bench = Reshaping(home, chassis, asked(("gears", "poems", "tides", "waves"), 0, 70))
    bench.round().run(day(0))
    bench.captured += asked(("gears", "poems", "tides", "waves"), 70, 50)
    bench.round().run(day(1))
    bench.captured += asked(("late",), 0, 70)
    bench.parted = frozenset({"gears"})
    bench.round().run(day(2))
    bench.say(True, "split", "merge")
    return bench


def the_round(home: Path, chassis: Path) -> Reshaping:
    """The same home, ready for that round."""
    first = asked(("gears", "poems", "tides", "waves"), 0, 120)
    captured = first + asked(("late",), 0, 70) + asked(("late",), 70, 100)
    return Reshaping(home, chassis, captured, parted=frozenset({"gears", "poems"}))


def everything(bench: Bench) -> dict[str, Any]:
    """All that a home holds of its leaves, to be compared: each table, and each bundle's hash."""
    tables = ("meta", "leaf", "history", "member", "lineage", "proposal", "rule")
    with sqlite3.connect(bench.home / "leaves.db") as db:
        rows = {t: sorted(map(repr, db.execute(f"SELECT * FROM {t}"))) for t in tables}
        states = [msgspec.json.decode(blob) for (blob,) in db.execute("SELECT state FROM round")]
    files = sorted((bench.home / "bundles").rglob("*.bundle"))
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    left = sorted(path.name for path in (bench.home / "rounds").iterdir())
    for state in states:
        del state["took"]  # a measurement of two processes is another than that of one
    return {**rows, "journal": states, "bundles": hashes, "rounds": left}


@dataclass
class Wire:
    """Ends the process in the moment after its n-th lasting step; without `at` it only counts."""

    at: int | None = None
    steps: list[str] = field(default_factory=list)

    def hit(self, what: str) -> None:
        self.steps.append(what)
        if self.at is not None and len(self.steps) == self.at:
            raise Killed

    def tie(self, bench: Bench) -> None:
        """Have every commit and every file of a home pull it."""
        db = _Tied(bench.store._db, self)
        bench.store._db = db  # type: ignore[assignment]
        bench.store.proposals._db = db  # type: ignore[assignment]
        for owner, method in ((bench.bundles, "put"), (bench.embeddings, "append")):
            setattr(owner, method, self._after(getattr(owner, method), method))
        trainer = bench.trainer
        for method in ("train", "prefer"):
            setattr(trainer, method, self._after(getattr(trainer, method), method))

    def _after(self, work: Callable[..., Any], what: str) -> Callable[..., Any]:
        def done(*args: Any, **kwargs: Any) -> Any:
            result = work(*args, **kwargs)
            self.hit(what)
            return result

        return done


class _Tied:
    """A connection that tells what lasts: a commit, or a write outside of a transaction."""

    def __init__(self, db: sqlite3.Connection, wire: Wire) -> None:
        self._db = db
        self._wire = wire

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
        cursor = self._db.execute(statement, *args)
        first = statement.split(maxsplit=1)[0]
        if first == "COMMIT":
            self._wire.hit("commit")
        elif first in ("INSERT", "UPDATE", "DELETE") and not self._db.in_transaction:
            self._wire.hit(f"{first.lower()} {statement.split()[1]}")
        return cursor

    def executemany(self, statement: str, *args: Any) -> sqlite3.Cursor:
        return self._db.executemany(statement, *args)

    def close(self) -> None:
        self._db.close()


def _direction(name: str) -> Vector:
    drawn = np.random.default_rng(_seed(name)).normal(0, 1, DIMENSIONS)
    direction: Vector = (drawn / np.linalg.norm(drawn)).astype(np.float32)
    return direction


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
