"""The routing table: every leaf's centroid in one matrix, and the way from a vector to a leaf.

A table is immutable and is swapped whole, so a prompt is routed by one state of the forest and
never by half of two.

A leaf is chosen by its cosine, less its hubness, plus its weight from feedback. With `Neighbours`,
own leaves that the nearest sessions do not vote for stand back by up to VOTES; the one they vote
for most keeps its place, so it and a peer's leaf, which has no sessions here, are compared by the
same measure. Whether a leaf may have the prompt is asked apart from that: by the cosine to its
centroid; or, of own leaves with `Neighbours`, by how familiar the prompt is and how many of the
votes are the leaf's own. What is familiar from sessions of no leaf, or of others, is none of a
leaf's that nobody votes for: such a leaf must be near enough by its cosine as well. A domain has
the votes of its parts, and of its sessions in no part. A branch has no more to say than its domain:
a prompt that is unlike the owner's sessions is no more like them from further above.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from leaves.model import Leaf, LeafId, Matrix, Stage, Vector, unit

from .calibrate import offsets
from .neighbours import AGREEMENT, Near, Neighbours
from .weights import BOUND

FLOORS = {3: 0.25, 2: 0.20, 1: 0.20}  # specification §4, "Hierarchical Routing"
SPROUT_GATE = 0.30  # specification §5: below it the parent serves
COSINE_SAME = 0.92  # leaves nearer than this are one domain
VOTES = 0.3  # in cosine: what an own leaf loses if all of the nearest sessions are in another
ROUNDING = 1e-5  # between products of one vector with equal rows
MAGIC = b"groove-table/2\n"
MAGIC_1 = b"groove-table/1\n"  # entries without weight and hubness
ENTRIES_MAX = 100_000
DIMENSIONS_MAX = 8192


class TableError(ValueError):
    """Bytes are not a routing table."""


class DimensionError(ValueError):
    """A vector is not of the table's encoder."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf as the router sees it.

    gate: cosine below which the level above is asked; at least the floor of its level.
    servable: its adapter is here and has earned its place; otherwise another serves for it.
    origin: the mesh key of a foreign leaf, hex; empty for an own one. bundle: of its adapter.
    system: a system prompt that stands in for an adapter, for starters.
    weight: from feedback, added to the score, within ±BOUND. hubness: taken off it when the
    nearest leaf is chosen; `unhubbed` measures it.
    """

    leaf: LeafId
    name: str
    level: int
    stage: Stage
    centroid: Vector = field(compare=False, repr=False)
    parent: LeafId | None = None
    gate: float = 0.0
    servable: bool = False
    origin: str = ""
    bundle: str | None = None
    system: str = ""
    floor: float | None = None  # of a starter, whose description is far from any real prompt
    weight: float = 0.0
    hubness: float = 0.0

    @property
    def serves(self) -> bool:
        """True if it answers for itself."""
        return self.servable or bool(self.system)

    @property
    def threshold(self) -> float:
        """The cosine that this leaf asks for."""
        return max(self.lowest, self.gate)

    @property
    def lowest(self) -> float:
        """The cosine below which it has no prompt, however familiar that is."""
        if self.floor is not None:
            return self.floor
        return max(FLOORS[self.level], SPROUT_GATE if self.stage is Stage.SPROUT else 0.0)

    @property
    def grown(self) -> bool:
        """True for a leaf of this node's own sessions, which can vote for it."""
        return not self.origin and not self.system


def own_entry(leaf: Leaf, *, servable: bool) -> Entry:
    """Return the entry of a live leaf of this node."""
    return Entry(
        leaf.id,
        leaf.name,
        leaf.level,
        leaf.stage,
        leaf.centroid,
        parent=leaf.parent,
        gate=leaf.gate,
        servable=servable,
        bundle=leaf.adapter.bundle if leaf.adapter else None,
    )


