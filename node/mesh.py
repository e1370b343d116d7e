"""The forest out as cards, and peers' cards in as leaves that could serve here.

Pure: what may leave the machine is decided in `cards`, and the wire types are the whole of it.
A centroid goes out as int8, and a changed one only after enough new sessions: two successive
centroids with few sessions between them would give those sessions' embeddings away.
One head commits to all of a forest, so a split or a merge is told with the state of its parents.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gossip import wire
from gossip.view import OriginView
from leaves.model import (
    DAY_S,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Leaf,
    LeafId,
    Stage,
    Vector,
    unit,
)

REPUBLISH_SESSIONS = 50  # new sessions before a changed centroid is shown again
_STAGES = {
    Stage.SEED: wire.Stage.SEED,
    Stage.SPROUT: wire.Stage.SPROUT,
    Stage.MATURE: wire.Stage.MATURE,
}
ENDED_DAYS = 90  # then an ended leaf need not be told any more: all older heads have expired
INTEREST_COSINE = 0.5  # from there on a peer's leaf may be near enough to be of use one day
HEIRS_MAX = 8  # that the wire can name of one leaf
# Encoded bytes of a live row, of an ended one and of each of its heirs: together never too few.
_ROW_BYTES, _ENDED_BYTES, _HEIR_BYTES, _INDEX_BYTES = 58, 30, 18, 16


class Shown(msgspec.Struct, frozen=True):
    """What of a leaf was last published: its centroid, and how many sessions it was the mean of."""

    centroid: bytes
    sessions: int


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table to be signed, and what is then on record as shown.

    left_out: live leaves for which one head has no room, the smallest ones.
    """

    cards: tuple[wire.Card, ...]
    ended: tuple[wire.Ended, ...]
    shown: dict[LeafId, Shown]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Past:
    """What of the leaves' lives a forest does not say by itself.

    revived: leaves that came back from the archive. regressions: how many running archive a leaf.
    now: so that what ended long ago is told no more; None tells it for ever.
    """

    revived: Container[LeafId] = ()
    regressions: int = 3
    now: Instant | None = None


@dataclass(frozen=True, slots=True)
class ForeignLeaf:
    """A live leaf of another origin, as its card shows it."""

    origin: str  # hex
    leaf: LeafId
    version: int
    stage: Stage
    sessions_log2: int
    root: str | None  # address of its bundle
    label: str  # SHA-256 of its label, hex; empty without a bundle
    size_bytes: int
    chassis: str  # tag, hex
    centroid: Vector = field(compare=False, repr=False)


def cards(
    forest: Forest,
    shown: Mapping[LeafId, Shown],
    enc8: bytes,
    size_bytes: Callable[[str], int],
    retracted: frozenset[str],
    hidden: Container[LeafId] = (),
    past: Past = Past(),
) -> Table:
    """Return the table that stands for a forest.

    size_bytes: of the bundle at an address, 0 if it is not here.
    retracted: own leaves that were retracted; they are never shown again.
    hidden: own leaves that nothing is shown of for now.
    """
    public = [leaf for leaf in forest if _public(leaf) and leaf.id not in retracted]
    live = [leaf for leaf in public if leaf.stage in _STAGES]
    # What was shown stays on record, though it is not shown now: the next centroid depends on it.
    now_shown = {leaf.id: shown[leaf.id] for leaf in live if leaf.id in shown}
    told = _fitting([leaf for leaf in live if leaf.id not in hidden])
    now_shown |= {leaf.id: _show(leaf, shown.get(leaf.id)) for leaf in told}
    ended = _endings(forest, public, told, past)
    there = {leaf.id for leaf in told} | {LeafId(end.leaf.hex()) for end in ended}
    made = tuple(
        _card(leaf, now_shown[leaf.id], enc8, size_bytes, past, there)
        for leaf in sorted(told, key=lambda leaf: leaf.id)
    )
    left_out = sum(leaf.id not in hidden for leaf in live) - len(told)
    return Table(made, ended, now_shown, left_out)


