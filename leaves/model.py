"""Frozen values that describe leaves: what a leaf is, and the forest it stands in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NewType

import numpy as np
from numpy.typing import NDArray

LeafId = NewType("LeafId", str)  # 32 lower-case hex digits: the 16 bytes that cross the wire
Instant = NewType("Instant", int)  # Unix seconds, UTC; always passed in, never read here
Vector = NDArray[np.float32]  # shape (d,), unit length
Matrix = NDArray[np.float32]  # shape (n, d), rows of unit length

DAY_S = 86_400
HOLDS_LOW_MIN = -0.02  # nats per token; a version whose lower bound is above it holds


class Stage(StrEnum):
    """Where a leaf stands in its life; it is in exactly one stage at any time."""

    SEED = "seed"
    SPROUT = "sprout"
    MATURE = "mature"
    ARCHIVED = "archived"
    DISSOLVED = "dissolved"  # a seed whose cluster went away
    MERGED = "merged"  # lives on in another leaf

    @property
    def live(self) -> bool:
        """True while the leaf has a centroid in the router."""
        return self in (Stage.SEED, Stage.SPROUT, Stage.MATURE)


class Kind(StrEnum):
    """What the tagger's majority says of a leaf's sessions; it sets the training threshold."""

    SKILL = "skill"  # code, journalism or general
    REASONING = "reasoning"  # research or planning


class GrownFrom(StrEnum):
    """The specification's `origin` of a leaf; `origin` itself means a mesh key here."""

    DATA = "data_driven"
    STARTER = "synthetic"


class Verdict(StrEnum):
    """What an evaluation says of a candidate. The first three judge a first training."""

    BETTER = "better"
    NOT_BETTER = "not better"
    TOO_FEW = "too few"
    IMPROVED = "improved"
    HOLDS = "holds"
    REGRESSED = "regressed"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean gain in nats per token, with its one-sided 95 % bootstrap bounds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PreferenceEvaluation:
    """What the preference step came to, on held-out pairs of a better and a worse answer.

    Accuracies are shares of pairs whose better answer has the smaller loss per token.
    """

    pairs: int
    accuracy_before: float
    accuracy_after: float
    gain: Interval  # of that share
    loss_rise: float  # upper bound of what plain answers lost by it, nats per token
    verdict: Verdict  # BETTER, NOT_BETTER or TOO_FEW
    attempt: int = 1  # which judged look at this leaf's preference steps it was, from 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one evaluation, kept with the leaf and printed in its label.

    Gains are of the candidate over the named rival, positive when the candidate's loss is lower.
    Their intervals are at 95 % whatever `confidence` the look asked for; what decided is `decided`.
    """

    held_out: int
    loss: float  # nats per completion token of the candidate, mean over sessions
    over_parent: Interval
    over_style: Interval
    over_previous: Interval | None
    general_rise: float | None  # upper bound of the loss increase on other kinds of text
    won: bool
    verdict: Verdict
    at: Instant
    confidence: float = 0.95  # of each bound that decided; rises with the looks that were taken
    attempt: int = 1  # which judged look at this leaf it was, from 1
    margin: float = 0.08  # nats per token that the style control had to be beaten by
    parent_margin: float = 0.0  # and the parent
    decided: tuple[float, float] | None = None  # lower bounds over parent and style, at confidence
    right: tuple[float, float] | None = None  # rate of right answers: the parent's, the candidate's
    answers: int = 0  # how many checkable sessions `right` is of
    preference: PreferenceEvaluation | None = None  # None: there was no preference step

    @property
    def surely_worse(self) -> bool:
        """True if it regressed and the whole interval says so; a verdict alone may be chance.

        Two versions of a converged leaf differ by their runs: of its looks a fifth to a third say
        REGRESSED, and one in a hundred says it surely.
        """
        over = self.over_previous
        return self.verdict is Verdict.REGRESSED and over is not None and over.high < HOLDS_LOW_MIN


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter, packed as a bundle. Addresses and hashes are hex."""

    bundle: str  # content address of the bundle
    label: str  # SHA-256 of its label
    control: str  # content address of the style control that it was measured against
    chassis: str  # tag of the chassis that it belongs to, 8 bytes
    rank: int


