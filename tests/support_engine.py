"""A round's tools with simulated models: known topics, losses as a function of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np

from leaves.discover import default_clusterer
from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import Rules
from leaves.model import Instant, Matrix, Vector, unit
from leaves.ports import (
    EvaluateJob,
    Example,
    Losses,
    PreferenceJob,
    Probed,
    ProbeJob,
    Report,
    Schedule,
    Trained,
    TrainJob,
    silent,
)
from leaves.store import ForestStore
from leaves.training.chassis import open_chassis
from leaves.training.tensors import pack
from node.bundles import BundleStore
from node.capture.sessions import Session
from node.classroom import Classroom, TrainAll
from node.engine import Round, Tools
from node.examining import Gate
from node.tables import Deployed
from node.told import Told

DIMENSIONS = 32
TOPICS = ("gears", "poems", "tides")
RULES = Rules(
    branch_sessions=1000,
    seed_sessions=40,
    child_sessions=20,
    first_discovery_sessions=50,
    skill_sessions=60,
    reasoning_sessions=60,
    sprout_retrain_sessions=30,
    mature_sessions=60,
)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test may catch it."""


def sessions(per_topic: int, start: int = 0) -> list[Session]:
    """Sessions `start` to `start + per_topic` of each topic."""
    return [
        Session(
            session_id=f"{topic}-{number:04d}",
            user_id="u",
            opened=1_700_000_000.0,
            last=1_700_000_000.0,
            prompt=f"{topic} question {number}",
            completion=f"an answer about {topic} number {number}",
            domain="code",
            source="jsonl",
            group=f"{topic}-{number // 3}",
            terms_class="own",
            closed=True,
            outcome="accepted",
            quality=80,
        )
        for topic in TOPICS
        for number in range(start, start + per_topic)
    ]


def rated(topic: str, count: int) -> list[Session]:
    """For each of some asks a good answer and a bad one."""
    plain = [
        replace(s, group=s.session_id)
        for s in sessions(count, start=1000)
        if s.session_id.startswith(topic)
    ]
    good = [replace(s, completion=f"good {s.completion}", quality=90, tier="A") for s in plain]
    bad = [
        replace(s, session_id=f"{s.session_id}-c", completion=f"bad {s.completion}", quality=10,
                tier="C", outcome="rejected")
        for s in plain
    ]  # fmt: skip
    return good + bad


class TopicEncoder:
    """A point near its topic's centre; the same text gives the same point."""

    enc8 = b"topic--1"
    name = "topics"
    dimensions = DIMENSIONS

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        return np.stack([self.encode_one(text) for text in texts])

    def encode_one(self, text: str) -> Vector:
        topic = text.split()[0]
        near = np.random.default_rng(_seed(text)).normal(0, 0.08, DIMENSIONS)
        centre = np.random.default_rng(_seed(topic)).normal(0, 1, DIMENSIONS)
        vector: Vector = unit((centre / np.linalg.norm(centre) + near)[None].astype(np.float32))[0]
        return vector


@dataclass
class TopicTrainer:
    """Writes an adapter of the right form, whose bytes depend on the job alone."""

    trained: list[str] = field(default_factory=list)  # what was asked for, in order
    before: Callable[[], None] = lambda: None

    def train(self, job: TrainJob, report: Report = silent) -> Trained:
        self.before()
        done = job.work / "adapter.safetensors"
        if not done.exists():
            self.trained.append(f"{job.work.parent.parent.name}/{job.work.name}")
            done.write_bytes(adapter_bytes(job))
        sha256 = hashlib.sha256(done.read_bytes()).hexdigest()
        return Trained(done, sha256, 1000, 1.0, 2.0, 1.0)

    def prefer(self, job: PreferenceJob, report: Report = silent) -> Trained:
        """Writes an adapter of the right form, whose bytes depend on the pairs' sessions."""
        self.before()
        done = job.work / "adapter.safetensors"
        if not done.exists():
            self.trained.append(f"{job.work.parent.parent.name}/{job.work.name}")
            examples = tuple(Example(pair.session, "", "") for pair in job.pairs)
            done.write_bytes(adapter_bytes(TrainJob(job.work, job.chassis, examples, job.schedule)))
        sha256 = hashlib.sha256(done.read_bytes()).hexdigest()
        return Trained(done, sha256, 1000, 1.0, 0.7, 0.6)

    def stop(self) -> None:
        """Nothing runs on."""


