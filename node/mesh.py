"""The forest out as cards, and peers' cards in as leaves that could serve here.

Pure: what may leave the machine is decided in `cards`, and the wire types are the whole of it.
A centroid goes out as int8, and a changed one only after enough new sessions: two successive
centroids with few sessions between them would give those sessions' embeddings away.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gossip import wire
from leaves.model import Evaluation, Forest, GrownFrom, Leaf, LeafId, Stage, Vector, unit

REPUBLISH_SESSIONS = 50  # new sessions before a changed centroid is shown again
_STAGES = {
    Stage.SEED: wire.Stage.SEED,
    Stage.SPROUT: wire.Stage.SPROUT,
    Stage.MATURE: wire.Stage.MATURE,
}
_REASONS = {
    Stage.ARCHIVED: wire.Reason.DORMANT,
    Stage.DISSOLVED: wire.Reason.DISSOLVED,
    Stage.MERGED: wire.Reason.MERGED,
}


class Shown(msgspec.Struct, frozen=True):
    """What of a leaf was last published: its centroid, and how many sessions it was the mean of."""

    centroid: bytes
    sessions: int


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table to be signed, and what is then on record as shown."""

    cards: tuple[wire.Card, ...]
    ended: tuple[wire.Ended, ...]
    shown: dict[LeafId, Shown]


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
) -> Table:
    """Return the table that stands for a forest.

    size_bytes: of the bundle at an address, 0 if it is not here.
    retracted: own leaves that were retracted; they are never shown again.
    hidden: own leaves that nothing is shown of for now.
    """
    live: list[wire.Card] = []
    ended: list[wire.Ended] = []
    now_shown: dict[LeafId, Shown] = {}
    for leaf in forest:
        private = leaf.level == 1 or leaf.grown_from is not GrownFrom.DATA
        if private or leaf.id in retracted:  # a branch is for its owner's browsing
            continue
        if leaf.id in hidden:
            if leaf.id in shown:  # what was shown stays on record: the next centroid depends on it
                now_shown[leaf.id] = shown[leaf.id]
            continue
        if leaf.stage in _STAGES:
            now_shown[leaf.id] = _show(leaf, shown.get(leaf.id))
            live.append(_card(leaf, now_shown[leaf.id], enc8, size_bytes))
        else:
            reason = _REASONS[leaf.stage]
            into = _heirs(forest, leaf) if leaf.stage is Stage.MERGED else ()
            ended.append(wire.Ended(bytes.fromhex(leaf.id), leaf.version, reason, into))
    return Table(tuple(live), tuple(ended), now_shown)


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


def quantised(centroid: Vector) -> bytes:
    """int8 with the largest component at full scale: the direction is all that is needed."""
    peak = float(np.abs(centroid).max()) or 1.0
    return bytes(np.rint(centroid / peak * wire.CENTROID_SCALE).astype(np.int8).tobytes())


def _show(leaf: Leaf, before: Shown | None) -> Shown:
    if before is not None and leaf.sessions - before.sessions < REPUBLISH_SESSIONS:
        return before
    return Shown(quantised(leaf.centroid), leaf.sessions)


def _card(leaf: Leaf, shown: Shown, enc8: bytes, size_bytes: Callable[[str], int]) -> wire.Card:
    return wire.Card(
        leaf=bytes.fromhex(leaf.id),
        version=leaf.version,
        stage=_STAGES[leaf.stage],
        op=wire.Op.BIRTH,
        centroid=shown.centroid,
        sessions_log2=wire.to_log2(shown.sessions),
        chassis=bytes.fromhex(leaf.adapter.chassis) if leaf.adapter else wire.ZERO8,
        enc=enc8,
        parents=tuple(bytes.fromhex(parent) for parent in leaf.lineage),
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


def _heirs(forest: Forest, leaf: Leaf) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(heir.id) for heir in forest if leaf.id in heir.lineage)