class Looking(StrEnum):
    """What a look asked: whether the leaf wins, or whether preferences made it better."""

    ADAPTER = "adapter"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class Look:
    """One judged look by hand, of which no training was recorded yet."""

    what: Looking
    chassis: str  # tag, as in `Adapter`
    seal: str  # names what was judged and on what: see `looks.seal`
    number: int  # from 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """One domain of this node, as of one moment."""

    id: LeafId
    name: str
    stage: Stage
    stage_since: Instant
    level: int  # 1 branch, 2 domain, 3 specialisation
    kind: Kind
    grown_from: GrownFrom
    parent: LeafId | None
    lineage: tuple[LeafId, ...]  # the leaves it was split or merged from
    created: Instant
    sessions: int
    growth_per_day: float
    centroid: Vector = field(compare=False, repr=False)
    version: int = 1  # rises with every change that others may see
    missed: int = 0  # full re-clusters in a row in which its cluster was not found
    trainings: int = 0
    trained_at: Instant | None = None
    first_trained: Instant | None = None
    sessions_at_training: int = 0
    wins: int = 0  # rounds won on fresh held-out sessions
    regressions: int = 0  # sure ones, since a version last held or was better
    matured_at: Instant | None = None
    method: str = ""  # "sft" or "sft+dpo"
    note: str = ""  # what was skipped, and why
    adapter: Adapter | None = None  # the one in force
    evaluation: Evaluation | None = None
    last_routed: Instant | None = None
    gate: float = 0.0  # cosine below which the parent serves
    used_by: int = 0  # origins whose usage records name this leaf
    newest: Instant | None = None  # session of its cluster, when that was last found
    stability: float | None = None  # of its cluster in subsamples, 0 to 1; None: not known
    cohesion: float | None = None  # median cosine of a member to the centroid
    named_by_owner: bool = False
    attempts: int = 0  # judged looks at whether it wins, as a sprout; "too few" is none
    preference_looks: int = 0  # and at whether a preference step made it better, in any stage
    looked: tuple[Look, ...] = ()  # looks by hand since its last training, counted in those two
    cluster: int | None = None  # index of its cluster in the last look that found it
    week: int = 0  # of its sessions, those of the seven days before it was last found
    apart: int = 0  # full looks in a row that found a part of it beside its cluster,
    parts: int = 0  # and within

    def untrained(self) -> Leaf:
        """Without its adapter and what came of its trainings; looks taken at it stay counted."""
        return replace(
            self,
            adapter=None,
            evaluation=None,
            trainings=0,
            trained_at=None,
            first_trained=None,
            sessions_at_training=0,
            wins=0,
            regressions=0,
            matured_at=None,
            method="",
            note="",
        )


@dataclass(frozen=True, slots=True)
class Forest:
    """All leaves of one node that ever lived, and how many births there were.

    origin: the node's mesh origin, 32 bytes; ids are derived from it and the count of births.
    """

    leaves: Mapping[LeafId, Leaf]
    births: int = 0
    origin: bytes = b""

    def __iter__(self) -> Iterator[Leaf]:
        """All leaves, by id."""
        return (self.leaves[leaf] for leaf in sorted(self.leaves))

    def live(self) -> list[Leaf]:
        """Leaves that have a centroid in the router, by id."""
        return [leaf for leaf in self if leaf.stage.live]

    def with_leaf(self, leaf: Leaf) -> Forest:
        return Forest({**self.leaves, leaf.id: leaf}, self.births, self.origin)

    def with_births(self, *born: Leaf) -> Forest:
        grown = {**self.leaves, **{leaf.id: leaf for leaf in born}}
        return Forest(grown, self.births + len(born), self.origin)


def leaf_id(origin: bytes, birth: int) -> LeafId:
    """Return the id of an origin's leaf: SHA-256("groove/leaf/1" ‖ origin ‖ birth)[:16], hex."""
    digest = hashlib.sha256(b"groove/leaf/1" + origin + birth.to_bytes(8, "big")).digest()
    return LeafId(digest[:16].hex())


def unit(vectors: Matrix) -> Matrix:
    """Return rows scaled to unit length; a zero row stays zero."""
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    scaled: Matrix = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