class TopicEvaluator:
    """A leaf's adapter is 0.3 nats better than its control, a second version 0.1 than the first.

    A preferred adapter likes what is called good, where the one before it does not care.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []  # labels, by job

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        level = {"parent": 3.0, "style": 2.3, "second": 2.32, "previous": 2.1, "candidate": 2.0}
        level["preferred"] = 2.0
        self.asked.append(tuple(label for label, _ in job.adapters))
        rng = Random(len(job.examples))
        own = [rng.gauss(0, 0.05) for _ in job.examples]
        general = [example.session.startswith("general/") for example in job.examples]
        liked = [0.5 * example.completion.startswith("good") for example in job.examples]
        by_label = {
            label: tuple(
                (3.0 if other else level[label] - (like if label == "preferred" else 0)) + noise
                for noise, other, like in zip(own, general, liked, strict=True)
            )
            for label, _ in job.adapters
        }
        return Losses(by_label, (10,) * len(job.examples))

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed:
        """Nothing is known by heart."""
        return Probed((3,) * len(job.examples), (10,) * len(job.examples))


def adapter_bytes(job: TrainJob) -> bytes:
    """A LoRA of the chassis' shapes, small, seeded by the sessions it was trained on."""
    chassis = open_chassis(job.chassis)
    names = json.dumps([example.session for example in job.examples])
    rng = np.random.default_rng(_seed(f"{names}{job.schedule.seed}"))
    shapes = chassis.adapter_shapes(job.schedule.rank, chassis.targets)
    tensors = {n: rng.normal(0, 1e-3, shape).astype(np.float32) for n, shape in shapes.items()}
    about = {"rank": str(job.schedule.rank), "alpha": str(job.schedule.alpha), "format": "pt"}
    return pack(tensors, about)


@dataclass
class Bench:
    """One home's stores, and rounds over them."""

    home: Path
    chassis: Path
    captured: list[Session]
    train: bool = True
    trainer: TopicTrainer = field(default_factory=TopicTrainer)
    told: list[Told] = field(default_factory=list)
    deployed: int = 0
    left_out: frozenset[str] = frozenset()
    control_pairs: int = 0
    evaluator: TopicEvaluator = field(default_factory=TopicEvaluator)
    gate: Gate | None = None  # without one, labels do not say what adapters give away
    train_all: TrainAll | None = None  # trains leaves side by side, before the round judges them

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "rounds").mkdir(exist_ok=True)
        self.store = ForestStore(self.home / "leaves.db", b"\1" * 32)
        self.bundles = BundleStore(self.home / "bundles")
        self.embeddings = EmbeddingStore.open(self.home / "emb", TopicEncoder.enc8, DIMENSIONS)

    def round(self, rules: Rules = RULES) -> Round:
        tools = Tools(
            folder=self.home / "rounds",
            sessions=lambda: self.captured,
            embeddings=self.embeddings,
            store=self.store,
            encoder=TopicEncoder,
            clusterer=default_clusterer(),
            classroom=self.classroom if self.train else None,
            deploy=self._deploy,
            now=lambda: Instant(0),
            chassis=lambda: open_chassis(self.chassis).tag8.hex(),
            train_all=self.train_all,
        )
        return Round(tools, rules, self.told.append)

    def classroom(self, rules: Rules = RULES) -> Classroom:
        (self.home / "training").mkdir(exist_ok=True)
        return Classroom(
            self.home / "training",
            self.store,
            self.bundles,
            open_chassis(self.chassis),
            self.trainer,
            self.trainer,
            self.evaluator,
            Schedule(),
            0.08,
            self.left_out,
            rules=rules,
            control_pairs=self.control_pairs,
            gate=_always(self.gate) if self.gate else None,
        )

    def _deploy(self) -> Deployed:
        self.deployed += 1
        return Deployed(len(self.store.forest().live()), {})


def _always(gate: Gate) -> Callable[[Report], Gate]:
    return lambda report: gate


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
