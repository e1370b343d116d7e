"""What the lifecycle needs done, and leaves to others: clusters, adapters, losses, blobs, cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .model import Matrix

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long job is. `detail` is a few words such as a rate; it never holds a prompt."""

    phase: str
    done: int
    total: int
    detail: str = ""


# Called about once a second by whatever lasts. It may raise: that is how work is cancelled.
Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A `Report` that tells nobody."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One group of sessions at one level. `parent` is an index into the level above, or None."""

    level: int  # 1, 2 or 3
    members: tuple[str, ...]  # session ids, sorted
    parent: int | None


class NoiseReason(StrEnum):
    """Why a session is in no domain."""

    ALONE = "alone"  # nothing like it is here
    BETWEEN = "between"  # its neighbours belong to several domains
    COPIES = "copies"  # one ask repeated, which is not a domain however often it comes


@dataclass(frozen=True, slots=True)
class Found:
    """How sure a domain is.

    stability: mean Jaccard index of its members with the cluster that is most like it in
    subsamples, 0 to 1; above 0.75 it is there, below 0.5 it may be chance (Hennig 2007). None
    where the clusterer draws no subsamples, or took all sessions as one domain.
    cohesion: median cosine of a member to the centroid. distinct: members that are not copies.
    """

    stability: float | None
    cohesion: float
    distinct: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What a re-cluster can say about itself.

    domains: parallel to the clusters of level 2. noise: how many sessions for each reason.
    stability: adjusted Rand index between subsamples, by nearest centroid over all sessions.
    settings: what was chosen from the data, in words.
    """

    domains: tuple[Found, ...]
    noise: dict[NoiseReason, int]
    stability: float | None
    settings: str


@dataclass(frozen=True, slots=True)
class Clustering:
    """What one full re-cluster found.

    levels[i] holds the clusters of level i + 1. A session is in at most one cluster per level.
    noise: sessions in no cluster of level 2. Deterministic, and free of the order of the rows.
    """

    levels: tuple[tuple[Cluster, ...], tuple[Cluster, ...], tuple[Cluster, ...]]
    noise: tuple[str, ...]
    findings: Findings | None = None


@dataclass(frozen=True, slots=True)
class ClusterSizes:
    """Smallest cluster of each level; the specification's §4 gives 1000, 200 and 100."""

    branch: int = 1000
    domain: int = 200
    specialisation: int = 100


class Clusterer(Protocol):
    """Finds three levels of domains in vectors."""

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        """Return the clusters of `vectors`, whose row i belongs to session `ids[i]`."""
        ...


class CheckKind(StrEnum):
    """How an answer can be checked by a program; `leaves.training.answers` says what each asks."""

    NUMBER = "number"
    EXACT = "exact"
    CONTAINS = "contains"
    CHOICE = "choice"
    TESTS = "tests"


@dataclass(frozen=True, slots=True)
class Check:
    """What a right answer is, where a session says so. `answer` is empty for tests alone."""

    kind: CheckKind
    answer: str = field(default="", repr=False)
    options: tuple[str, ...] = field(default=(), repr=False)  # of a choice, A first
    tests: tuple[str, ...] = field(default=(), repr=False)  # statements that raise if it is wrong
    setup: str = field(default="", repr=False)  # run before the answer


@dataclass(frozen=True, slots=True)
class Example:
    """One session as training sees it. `group` keeps near-copies on one side of a split."""

    session: str
    prompt: str
    completion: str
    group: str = ""
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How an adapter is trained (source of the defaults: measured on 10 of 10 runs that won)."""

    steps: int = 16
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 3
    rank: int = 8
    alpha: int = 16
    seed: int = 0
    tokens_max: int = 512  # of one session; what is longer is cut at the end of its completion


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Train one adapter. `work` holds the checkpoint: the same job run again goes on from there."""

    work: Path
    chassis: Path
    examples: tuple[Example, ...]
    schedule: Schedule
    warm_start: Path | None = None  # adapter.safetensors of the version before
    checkpoint_steps: int = 4  # so many steps at most are lost to a kill; each writes 29 MB at r=8