@dataclass(frozen=True, slots=True)
class Route:
    """Where a prompt goes.

    leaf: whose domain it is in; None if no leaf's, and then score is that of the last one asked.
    score: what was held against the gate, a cosine or a familiarity, with the leaf's weight.
    served_by: whose adapter answers; None is the bare chassis.
    fallback_used: something less specific than the nearest leaf answers.
    """

    leaf: Entry | None
    served_by: Entry | None
    score: float
    gate: float
    level: int  # of the leaf; 0 for the chassis
    fallback_used: bool


@dataclass(frozen=True, slots=True)
class Considered:
    """One leaf that was asked on the way, in order.

    score: as in `Route`. cosine: to its centroid. chosen_by: the score by which it was put forward
    for its level: cosine, less hubness, plus weight, less what the votes for others take off.
    votes: share of the nearest own sessions that are in it; None where they were not asked.
    why: in plain words, what decided.
    """

    entry: Entry
    score: float
    gate: float
    passed: bool
    cosine: float = 0.0
    chosen_by: float = 0.0
    votes: float | None = None
    why: str = ""


class _Asked(NamedTuple):  # made for every prompt: a third of the cost of a frozen dataclass
    """What is known of one vector.

    indices: of the entries that are asked, most specific first. shares: of the votes, by entry.
    familiar: what each own leaf that is asked holds against which gate; empty without neighbours.
    nearest: mean cosine to the nearest own sessions, as in `Near`.
    """

    cosines: Vector
    choice: Vector
    indices: list[int]
    shares: dict[int, float]
    familiar: dict[int, tuple[float, float]]
    nearest: float = -1.0


def unhubbed(entries: Sequence[Entry], mean: Vector) -> list[Entry]:
    """Return entries with their hubness measured; starters have none.

    mean: of the vectors of this node's sessions, shape (d,), not of unit length.
    """
    measured = [entry for entry in entries if not entry.system]
    if not measured:
        return list(entries)
    found = offsets(unit(np.stack([entry.centroid for entry in measured])), mean)
    hubness = {(e.leaf, e.origin): each for e, each in zip(measured, found, strict=True)}
    return [replace(e, hubness=hubness.get((e.leaf, e.origin), 0.0)) for e in entries]