def _public(leaf: Leaf) -> bool:
    """A branch is for its owner's browsing, and a starter is everybody's."""
    return leaf.level != 1 and leaf.grown_from is GrownFrom.DATA


def _fitting(live: Sequence[Leaf]) -> list[Leaf]:
    """As many leaves as one head can commit to: mature ones first, then those of most sessions."""
    ranked = sorted(
        live, key=lambda leaf: (leaf.stage is not Stage.MATURE, -leaf.sessions, leaf.id)
    )
    return ranked[: min(wire.TABLE_ROWS_MAX, (wire.INDEX_BYTES_MAX - _INDEX_BYTES) // _ROW_BYTES)]


def _endings(
    forest: Forest, public: Sequence[Leaf], told: Sequence[Leaf], past: Past
) -> tuple[wire.Ended, ...]:
    """What is told of leaves that ended: the parents of those that live, then the latest.

    One that lasted longer is told no more, nor one for which there is no room.
    """
    parents = {parent for leaf in told for parent in leaf.lineage}
    over = [leaf for leaf in public if leaf.stage not in _STAGES]
    if past.now is not None:
        since = past.now - ENDED_DAYS * DAY_S
        over = [leaf for leaf in over if leaf.id in parents or leaf.stage_since >= since]
    over.sort(key=lambda leaf: (leaf.id not in parents, -leaf.stage_since, leaf.id))
    rows = wire.TABLE_ROWS_MAX - len(told)
    room = wire.INDEX_BYTES_MAX - _INDEX_BYTES - _ROW_BYTES * len(told)
    chosen: list[Leaf] = []
    for leaf in over[:rows]:
        room -= _ENDED_BYTES + _HEIR_BYTES * min(HEIRS_MAX, len(_heirs(forest, leaf)))
        if room < 0:
            break
        chosen.append(leaf)
    there = {leaf.id for leaf in (*told, *chosen)}
    return tuple(
        _ended(forest, leaf, there, past) for leaf in sorted(chosen, key=lambda leaf: leaf.id)
    )


def _ended(forest: Forest, leaf: Leaf, there: Container[LeafId], past: Past) -> wire.Ended:
    """Why a leaf ended, and what it went into, as far as the table shows that."""
    heirs = [heir for heir in _heirs(forest, leaf) if heir in there]
    match leaf.stage:
        case Stage.MERGED:
            reason = wire.Reason.MERGED
        case Stage.DISSOLVED:
            reason, heirs = wire.Reason.DISSOLVED, []
        case _ if heirs:  # it was split, and its children took what came to it
            reason = wire.Reason.SUPERSEDED
        case _ if leaf.regressions >= past.regressions:
            reason = wire.Reason.REGRESSED
        case _:
            reason = wire.Reason.DORMANT
    into = tuple(bytes.fromhex(heir) for heir in heirs[:HEIRS_MAX])
    return wire.Ended(bytes.fromhex(leaf.id), leaf.version, reason, into)


def foreign(origin: bytes, live: Iterable[wire.Card], enc8: bytes) -> list[ForeignLeaf]:
    """Return an origin's leaves that can be compared with ours: those of the same encoder."""
    leaves = []
    for card in live:
        if card.enc != enc8:
            continue
        vector = np.frombuffer(card.centroid, np.int8).astype(np.float32)
        if not vector.any():  # has no direction, so it is near nothing
            continue
        leaves.append(
            ForeignLeaf(
                origin.hex(),
                LeafId(card.leaf.hex()),
                card.version,
                Stage[card.stage.name],
                card.sessions_log2,
                card.bundle.root.hex() if card.bundle else None,
                card.bundle.label.hex() if card.bundle else "",
                card.bundle.size_bytes if card.bundle else 0,
                card.chassis.hex(),
                unit(vector[None])[0],
            )
        )
    return leaves


def centres(forest: Forest) -> list[Vector]:
    """Return the directions of what this node has, branches among them."""
    return [leaf.centroid for leaf in forest.leaves.values() if leaf.stage is not Stage.ARCHIVED]


def interest(view: OriginView, own: Sequence[Vector], enc8: bytes) -> bool:
    """True if a live mature leaf of an origin is near one of the node's own leaves or branches.

    own: unit length. Whoever has none yet cannot tell, and is interested in all.
    """
    if not own:
        return True
    shown = [
        leaf.centroid
        for leaf in foreign(view.origin, view.cards, enc8)
        if leaf.stage is Stage.MATURE and leaf.centroid.shape == own[0].shape
    ]
    return bool(shown) and float((np.stack(shown) @ np.stack(own).T).max()) >= INTEREST_COSINE


def quantised(centroid: Vector) -> bytes:
    """int8 with the largest component at full scale: the direction is all that is needed."""
    peak = float(np.abs(centroid).max()) or 1.0
    return bytes(np.rint(centroid / peak * wire.CENTROID_SCALE).astype(np.int8).tobytes())


def _show(leaf: Leaf, before: Shown | None) -> Shown:
    if before is not None and leaf.sessions - before.sessions < REPUBLISH_SESSIONS:
        return before
    return Shown(quantised(leaf.centroid), leaf.sessions)


def _card(
    leaf: Leaf,
    shown: Shown,
    enc8: bytes,
    size_bytes: Callable[[str], int],
    past: Past,
    there: Container[LeafId],
) -> wire.Card:
    """there: what the table shows; a parent that it does not show is not named."""
    parents = [parent for parent in leaf.lineage if parent in there][:HEIRS_MAX]
    return wire.Card(
        leaf=bytes.fromhex(leaf.id),
        version=leaf.version,
        stage=_STAGES[leaf.stage],
        op=_op(leaf, past),
        centroid=shown.centroid,
        sessions_log2=wire.to_log2(shown.sessions),
        chassis=bytes.fromhex(leaf.adapter.chassis) if leaf.adapter else wire.ZERO8,
        enc=enc8,
        parents=tuple(bytes.fromhex(parent) for parent in parents),
        growth_q=0,  # a pace tells more of the owner's days than a peer needs
        scores=_scores(leaf.evaluation),
        bundle=_bundle(leaf, size_bytes),
    )


def _bundle(leaf: Leaf, size_bytes: Callable[[str], int]) -> wire.Bundle | None:
    """Only a mature leaf's adapter is offered."""
    if leaf.stage is not Stage.MATURE or leaf.adapter is None:
        return None
    size = size_bytes(leaf.adapter.bundle)
    if size == 0:
        return None
    return wire.Bundle(
        root=bytes.fromhex(leaf.adapter.bundle),
        size_bytes=size,
        chassis=bytes.fromhex(leaf.adapter.chassis),
        rank=leaf.adapter.rank,
        scores=(),
        format=wire.Format.LORA_SAFETENSORS,
        label=bytes.fromhex(leaf.adapter.label),
    )


def _scores(evaluation: Evaluation | None) -> tuple[wire.Score, ...]:
    if evaluation is None:
        return ()
    figures = (
        (wire.EvalSet.HELD_OUT_LOSS, evaluation.loss),
        (wire.EvalSet.GAIN_OVER_PARENT, evaluation.over_parent.mean),
        (wire.EvalSet.GAIN_OVER_STYLE, evaluation.over_style.mean),
        (wire.EvalSet.GAIN_LOW, evaluation.over_parent.low),
    )
    return tuple(wire.Score(kind, wire.to_q(value)) for kind, value in figures)


def _op(leaf: Leaf, past: Past) -> wire.Op:
    """How a leaf came to live as it does now. None of this node's grows from a peer's leaf, so
    ADOPT is never said."""
    if leaf.id in past.revived:
        return wire.Op.REVIVE
    if not leaf.lineage:
        return wire.Op.BIRTH
    return wire.Op.SPLIT if len(leaf.lineage) == 1 else wire.Op.MERGE


def _heirs(forest: Forest, leaf: Leaf) -> list[LeafId]:
    """The leaves that it was split or merged into."""
    return [heir.id for heir in forest if leaf.id in heir.lineage]