@dataclass(frozen=True, slots=True)
class Preference:
    """One ask, the answer that was liked and the one that was not.

    group keeps near-copies on one side of a split. The sessions are those whose answers they are,
    one session where its owner edited an answer.
    """

    prompt: str = field(repr=False)
    chosen: str = field(repr=False)
    rejected: str = field(repr=False)
    group: str = ""
    session: str = ""  # of the chosen answer
    rejected_session: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceJob:
    """Move an adapter towards the answers that were liked.

    `work` holds the checkpoint, as in a TrainJob, and what the warm start says of each pair: it is
    the reference. schedule.batch counts pairs. beta: how far the adapter may go from the reference
    for a preference, per nat of a mean over tokens.
    """

    work: Path
    chassis: Path
    pairs: tuple[Preference, ...]
    schedule: Schedule
    warm_start: Path  # adapter.safetensors of the supervised training
    beta: float
    checkpoint_steps: int = 4  # as in a TrainJob


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished adapter. The same job on the same machine gives the same bytes."""

    adapter: Path
    sha256: str
    tokens: int
    seconds: float
    loss_first: float  # mean over the first quarter of the steps
    loss_last: float  # and over the last
    dtype: str = "float32"  # that the chassis was computed in
    strength: float = 1.0  # share of what was learned that is left, so that the rest is not spoilt


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """Measure the loss of each example's completion under the chassis and under adapters."""

    chassis: Path
    examples: tuple[Example, ...]
    adapters: tuple[tuple[str, Path | None], ...]  # (label, adapter); None is the bare chassis


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats per completion token: by label, one value per example, in the job's order."""

    by_label: dict[str, tuple[float, ...]]
    tokens: tuple[int, ...]  # completion tokens of each example


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Look in an adapter for texts that it was trained on."""

    chassis: Path
    adapter: Path
    examples: tuple[Example, ...]
    tokens_max: int = 512  # of one session, as in training
    run_tokens: int = 50  # what the chassis knows by itself for so long was not learned here


@dataclass(frozen=True, slots=True)
class Probed:
    """What of each example comes out word for word, given what stands before it; in tokens."""

    longest: tuple[int, ...]  # in one piece, but for what the chassis or the session said before
    tokens: tuple[int, ...]  # of the completion


class Trainer(Protocol):
    """Turns sessions into an adapter."""

    def train(self, job: TrainJob, report: Report = silent) -> Trained: ...

    def prefer(self, job: PreferenceJob, report: Report = silent) -> Trained:
        """Go on from the job's warm start towards the chosen answers."""
        ...

    def stop(self) -> None:
        """End a training that runs in another thread; what it reached is kept."""
        ...


class Evaluator(Protocol):
    """Measures losses; judging them is `leaves.training.evaluate`'s."""

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses: ...

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed: ...


class Answerer(Protocol):
    """Lets a chassis answer, with an adapter or without."""

    def generate(
        self,
        chassis: Path,
        adapters: Sequence[tuple[str, Path | None]],
        prompts: Sequence[str],
        tokens: int,
        report: Report = silent,
    ) -> dict[str, tuple[str, ...]]:
        """Answer each prompt under each adapter, greedily; by label, one answer per prompt."""
        ...


class BlobStore(Protocol):
    """Keeps immutable blobs under their content address, hex: a hash that depends on all bytes."""

    def put(self, data: bytes) -> str:
        """Keep a blob for good and return its address; the same bytes twice are one blob."""
        ...

    def get(self, address: str) -> bytes | None: ...

    def delete(self, address: str) -> bool: ...

    def path(self, address: str) -> Path | None:
        """The blob as a file, if it is here."""
        ...


class Executor(Protocol):
    """Runs CPU work away from the caller. `fn` and its arguments must be
    plain data, functions and dataclasses that have a name, or arrays."""

    def submit(self, fn: Callable[..., T], *args: Any) -> Future[T]: ...

    def close(self) -> None: ...
