"""The nearest of the owner's own sessions: which leaf they are in, and how familiar a prompt is.

A centroid knows one point of a domain; its sessions know its shape. They also know better than any
centroid what the owner never asks about. All of it is private: nothing here is ever sent, and the
one file that it is kept in holds vectors of sessions, so deleting a session means building it anew.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from leaves.model import LeafId, Matrix, Vector, unit
from leaves.ports import Progress, Report, silent

from .calibrate import FALSE_REJECTS, FLOOR, quantiles

# The settings were chosen on HWU64, StackOverflow titles and a mix of seven sources, with whole
# domains or sources held out as strangers. The plateau is wide: 10 to 20 neighbours.
NEAREST = 10  # sessions that are asked
LOCAL = 0.5  # share of a session's own density that is taken off its cosine
AGREEMENT = 0.1  # what it is worth if all of the nearest sessions are in one leaf
POWER = 2  # of the cosine, as the weight of a vote
GATE_SHRINK = 200  # sessions at which a leaf's own quantile counts as much as the global one

CELL_ROWS = 256  # sessions that are searched together; the rows of a cell lie side by side
PROBES = 12  # nearest cells that are searched
POWER_STEPS = 8  # towards the principal axis along which a large cell is halved
MAGIC = b"groove-neighbours/1\n"
HEADER_MAX = 64 * 2**20  # bytes

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class NeighboursError(ValueError):
    """A file does not hold the neighbours of a routing table."""


@dataclass(frozen=True, slots=True)
class Near:
    """What the nearest own sessions say of one vector.

    cosine: their mean cosine to it, where one that votes for no leaf counts as 0; -1 if there are
    none.
    familiarity: mean of their cosines, each less half of how near that session stands to its own
    neighbours: in a dense region a prompt must be nearer to be familiar. -1 if there are none.
    votes: leaf -> its share of the votes, by falling share, then by id; they sum to at most 1,
    for a session that is in no leaf and near none votes for none.
    """

    cosine: float
    familiarity: float
    votes: tuple[tuple[LeafId, float], ...]


@dataclass(frozen=True, slots=True)
class _Cells:
    """Own sessions, those of one cell side by side.

    grid: shape (n, d); a row times its scale is of unit length. It is a quarter of float32 and is
    searched in two thirds of the time; a cosine differs by 0.0003 on average, 0.0024 at most.
    starts: shape (m + 1,), of the cells' rows. centres: shape (m, d), of the cells.
    leaf: of each row, an index; -1 for none. rank: of each row's session id, breaks ties.
    density: of each row, its mean cosine to its own nearest.
    """

    grid: NDArray[np.int8]
    scale: Floats
    starts: Rows
    centres: Matrix
    leaf: NDArray[np.int32]
    rank: NDArray[np.int32]
    density: Floats


class Neighbours:
    """The sessions of this node, ready to be asked. Immutable; may be used by several threads."""

    def __init__(
        self,
        enc8: bytes,
        cells: _Cells,
        leaves: Sequence[LeafId],
        gates: Sequence[float],
        gate: float,
    ) -> None:
        """Use `build` or `open`."""
        self.enc8 = enc8
        self._cells = cells
        self._leaves = tuple(leaves)
        self._gates = dict(zip(leaves, gates, strict=True))
        self._gate = gate

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        matrix: Matrix,
        leaf_of: Mapping[str, LeafId],
        report: Report = silent,
        *,
        enc8: bytes = b"",
    ) -> Neighbours:
        """Return the neighbours that these sessions make, whatever their order.

        matrix: shape (n, d), row i of session ids[i]. leaf_of: the most specific leaf of each
        session; those in none count for how familiar a prompt is, and vote for the nearest leaf.
        enc8: of the encoder; a table of another one refuses these neighbours. Empty is not checked.
        Takes about 3 s for 50,000 sessions, and grows with their number.
        """
        if len(ids) != len(matrix):
            raise ValueError(f"{len(ids)} ids do not fit vectors of shape {matrix.shape}")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        leaves = sorted({leaf_of[id_] for id_ in ids if id_ in leaf_of})
        index = {leaf: i for i, leaf in enumerate(leaves)}
        own = [index[leaf_of[ids[i]]] if ids[i] in leaf_of else -1 for i in order]
        rows = np.ascontiguousarray(matrix[order], np.float32)
        leaf = _adopted(rows, np.array(own, np.int32), len(leaves))
        groups = _divided(rows, leaf)
        placed = np.concatenate(groups) if groups else np.zeros(0, np.int64)
        cells = _Cells(
            *_to_grid(rows[placed]),
            np.cumsum([0, *map(len, groups)]),
            unit(np.stack([rows[g].mean(axis=0, dtype=np.float64) for g in groups]))
            if groups
            else np.zeros((0, rows.shape[1]), np.float32),
            leaf[placed],
            placed.astype(np.int32),
            np.zeros(len(placed), np.float32),
        )
        cosines, near = _self_join(cells, report)
        cells.density[:] = cosines.mean(axis=1) if cosines.size else 0.0
        gates, gate = _gates(cells, cosines, near, len(leaves))
        return cls(enc8, cells, leaves, gates, gate)

    def __len__(self) -> int:
        return len(self._cells.rank)

    @property
    def dimensions(self) -> int:
        return int(self._cells.grid.shape[1])

    def gate(self, leaf: LeafId) -> float:
        """The familiarity below which a prompt is none of this leaf's; the global one if it has
        no sessions of its own. Calibrated on the sessions themselves, each left out in turn."""
        return self._gates.get(leaf, self._gate)

    def near(self, vector: Vector, k: int = NEAREST) -> Near:
        """Return what the `k` nearest sessions say, of those in the nearest cells.

        Of two sessions equally near, the one whose id sorts first.
        """
        cells = self._cells
        k = min(k, len(cells.rank))
        if k == 0:
            return Near(-1.0, -1.0, ())
        rows, cosines = self._searched(vector)
        if len(rows) > k:
            least = np.partition(cosines, len(rows) - k)[len(rows) - k]
            at = np.flatnonzero(cosines >= least)
            rows, cosines = rows[at], cosines[at]
        first = np.lexsort((cells.rank[rows], -cosines))[:k]
        rows, cosines = rows[first], cosines[first]
        familiarity = float((cosines - LOCAL * cells.density[rows]).mean())
        shares: dict[int, float] = {}
        weights = np.maximum(cosines, 0.0).astype(np.float64) ** POWER
        total = float(weights.sum()) or 1.0
        for leaf, weight in zip(cells.leaf[rows].tolist(), weights.tolist(), strict=True):
            if leaf >= 0:
                shares[leaf] = shares.get(leaf, 0.0) + weight / total
        votes = sorted(shares.items(), key=lambda vote: (-vote[1], vote[0]))
        named = tuple((self._leaves[leaf], share) for leaf, share in votes)
        inside = np.where(cells.leaf[rows] >= 0, cosines, np.float32(0))
        return Near(float(inside.mean()), familiarity, named)

    def _searched(self, vector: Vector) -> tuple[Rows, Floats]:
        """Return the rows of the cells nearest to a vector, and their cosines to it."""
        cells = self._cells
        towards = cells.centres @ vector
        chosen = np.arange(len(towards))
        if len(towards) > PROBES:
            chosen = np.sort(np.argpartition(-towards, PROBES)[:PROBES])
        spans = [(int(cells.starts[c]), int(cells.starts[c + 1])) for c in chosen]
        cosines = np.empty(sum(end - start for start, end in spans), np.float32)
        at = 0
        for start, end in spans:
            here = cells.grid[start:end].astype(np.float32)
            np.dot(here, vector, out=cosines[at : at + end - start])
            cosines[at : at + end - start] *= cells.scale[start:end]
            at += end - start
        return np.concatenate([np.arange(start, end) for start, end in spans]), cosines

    def save(self, path: Path) -> None:
        """Write to one file, mode 0600, replaced whole."""
        gates: list[tuple[str, float]] = [(leaf, self._gates[leaf]) for leaf in self._leaves]
        shape = self.dimensions, len(self), len(self._cells.centres)
        header = msgspec.json.encode(_Header(self.enc8.hex(), *shape, self._gate, gates))
        header += b" " * (-(len(MAGIC) + 4 + len(header)) % 64)  # so that what follows is aligned
        fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
        with contextlib.ExitStack() as undo:
            file = os.fdopen(os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb")
            undo.callback(fresh.unlink, missing_ok=True)
            with file:
                file.write(MAGIC + struct.pack("<I", len(header)) + header)
                for block, kind in _blocks(self._cells):
                    file.write(np.ascontiguousarray(block, kind).data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            undo.pop_all()

    @classmethod
    def open(cls, path: Path) -> Neighbours:
        """Return what `save` wrote, memory-mapped. Raises NeighboursError, or OSError."""
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 4)
            if not start.startswith(MAGIC) or len(start) < len(MAGIC) + 4:
                raise NeighboursError(f"{path}: not neighbours of a routing table")
            length = struct.unpack("<I", start[-4:])[0]
            try:
                header = msgspec.json.decode(file.read(min(length, HEADER_MAX)), type=_Header)
                enc8 = bytes.fromhex(header.enc8)
            except (msgspec.DecodeError, ValueError) as error:
                raise NeighboursError(f"{path}: its header is not readable: {error}") from None
        cells = _mapped(path, header, len(MAGIC) + 4 + length)
        leaves = [LeafId(leaf) for leaf, _ in header.gates]
        return cls(enc8, cells, leaves, [gate for _, gate in header.gates], header.gate)


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enc8: str
    dimensions: int
    rows: int
    cells: int
    gate: float
    gates: list[tuple[str, float]]


def _blocks(cells: _Cells) -> list[tuple[NDArray[Any], str]]:
    return [
        (cells.grid, "i1"),
        (cells.scale, "<f4"),
        (cells.centres, "<f4"),
        (cells.starts, "<i8"),
        (cells.density, "<f4"),
        (cells.leaf, "<i4"),
        (cells.rank, "<i4"),
    ]


def _mapped(path: Path, header: _Header, at: int) -> _Cells:
    n, m, d = header.rows, header.cells, header.dimensions
    if min(n, m) < 0 or d <= 0:
        raise NeighboursError(f"{path}: its header says {n} rows, {m} cells, {d} dimensions")
    sizes = [n * d, n * 4, m * d * 4, (m + 1) * 8, n * 4, n * 4, n * 4]
    if path.stat().st_size != at + sum(sizes):
        raise NeighboursError(f"{path}: its size does not fit its header")
    data = np.memmap(path, np.uint8, "r")
    ends = at + np.cumsum([0, *sizes])
    parts = [data[start:end] for start, end in pairwise(ends)]
    grid, scale = parts[0].view("i1").reshape(n, d), parts[1].view("<f4")
    centres = parts[2].view("<f4").reshape(m, d)
    starts, density = np.array(parts[3].view("<i8")), parts[4].view("<f4")
    leaf, rank = parts[5].view("<i4"), parts[6].view("<i4")
    sound = starts[0] == 0 and starts[-1] == n and (np.diff(starts) > 0).all()
    if not sound or (n and not -1 <= leaf.min() <= leaf.max() < len(header.gates)):
        raise NeighboursError(f"{path}: damaged")
    return _Cells(grid, scale, starts, centres, leaf, rank, density)


def _adopted(rows: Matrix, leaf: NDArray[np.int32], leaves: int) -> NDArray[np.int32]:
    """Return the leaf of each row; strays are given to the nearest one above the lowest gate."""
    strays = np.flatnonzero(leaf < 0)
    if not leaves or not len(strays):
        return leaf
    means = [rows[leaf == i].mean(axis=0, dtype=np.float64) for i in range(leaves)]
    near = rows[strays] @ unit(np.stack(means).astype(np.float32)).T
    given = leaf.copy()
    given[strays] = np.where(near.max(axis=1) >= FLOOR, near.argmax(axis=1), -1)
    return given


def _to_grid(rows: Matrix) -> tuple[NDArray[np.int8], Floats]:
    """Return rows as integers up to 127, and what each is multiplied by to have unit length."""
    largest = np.maximum(np.abs(rows).max(axis=1, initial=0.0), 1e-9)[:, None]
    grid = np.rint(rows * (127 / largest)).astype(np.int8)
    lengths = np.sqrt((grid.astype(np.float64) ** 2).sum(axis=1))
    return grid, (1 / np.maximum(lengths, 1e-9)).astype(np.float32)


def _divided(rows: Matrix, leaf: NDArray[np.int32]) -> list[Rows]:
    """Return the rows of each cell: one leaf's, halved along its main axis until they are few."""
    by_leaf = np.argsort(leaf, kind="stable")
    cuts = np.flatnonzero(np.diff(leaf[by_leaf])) + 1
    open_ = list(reversed(np.split(by_leaf, cuts))) if len(rows) else []
    cells: list[Rows] = []
    while open_:
        group = open_.pop()
        if len(group) <= CELL_ROWS:
            cells.append(np.sort(group))
            continue
        along = np.argsort(_main_axis(rows[group]), kind="stable")
        half = len(group) // 2
        open_ += [np.sort(group[along[half:]]), np.sort(group[along[:half]])]
    return cells