class Table:
    """All leaves of one moment. Build it with `Table.build`."""

    def __init__(self, enc8: bytes, entries: Sequence[Entry], matrix: Matrix) -> None:
        self.enc8 = enc8
        self.entries = tuple(entries)
        self._matrix = matrix
        self._dimensions = int(matrix.shape[1])
        self._gates = [entry.threshold for entry in self.entries]
        self._weights = [entry.weight for entry in self.entries]
        shift = np.array([e.weight - e.hubness for e in self.entries], np.float32)
        self._shift = shift if shift.any() else None  # a starters' table saves the addition
        self._spans = [_span(self.entries, level) for level in (3, 2, 1)]
        self._first = _first_of_equals(self.entries, matrix)
        self._parts = _parts_of(self.entries)
        self._servers = _servers_of(self.entries, matrix)
        self._grown = np.array([entry.grown for entry in self.entries], np.float32)
        self._above = _above_of(self.entries)

    @classmethod
    def build(cls, enc8: bytes, dimensions: int, entries: Iterable[Entry]) -> Table:
        """Return the table of these leaves. Raises DimensionError, or ValueError for a repeat."""
        ordered = sorted(entries, key=lambda e: (-e.level, e.leaf, e.origin))
        for entry in ordered:
            if entry.level not in FLOORS:
                raise ValueError(f"leaf {entry.leaf}: level {entry.level!r} is none of 1, 2, 3")
            if not abs(entry.weight) <= BOUND or not abs(entry.hubness) <= 1:
                raise ValueError(
                    f"leaf {entry.leaf}: weight {entry.weight} is not within ±{BOUND}, or "
                    f"hubness {entry.hubness} not within ±1"
                )
            if entry.centroid.shape != (dimensions,):
                raise DimensionError(
                    f"leaf {entry.leaf}: centroid of shape {entry.centroid.shape}, "
                    f"the table's vectors have {dimensions} dimensions"
                )
        if len({(e.leaf, e.origin) for e in ordered}) != len(ordered):
            raise ValueError("a leaf comes twice")
        matrix = np.zeros((len(ordered), dimensions), np.float32)
        if ordered:
            matrix[:] = unit(np.stack([entry.centroid for entry in ordered]))
        matrix.flags.writeable = False
        return cls(enc8, ordered, matrix)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def route(self, vector: Vector, neighbours: Neighbours | None = None) -> Route:
        """Return where a prompt goes: the most specific leaf whose gate it passes.

        vector: shape (d,), float32, unit length. Of leaves with one centroid, the one whose
        id sorts first. Raises DimensionError. Costs one (n, d) @ (d,) product: 15 µs at 500 leaves;
        with `neighbours` half a millisecond more.
        """
        asked = self._ask(vector, neighbours)
        score = gate = 0.0
        for index in asked.indices:
            score, gate = self._held_against(index, asked)
            if score >= gate:
                leaf, server = self.entries[index], self._servers[index]
                fallback = index != asked.indices[0] or server is not leaf
                return Route(leaf, server, score, gate, leaf.level, fallback)
        return Route(None, None, score, gate, 0, bool(asked.indices))

    def server_of(self, entry: Entry) -> Entry | None:
        """Return who answers for one of its entries that is asked for by name; None: the chassis.

        Costs a look at all entries.
        """
        same = (entry.leaf, entry.origin)
        for each, server in zip(self.entries, self._servers, strict=True):
            if (each.leaf, each.origin) == same:
                return server
        return None

    def explain(self, vector: Vector, neighbours: Neighbours | None = None) -> list[Considered]:
        """Return the leaves that `route` asks for this vector, in order, up to the one taken."""
        asked = self._ask(vector, neighbours)
        out: list[Considered] = []
        for index in asked.indices:
            score, gate = self._held_against(index, asked)
            entry, votes = self.entries[index], asked.familiar.get(index)
            out.append(
                Considered(
                    entry,
                    score,
                    gate,
                    score >= gate,
                    float(asked.cosines[index]),
                    float(asked.choice[index]),
                    asked.shares.get(index, 0.0) if votes else None,
                    _why(entry, score, gate, votes is not None and gate == votes[1]),
                )
            )
            if score >= gate:
                break
        return out

    def to_bytes(self) -> bytes:
        """Return the table as a header in JSON, the centroids in float32, and a checksum."""
        rows = [_row(entry) for entry in self.entries]
        header = msgspec.json.encode(_Header(self.enc8.hex(), self._dimensions, rows))
        body = MAGIC + struct.pack("<I", len(header)) + header
        body += self._matrix.astype("<f4").tobytes()
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> Table:
        """Return the table that `to_bytes` wrote. Raises TableError on anything else."""
        body, start = data[:-4], len(MAGIC) + 4
        if not data.startswith((MAGIC, MAGIC_1)) or len(data) < start + 4:
            raise TableError("not a routing table")
        if struct.unpack("<I", data[-4:])[0] != zlib.crc32(body):
            raise TableError("the routing table is damaged: its checksum does not fit")
        length = struct.unpack("<I", body[start - 4 : start])[0]
        try:
            header = msgspec.json.decode(body[start : start + length], type=_Header)
            enc8 = bytes.fromhex(header.enc8)
        except (msgspec.DecodeError, ValueError) as error:
            raise TableError(f"the routing table's header is not readable: {error}") from None
        count, dimensions = len(header.entries), header.dimensions
        block = body[start + length :]
        if not 0 < dimensions <= DIMENSIONS_MAX or count > ENTRIES_MAX:
            raise TableError(f"the routing table has {count} entries of {dimensions} dimensions")
        if len(block) != count * dimensions * 4:
            raise TableError("the routing table's centroids do not fit its header")
        matrix = np.frombuffer(block, "<f4").reshape(count, dimensions).astype(np.float32)
        entries = [_entry(row, matrix[i]) for i, row in enumerate(header.entries)]
        return cls.build(enc8, dimensions, entries)

    def _ask(self, vector: Vector, neighbours: Neighbours | None) -> _Asked:
        if vector.shape != (self._dimensions,):
            raise DimensionError(
                f"vector of shape {vector.shape}, the table's have {self._dimensions} dimensions"
            )
        cosines: Vector = self._matrix @ vector
        choice = cosines if self._shift is None else cosines + self._shift
        if neighbours is None or not len(neighbours):
            return _Asked(cosines, choice, self._asked(choice), {}, {})
        if neighbours.enc8 not in (b"", self.enc8) or neighbours.dimensions != self._dimensions:
            raise DimensionError("the neighbours are of another encoder than the table")
        near = neighbours.near(vector)
        shares = self._shares(near)
        choice = self._voted(choice, shares)
        indices = self._asked(choice)
        familiar: dict[int, tuple[float, float]] = {}
        for index in indices:
            entry = self.entries[index]
            if not self._grown[index]:
                continue
            if entry.level == 1 and familiar:
                familiar[index] = next(reversed(familiar.values()))
                continue
            held = near.familiarity + AGREEMENT * shares.get(index, 0.0)
            familiar[index] = held, neighbours.gate(entry.leaf)
        return _Asked(cosines, choice, indices, shares, familiar, near.cosine)

    def _shares(self, near: Near) -> dict[int, float]:
        """Return each own leaf's share of the votes: its own, and those for the leaves below it."""
        shares: dict[int, float] = {}
        for leaf, share in near.votes:
            for index in self._above.get(leaf, ()):
                shares[index] = shares.get(index, 0.0) + share
        return shares

    def _voted(self, choice: Vector, shares: dict[int, float]) -> Vector:
        """Return the scores with own leaves set back by the votes that the leader of their level
        has over them."""
        voted = choice.copy()
        for start, end in self._spans:
            leading = max((s for i, s in shares.items() if start <= i < end), default=0.0)
            voted[start:end] -= np.float32(VOTES * leading) * self._grown[start:end]
        for index, share in shares.items():
            voted[index] += np.float32(VOTES * share)
        return voted

    def _held_against(self, index: int, asked: _Asked) -> tuple[float, float]:
        """Return the score of an entry that is asked, and the gate that it must reach."""
        cosine, weight = float(asked.cosines[index]), self._weights[index]
        if index not in asked.familiar:
            return cosine + weight, self._gates[index]
        familiarity, gate = asked.familiar[index]
        if index not in asked.shares:
            if familiarity + weight >= gate and cosine + weight < self._gates[index]:
                return cosine + weight, self._gates[index]
            return familiarity + weight, gate
        # The floors are cosines. A leaf of many shapes has sessions, and prompts, far from its
        # centroid: 2 % of StackOverflow titles that are near their like are below 0.2 of any.
        confidence, lowest = max(cosine, asked.nearest) + weight, self.entries[index].lowest
        if familiarity + weight >= gate and confidence < lowest:
            return confidence, lowest
        return familiarity + weight, gate

    def _asked(self, scores: Vector) -> list[int]:
        """Return the leaf that each level puts forward, most specific first.

        Level 3 puts forward a part of the nearest domain, or a part of another one only if that
        is nearer than the nearest domain itself. Asked for its best alone, it would take most
        prompts of all domains that have no parts, for its floor is low.
        """
        part, domain, branch = (
            self._same(start + int(scores[start:end].argmax()), scores) if start < end else -1
            for start, end in self._spans
        )
        if part >= 0 and domain >= 0 and scores[part] < scores[domain]:
            own = self._parts.get(self.entries[domain].leaf)
            part = -1 if own is None else self._same(int(own[scores[own].argmax()]), scores)
        return [index for index in (part, domain, branch) if index >= 0]

    def _same(self, index: int, scores: Vector) -> int:
        """Return the first of the entries that are equal to this one, votes too."""
        first = self._first[index]
        return first if scores[first] >= scores[index] - ROUNDING else index


