"""What became of each leaf from one look at the sessions to the next, as data and in words.

The words go to the journal, where they outlive the names of leaves: they name a leaf by its id,
and `named` puts the name of the day in its place when they are read. So a name that has to be
forgotten is not kept in a sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .identity import COSINE_SAME, Place, Shares
from .model import Forest, GrownFrom, Leaf, LeafId, Stage, Vector
from .ports import Clustering

PART_MIN = 0.2  # of a leaf's sessions in another cluster, from which the leaf is split in the data
TOLD_MAX = 3  # places that one sentence lists; the others are summed
_ID = re.compile(r"\b[0-9a-f]{32}\b")


class Change(StrEnum):
    """What a look at the data shows of a leaf; several may be true at once."""

    CONTINUED = "continued"
    BACK = "found again"  # after full re-clusters in which it was not found
    SPLIT = "split"  # a good part of its sessions is another cluster now
    MERGED = "merged"  # a leaf that has no cluster of its own any more is in its cluster
    MOVED = "moved"  # it is found at another level
    VANISHED = "vanished"
    ABSORBED = "absorbed"  # vanished, and most of its sessions are in one other cluster
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Share:
    """Sessions at one place: a known leaf, a new cluster by its index in `Observations.seen`, or
    None for no leaf."""

    place: LeafId | int | None
    sessions: int


@dataclass(frozen=True, slots=True)
class Descent:
    """What became of one known leaf, or where a new cluster comes from.

    Only sessions that are still here count. Shares come largest first.
    """

    leaf: LeafId | None  # None: the cluster is new
    cluster: int | None  # its index in `Observations.seen`; None: the leaf was not found
    changes: tuple[Change, ...]
    held: int = 0  # sessions that the leaf had
    common: int = 0  # of those, in its cluster now
    fresh: int = 0  # sessions of the cluster that were in no leaf
    cosine: float | None = None  # of the centroid then to the centroid now
    levels: tuple[int, int] | None = None  # then and now
    missed: int = 0  # full re-clusters in a row in which it had not been found before this one
    went: tuple[Share, ...] = ()  # where the others of its sessions are now
    came: tuple[Share, ...] = ()  # which leaves' sessions its cluster has besides
    took: tuple[LeafId, ...] = ()  # leaves without a cluster of their own that are in its cluster
    like: LeafId | None = None  # of a new cluster: an ended leaf with the same centroid


def descents(
    forest: Forest,
    clustering: Clustering,
    centroids: Sequence[Sequence[Vector]],
    matched: Mapping[Place, LeafId],
    past: Shares,
) -> tuple[Descent, ...]:
    """Return one descent for each cluster, in the order of `seen`, then one for each leaf that
    was not found, by id."""
    return tuple(_Recogniser(forest, clustering, centroids, matched, past).all())


class _Recogniser:
    """One look: the tables that every descent is read from."""

    def __init__(
        self,
        forest: Forest,
        clustering: Clustering,
        centroids: Sequence[Sequence[Vector]],
        matched: Mapping[Place, LeafId],
        past: Shares,
    ) -> None:
        self._forest = forest
        self._centroids = centroids
        self._matched = matched
        self._past = past
        places = [(lv, i) for lv, level in enumerate(clustering.levels) for i in range(len(level))]
        self._index = {place: at for at, place in enumerate(places)}
        found = set(matched.values())
        self._lost = [
            leaf
            for leaf in forest.live()
            if leaf.id not in found and leaf.grown_from is GrownFrom.DATA
        ]
        self._went = {leaf.id: self._where(leaf.id, leaf.level, None) for leaf in self._lost}

    def all(self) -> Iterable[Descent]:
        for place in self._index:
            known = self._matched.get(place)
            if known is None:
                yield self._new(place)
            else:
                yield self._found(self._forest.leaves[known], place)
        for leaf in self._lost:
            went = self._went[leaf.id]
            changes = [Change.VANISHED]
            held = self._past.held[leaf.id]
            if any(s.place is not None and 2 * s.sessions >= held for s in went):
                changes.append(Change.ABSORBED)
            yield Descent(leaf.id, None, tuple(changes), held=held, missed=leaf.missed, went=went)

    def _found(self, leaf: Leaf, place: Place) -> Descent:
        level, index = place
        held, common = self._past.held[leaf.id], self._past.common(leaf.id, place)
        went = self._where(leaf.id, level + 1, place)
        took = tuple(
            lost.id
            for lost in self._lost
            if (lost.level == 1) == (level == 0)
            and leaf.id not in self._past.lines[lost.id]
            and lost.id not in self._past.lines[leaf.id]
            and any(
                s.place == leaf.id and 2 * s.sessions >= self._past.held[lost.id]
                for s in self._went[lost.id]
            )
        )
        changes = [Change.CONTINUED]
        if leaf.missed:
            changes.append(Change.BACK)
        if any(s.place is not None and s.sessions >= PART_MIN * held for s in went):
            changes.append(Change.SPLIT)
        if took:
            changes.append(Change.MERGED)
        if leaf.level != level + 1:
            changes.append(Change.MOVED)
        return Descent(
            leaf.id,
            self._index[place],
            tuple(changes),
            held=held,
            common=common,
            fresh=self._past.direct[level][index][None],
            cosine=float(leaf.centroid @ self._centroids[level][index]),
            levels=(leaf.level, level + 1),
            missed=leaf.missed,
            went=went,
            came=self._whence(place, leaf.id),
            took=took,
        )

    def _new(self, place: Place) -> Descent:
        level, index = place
        return Descent(
            None,
            self._index[place],
            (Change.NEW,),
            fresh=self._past.direct[level][index][None],
            levels=(level + 1, level + 1),
            came=self._whence(place, None),
            like=self._like(self._centroids[level][index], level + 1),
        )

    def _where(self, leaf: LeafId, level: int, besides: Place | None) -> tuple[Share, ...]:
        """Where a leaf's sessions are now, but for one cluster.

        A leaf of level 2 is looked for in domains; one of level 3 in specialisations, and in what
        is left of their domains; a branch in branches.
        """
        past = self._past
        counts: Counter[Place] = Counter()
        for index in range(len(past.total[level - 1])):
            place = (level - 1, index)
            counts[place] = past.common(leaf, place)
        if level == 3:
            for index in range(len(past.total[1])):
                counts[1, index] = past.common(leaf, (1, index))
            for part, whole in past.above.items():
                counts[whole] -= counts[part]
        places: dict[LeafId | int | None, int] = {None: past.held[leaf] - counts.total()}
        places.update((self._named(at), n) for at, n in counts.items() if at != besides)
        return _largest_first(places)

    def _whence(self, place: Place, leaf: LeafId | None) -> tuple[Share, ...]:
        """Which other leaves had the sessions of a cluster; of a branch's, which branches."""
        level, index = place
        counts: Counter[LeafId | int | None] = Counter()
        for was, number in self._past.direct[level][index].items():
            line = self._past.lines.get(was, ()) if was is not None else ()
            if not line or leaf in line:
                continue
            if level == 0:
                counts[next((x for x in line if self._forest.leaves[x].level == 1), None)] += number
            else:
                counts[was] += number
        return _largest_first(counts)

    def _named(self, place: Place) -> LeafId | int:
        return self._matched.get(place, self._index[place])

    def _like(self, centroid: Vector, level: int) -> LeafId | None:
        """The ended leaf that a new cluster is most like, if it could be the same."""
        ended = [
            leaf
            for leaf in self._forest
            if leaf.stage in (Stage.DISSOLVED, Stage.MERGED) and (leaf.level == 1) == (level == 1)
        ]
        near = max(ended, key=lambda leaf: float(leaf.centroid @ centroid), default=None)
        if near is None or float(near.centroid @ centroid) < COSINE_SAME:
            return None
        return near.id


