"""Routing tables of this home: built from the forest, kept whole, swapped at once.

The last ten are kept; `current` names the one in force, and is replaced by rename, so a reader
never sees half a table.
"""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from leaves.embeddings import EmbeddingStore
from leaves.model import Forest, GrownFrom, Leaf, LeafId, Matrix, Stage, Vector
from leaves.store import ForestStore
from router.calibrate import calibrate
from router.minilm_encoder import DIMENSIONS
from router.table import COSINE_SAME, Entry, Table, own_entry

from .errors import OwnerError
from .foreign import Known, State
from .home import private_dir, write_atomic

__all__ = ["DIMENSIONS", "SAME_DOMAIN", "Tables", "entries", "gates", "region", "starters_of"]

log = logging.getLogger(__name__)

KEPT = 10
SAME_DOMAIN = COSINE_SAME
_FILE = re.compile(r"table-(\d{8})\.bin")


class RoutingError(OwnerError):
    """There is no routing table that can be used."""


class Tables:
    """The routing tables on disk."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = private_dir(home / "router")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This process's turn to replace the table by one that it builds from what it reads now.

        Without it, a round that read the leaves before one was retracted could put it back.
        """
        with (self._home / "router.lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def save(self, table: Table) -> None:
        """Put a table in force; if it is in force already, nothing changes."""
        private_dir(self._folder)  # a deletion may have removed it
        data = table.to_bytes()
        with suppress(OSError, ValueError):  # a damaged one is replaced
            if self._bytes() == data:
                return
        number = max(self._numbers(), default=0) + 1
        name = f"table-{number:08d}.bin"
        write_atomic(self._folder / name, data)
        write_atomic(self._folder / "current", name.encode())
        for old in sorted(self._numbers())[:-KEPT]:
            (self._folder / f"table-{old:08d}.bin").unlink(missing_ok=True)

    def load(self) -> Table | None:
        """The table in force; None before the first round."""
        try:
            data = self._bytes()
            return None if data is None else Table.from_bytes(data)
        except (OSError, ValueError) as problem:
            raise RoutingError(
                f"the routing table in {self._folder}: {problem}",
                unchanged="Prompts are answered by the chassis until then.",
                next_step="Run `groove-node round`: it builds a new table.",
            ) from None

    def load_sound(self) -> Table | None:
        """The table in force; None also if it is damaged, for a new one is about to be built."""
        try:
            return self.load()
        except RoutingError as problem:
            log.warning("routing table not read reason=%s", problem)
            return None

    def _bytes(self) -> bytes | None:
        current = self._folder / "current"
        if not current.exists():
            return None
        return (self._folder / current.read_text().strip()).read_bytes()

    def _numbers(self) -> list[int]:
        found = (_FILE.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match[1]) for match in found if match]


def entries(forest: Forest, foreign: list[Known], starters: list[Entry]) -> list[Entry]:
    """Return who can be routed to: own live leaves, accepted foreign ones, starters.

    An own leaf answers for itself once it has won; until then its parent does.
    """
    own = [own_entry(leaf, servable=_serves(leaf)) for leaf in forest.live()]
    others = [
        Entry(
            known.leaf.leaf,
            known.name,
            2,
            known.leaf.stage,
            known.leaf.centroid,
            gate=known.detail.get("gate", 0.0),
            servable=True,
            origin=known.leaf.origin,
            bundle=known.leaf.root,
        )
        for known in foreign
        if known.state is State.ACCEPTED
    ]
    grown = any(leaf.grown_from is GrownFrom.DATA for leaf in forest.live())
    return own + others + ([] if grown else starters)


def _serves(leaf: Leaf) -> bool:
    return leaf.adapter is not None and leaf.wins > 0 and leaf.stage is not Stage.SEED


def starters_of(table: Table) -> list[Entry]:
    """The starters of a table: entries that answer by a system prompt."""
    return [entry for entry in table.entries if entry.system]


def gates(store: ForestStore, embeddings: EmbeddingStore) -> dict[LeafId, float]:
    """Calibrate each leaf's gate on its held-out scores, level by level."""
    embedded = embeddings.snapshot()
    assigned = store.assignment()
    rows: dict[LeafId, list[int]] = {}
    strays: list[int] = []
    order = sorted(range(len(embedded.ids)), key=embedded.ids.__getitem__)
    levels = {leaf.id: leaf.level for leaf in store.forest().live()}
    for row in order:
        leaf = assigned.get(embedded.ids[row])
        if leaf in levels:
            rows.setdefault(leaf, []).append(row)
        else:
            strays.append(row)
    out: dict[LeafId, float] = {}
    for level in (2, 3):
        members = {
            leaf: np.asarray(embedded.matrix[at])
            for leaf, at in rows.items()
            if levels[leaf] == level
        }
        if members:
            out.update(calibrate(members, np.asarray(embedded.matrix[strays])))
    return out


def region(
    ids: Sequence[str], vectors: Matrix, leaf: Vector, others: Sequence[Vector], cosine_min: float
) -> list[str]:
    """Sessions that stand nearer to a leaf than to any other centroid, and near enough to it.

    vectors: shape (n, d), row i of session ids[i]. Ties go to the leaf.
    """
    if not len(ids):
        return []
    own = vectors @ leaf
    near = own >= cosine_min
    if others:
        near &= own >= (vectors @ np.stack(others).T).max(axis=1)
    return [id_ for id_, inside in zip(ids, near, strict=True) if inside]