def _why(entry: Entry, score: float, gate: float, by_votes: bool) -> str:
    what = "familiarity" if by_votes else "cosine"
    weighed = f" with a weight of {entry.weight:+.3f}" if entry.weight else ""
    if score >= gate:
        return f"its {what}{weighed} is {score:.3f}, and the gate is {gate:.3f}"
    if by_votes:
        return f"too unlike the owner's sessions: {what}{weighed} {score:.3f}, gate {gate:.3f}"
    if gate <= entry.lowest:
        return f"{what}{weighed} {score:.3f} is below the floor of its level, {gate:.3f}"
    return f"{what}{weighed} {score:.3f} is below its gate of {gate:.3f}"


def _span(entries: Sequence[Entry], level: int) -> tuple[int, int]:
    at = [index for index, entry in enumerate(entries) if entry.level == level]
    return (at[0], at[-1] + 1) if at else (0, 0)


def _first_of_equals(entries: Sequence[Entry], matrix: Matrix) -> list[int]:
    """Return for each entry the first of its level with the very same centroid and weight.

    Copies of a foreign leaf are common, and the product may differ between them in the last bit.
    """
    first: dict[tuple[int, bytes, float], int] = {}
    return [
        first.setdefault((entry.level, row.tobytes(), entry.weight), index)
        for index, (entry, row) in enumerate(zip(entries, matrix, strict=True))
    ]