def _main_axis(rows: Matrix) -> Floats:
    """Return each row's place along the axis of greatest spread, by power iteration."""
    centred = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    axis = centred[int((centred * centred).sum(axis=1).argmax())]
    for _ in range(POWER_STEPS):
        axis = unit((centred.T @ (centred @ axis))[None])[0]
    along: Floats = centred @ axis
    return along


def _rows(cells: _Cells, chosen: Rows) -> Rows:
    return np.concatenate([np.arange(cells.starts[c], cells.starts[c + 1]) for c in chosen])


def _self_join(cells: _Cells, report: Report) -> tuple[Floats, Rows]:
    """Return, for each row, its nearest others: cosines and rows, each of shape (n, k)."""
    count = len(cells.rank)
    k = max(0, min(NEAREST, count - 1))
    cosines, near = np.zeros((count, k), np.float32), np.zeros((count, k), np.int64)
    if k == 0:
        return cosines, near
    for cell, (start, end) in enumerate(pairwise(cells.starts.tolist())):
        towards = cells.centres @ cells.centres[cell]
        towards[cell] = np.inf
        nearest = np.argsort(-towards, kind="stable")
        enough = int(np.searchsorted(np.cumsum(np.diff(cells.starts)[nearest]), k + 1)) + 1
        rows = _rows(cells, nearest[: max(PROBES, enough)])
        vectors = cells.grid[rows] * cells.scale[rows, None]
        scores = vectors[: end - start] @ vectors.T  # the cell itself comes first
        scores[np.arange(end - start), np.arange(end - start)] = -np.inf
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        cosines[start:end] = np.take_along_axis(scores, best, axis=1)
        near[start:end] = rows[best]
        if cell % 64 == 0:
            report(Progress("route: neighbours", start, count))
    return cosines, near


def _gates(cells: _Cells, cosines: Floats, near: Rows, leaves: int) -> tuple[list[float], float]:
    """Return the gate of each leaf and the global one, from each session as if it were not here."""
    if not near.size:
        return [-1.0] * leaves, -1.0
    score = (cosines - LOCAL * cells.density[near]).mean(axis=1).astype(np.float64)
    weights = np.maximum(cosines, 0.0).astype(np.float64) ** POWER
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    voted = cells.leaf[near]
    shares = np.stack(
        [(weights * (voted == voted[:, [j]])).sum(axis=1) for j in range(near.shape[1])], axis=1
    )
    shares[voted < 0] = 0.0
    leader = np.take_along_axis(voted, shares.argmax(axis=1)[:, None], axis=1)[:, 0]
    score += AGREEMENT * shares.max(axis=1)
    return quantiles(score, leader, leaves, FALSE_REJECTS, GATE_SHRINK)