def _largest_first(counts: Mapping[LeafId | int | None, int]) -> tuple[Share, ...]:
    shares = [Share(place, number) for place, number in counts.items() if number > 0]
    return tuple(sorted(shares, key=lambda s: (-s.sessions, s.place is None, str(s.place))))


def why_kept(descent: Descent, ids: Mapping[int, LeafId]) -> str:
    """Say why a cluster is this leaf. ids: of the new clusters that became leaves."""
    if descent.held:
        said = f"kept its id: {descent.common} of {descent.held} sessions in common"
    else:
        said = "kept its id by its centroid alone, for no session of it was left"
    if Change.BACK in descent.changes:
        said = f"found again after {descent.missed} without a cluster; {said}"
    if descent.cosine is not None:
        said += f", centroid moved {max(1 - descent.cosine, 0):.2f}"
    if descent.fresh:
        said += f", {descent.fresh} new or noise before"
    if Change.SPLIT in descent.changes:
        largest = max(s.sessions for s in descent.went if s.place is not None)
        whose = "the larger part keeps" if descent.common >= largest else "the nearer part keeps"
        said += f"; split in the data, {whose} the id"
    if descent.went:
        nowhere = "are in no branch now" if descent.levels == (1, 1) else "are noise now"
        said += f"; {_listed(descent.went, ids, 'went to', nowhere)}"
    came = tuple(s for s in descent.came if s.place not in descent.took)
    if descent.took:
        whole = ", ".join(descent.took[:TOLD_MAX])
        more = f" and {len(descent.took) - TOLD_MAX} more" if len(descent.took) > TOLD_MAX else ""
        said += f"; merged in the data: {whole}{more} is in its cluster and has none of its own"
    if came:
        said += f"; {_listed(came, ids, 'came from', 'came from no branch')}"
    if Change.MOVED in descent.changes and descent.levels:
        said += f"; level {descent.levels[1]} now, was {descent.levels[0]}"
    return said


