"""What the training of a leaf begins with: its own adapter, its origin's, a merger's, or nothing.

A start is chosen before the sessions are split, for what an adapter has learned from must never
judge what grows out of it. A start is left alone if it is of another chassis, if its bundle is
gone, or if it learned from a session that nothing may be made of any more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from leaves.bundle import AdapterFile, BundleError, read_adapter, unpack
from leaves.model import Adapter, Forest, Leaf, LeafId, Stage
from leaves.ports import BlobStore, Schedule
from leaves.store import ForestStore, Role
from leaves.training.chassis import Chassis
from leaves.training.merging import Part, merge

from .home import write_atomic

WARM_RATE = 0.5  # of the learning rate: a warm start at full rate spoils what the chassis knows


class Begun(StrEnum):
    """What an adapter was begun from."""

    OWN = "the version in force"
    PARENT = "the adapter of the leaf it was split from"
    MERGED = "the adapters of the leaves it was merged from"
    NOTHING = "the bare chassis"


@dataclass(frozen=True, slots=True)
class Root:
    """One adapter that is started from. share: of several, the sessions behind each."""

    leaf: LeafId
    bundle: str
    control: str
    share: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training begins. roots: none for the bare chassis, several for a merger.

    anew: there is a version in force on this chassis, and it was left alone for what it learned.
    """

    begun: Begun
    roots: tuple[Root, ...] = ()
    anew: bool = False

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return WARM_RATE if self.roots else 1.0


@dataclass(frozen=True, slots=True)
class Starts:
    """Chooses starts, and makes their files."""

    store: ForestStore
    bundles: BlobStore
    chassis: Chassis
    left_out: frozenset[str]

    def of(self, leaf: Leaf, forest: Forest) -> Start:
        """Choose for one leaf; the same forest and store give the same start."""
        if leaf.adapter is not None:
            own = self._root(leaf)
            if own is not None and self._clean([leaf.id]):
                return Start(Begun.OWN, (own,))
            return Start(Begun.NOTHING, anew=own is not None)
        origins = [forest.leaves[id_] for id_ in leaf.lineage if id_ in forest.leaves]
        usable = [
            (origin, root)
            for origin in origins
            if (root := self._root(origin)) is not None and self._clean([origin.id])
        ]
        merged = tuple(root for origin, root in usable if origin.stage is Stage.MERGED)
        if merged:
            return Start(Begun.MERGED, merged)
        if usable:  # the nearest of them: the others are further back
            return Start(Begun.PARENT, (usable[-1][1],))
        return Start(Begun.NOTHING)

    def learned(self, start: Start, *roles: Role, before_round: int | None = None) -> set[str]:
        """The sessions that the adapters of a start have used in these roles."""
        found: set[str] = set()
        for root in start.roots:
            for role in roles:
                found |= self.store.used(root.leaf, role, before_round)
        return found

    def file(self, start: Start, schedule: Schedule, path: Path, *, control: bool) -> Path | None:
        """Write the adapter to start from, for the leaf or for its control; None for none."""
        roots = [(root, root.control if control else root.bundle) for root in start.roots]
        found = [(root, read) for root, bundle in roots if (read := self._read(bundle))]
        if not found or any(read.targets != self.chassis.targets for _, (_, read) in found):
            return None  # nothing is here, or it sits on other modules than the schedule trains
        first, adapter = found[0][1]
        if len(found) == 1 and (adapter.rank, adapter.alpha) == (schedule.rank, schedule.alpha):
            write_atomic(path, first)
        else:
            parts = [Part(read, max(root.share, 1)) for root, (_, read) in found]
            write_atomic(path, merge(parts, schedule.rank, schedule.alpha))
        return path

    def _root(self, leaf: Leaf) -> Root | None:
        adapter = leaf.adapter
        if adapter is None or not self.fits(adapter) or self._read(adapter.bundle) is None:
            return None
        return Root(leaf.id, adapter.bundle, adapter.control, leaf.sessions)

    def fits(self, adapter: Adapter) -> bool:
        """True if an adapter is of this chassis."""
        return adapter.chassis == self.chassis.tag8.hex()

    def _read(self, bundle: str) -> tuple[bytes, AdapterFile] | None:
        """The adapter of a bundle, its file and what is in it; None if it is not here."""
        blob = self.bundles.get(bundle)
        if blob is None:
            return None
        try:
            adapter = unpack(blob).adapter
            return adapter, read_adapter(adapter, self.chassis)
        except BundleError:  # a damaged file, or of another chassis: the training begins anew
            return None

    def _clean(self, leaves: Collection[LeafId]) -> bool:
        """True if nothing that is left out now went into these adapters or their controls."""
        return not any(
            self.left_out
            & (self.store.used(leaf, Role.TRAIN) | self.store.used(leaf, Role.CONTROL))
            for leaf in leaves
        )