def _parts_of(entries: Sequence[Entry]) -> dict[LeafId, NDArray[np.int64]]:
    parts: dict[LeafId, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.level == 3 and entry.parent is not None:
            parts.setdefault(entry.parent, []).append(index)
    return {leaf: np.array(rows, np.int64) for leaf, rows in parts.items()}


def _above_of(entries: Sequence[Entry]) -> dict[LeafId, tuple[int, ...]]:
    """Return for each own leaf its own place and those of the own leaves above it."""
    at = {entry.leaf: index for index, entry in enumerate(entries) if entry.grown}
    out: dict[LeafId, tuple[int, ...]] = {}
    for leaf in at:
        path: list[int] = []
        above: LeafId | None = leaf
        while above in at and at[above] not in path:
            path.append(at[above])
            above = entries[at[above]].parent
        out[leaf] = tuple(path)
    return out


def _servers_of(entries: Sequence[Entry], matrix: Matrix) -> tuple[Entry | None, ...]:
    """Return who answers for each leaf: itself; or a foreign leaf of the same domain; or whoever
    answers for its parent; or None, the chassis."""
    own = {entry.leaf: index for index, entry in enumerate(entries) if not entry.origin}
    foreign = [i for i, entry in enumerate(entries) if entry.origin and entry.servable]
    out: list[Entry | None] = []
    for index, entry in enumerate(entries):
        at, passed = index, set[int]()
        server: Entry | None = None
        while server is None and at not in passed:
            passed.add(at)
            server = entries[at] if entries[at].serves else _kin(at, entries, matrix, foreign)
            parent = entries[at].parent
            at = own.get(parent, at) if parent is not None and not entry.origin else at
        out.append(server)
    return tuple(out)


def _kin(index: int, entries: Sequence[Entry], matrix: Matrix, foreign: list[int]) -> Entry | None:
    """Return the nearest foreign leaf that is of the same domain, the first of equals."""
    if not foreign:
        return None
    cosines = matrix[foreign] @ matrix[index]
    nearest = int(cosines.argmax())
    return entries[foreign[nearest]] if cosines[nearest] >= COSINE_SAME else None


class _Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it is written: all of it but the centroid."""

    leaf: str
    name: str
    level: int
    stage: Stage
    parent: str | None
    gate: float
    servable: bool
    origin: str
    bundle: str | None
    system: str
    floor: float | None
    weight: float = 0.0
    hubness: float = 0.0


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enc8: str
    dimensions: int
    entries: list[_Row]


def _row(entry: Entry) -> _Row:
    return _Row(*(getattr(entry, name) for name in _Row.__struct_fields__))


def _entry(row: _Row, centroid: Vector) -> Entry:
    fields: dict[str, Any] = {name: getattr(row, name) for name in _Row.__struct_fields__}
    return Entry(**fields, centroid=centroid)