def why_missed(descent: Descent, ids: Mapping[int, LeafId]) -> str:
    """Say where the sessions of a leaf without a cluster are."""
    if not descent.held:
        return "none of its sessions is left"
    listed = _listed(descent.went, ids, "are in", "are in no cluster")
    return f"of {descent.held} sessions {listed}"


def why_new(descent: Descent, ids: Mapping[int, LeafId]) -> str:
    """Say where the sessions of a new leaf come from."""
    said = [f"{descent.fresh} in no leaf before"] if descent.fresh else []
    if descent.came:
        said.append(_listed(descent.came, ids, "came from", "came from no branch"))
    if descent.like:
        said.append(f"centroid like that of {descent.like}, which has ended")
    return ", ".join(said)


def named(reason: str, forest: Forest) -> str:
    """Return a reason of the journal with the leaves' names of today in place of their ids."""

    def name(found: re.Match[str]) -> str:
        leaf = forest.leaves.get(LeafId(found[0]))
        return leaf.name if leaf else found[0][:8]

    return _ID.sub(name, reason)


def _listed(shares: Sequence[Share], ids: Mapping[int, LeafId], to: str, nowhere: str) -> str:
    """ "31 went to A, 12 to B, 9 to 2 others, 5 are in no leaf now"."""
    said = []
    some = [share for share in shares if share.place is not None]
    for share in some[:TOLD_MAX]:
        said.append(f"{share.sessions} {to} {_place(share.place, ids)}")
        to = to.split()[-1]
    if rest := some[TOLD_MAX:]:
        others = "1 other" if len(rest) == 1 else f"{len(rest)} others"
        said.append(f"{sum(share.sessions for share in rest)} {to} {others}")
    said += [f"{share.sessions} {nowhere}" for share in shares if share.place is None]
    return ", ".join(said)


def _place(place: LeafId | int | None, ids: Mapping[int, LeafId]) -> str:
    if isinstance(place, int):
        return ids.get(place, "a cluster that is no leaf")
    return place or ""
