"""Which known leaf each fresh cluster is: an assignment problem over sessions in common.

A leaf keeps its id while it drifts, grows, moves a level, or is not found for a while. What a leaf
held is remembered by the sessions given to it, so two near leaves do not change places when their
clusters were one for a day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .model import DAY_S, Forest, GrownFrom, Instant, Leaf, LeafId, Stage, Vector
from .ports import Clustering

OVERLAP_MIN = 0.5  # below half, a leaf and a cluster have more sessions apart than in common
SAME_LEVEL = 0.5  # of a score that goes to 2: enough to decide between equals, not more
MOVED_OVERLAP_MIN = 0.7  # to be found at another level: on a bad day two leaves are one with parts
TRAINED = 0.1  # of two nearly equal claims, the one with an adapter to lose goes first,
SENIOR = 0.2  # and one of SENIOR_DAYS before what was born of its sessions yesterday
SENIOR_DAYS = 30
COSINE_SAME = 0.92  # the specification's §5: nearer centroids are one domain
HEIR_MIN = 0.2  # an heir has at least this share of the leaf, and the leaf of it
ELSEWHERE_MAX = 0.1  # a leaf with fewer of its sessions than this in a cluster is somewhere else

Place = tuple[int, int]  # (level - 1, index of the cluster in that level)


@dataclass(frozen=True, slots=True)
class Shares:
    """Which leaves the sessions of each cluster were given to before.

    direct: parallel to `Clustering.levels`; of each cluster, how many of its sessions were given
    to each leaf, or to None. total: the same with each leaf's descendants counted in, without
    None. noise: of the sessions in no domain. lines: each leaf with its ancestors, nearest first.
    """

    direct: tuple[tuple[Counter[LeafId | None], ...], ...]
    total: tuple[tuple[Counter[LeafId], ...], ...]
    noise: Counter[LeafId | None]
    above: Mapping[Place, Place]  # of each specialisation, its domain
    held: Counter[LeafId]  # all sessions that each leaf had, its descendants' counted in
    lines: Mapping[LeafId, tuple[LeafId, ...]]

    def known(self, place: Place) -> int:
        """How many sessions of a cluster were given to any leaf."""
        counts = self.direct[place[0]][place[1]]
        return counts.total() - counts[None]

    def common(self, leaf: LeafId, place: Place) -> int:
        return self.total[place[0]][place[1]][leaf]


def shares(forest: Forest, clustering: Clustering, leaf_of: Mapping[str, LeafId]) -> Shares:
    """Count where the sessions of each cluster come from. One look-up per session and level."""
    lines = _lines(forest)

    def count(members: Sequence[str]) -> Counter[LeafId | None]:
        return Counter(map(leaf_of.get, members))

    def lifted(direct: Counter[LeafId | None]) -> Counter[LeafId]:
        total: Counter[LeafId] = Counter()
        for leaf, number in direct.items():
            for holder in lines.get(leaf, ()) if leaf is not None else ():
                total[holder] += number
        return total

    direct = tuple(tuple(count(c.members) for c in level) for level in clustering.levels)
    total = tuple(tuple(lifted(counts) for counts in level) for level in direct)
    above: dict[Place, Place] = {
        (2, index): (1, part.parent)
        for index, part in enumerate(clustering.levels[2])
        if part.parent is not None
    }
    held = lifted(Counter(leaf_of.values()))
    return Shares(direct, total, count(clustering.noise), above, held, lines)


def match(
    forest: Forest,
    clustering: Clustering,
    centroids: Sequence[Sequence[Vector]],
    past: Shares,
    now: Instant,
) -> dict[Place, LeafId]:
    """Return the leaf that each cluster is, one to one; a cluster without one is new.

    Live leaves choose before archived ones, which are known by their centroid at their own level,
    unless a live one is nearer. A domain that is found a level higher or lower than before is
    still the same leaf, unless another fits as well at its own level. Branches match branches
    only, for a branch may hold little more than the sessions of its one domain. Equal claims go to
    the older leaf, then to the id that sorts first.
    """
    matched: dict[Place, LeafId] = {}
    for levels in ((0,), (1, 2)):
        leaves = _of_levels(forest, levels, live=True)
        places = [(lv, i) for lv in levels for i in range(len(clustering.levels[lv]))]
        at = [centroids[level][index] for level, index in places]
        found = _assign(_scores(leaves, places, at, past, now))
        matched.update((places[column], leaves[row].id) for row, column in found)
        _heirs(leaves, places, past, matched)
        free = [place for place in places if place not in matched]
        at = [centroids[level][index] for level, index in free]
        ended = _of_levels(forest, levels, live=False)
        found = _assign(_revivals(ended, leaves, free, at))
        matched.update((free[column], ended[row].id) for row, column in found)
    return matched


def _of_levels(forest: Forest, levels: Sequence[int], *, live: bool) -> list[Leaf]:
    """Leaves that may be found, oldest first."""
    return sorted(
        (leaf for leaf in forest if _matchable(leaf, live) and leaf.level - 1 in levels),
        key=lambda leaf: (leaf.created, leaf.id),
    )


def _matchable(leaf: Leaf, live: bool) -> bool:
    if leaf.grown_from is GrownFrom.STARTER:
        return False  # a starter is scaffolding: what grows near it is a leaf of its own
    return leaf.stage.live if live else leaf.stage is Stage.ARCHIVED


def _lines(forest: Forest) -> dict[LeafId, tuple[LeafId, ...]]:
    """Return each leaf with its ancestors: a session of a leaf is one of theirs as well."""
    lines = {}
    for leaf in forest.leaves:
        line: list[LeafId] = []
        at: LeafId | None = leaf
        while at is not None and at in forest.leaves and at not in line:
            line.append(at)
            at = forest.leaves[at].parent
        lines[leaf] = tuple(line)
    return lines


def _scores(
    leaves: Sequence[Leaf],
    places: Sequence[Place],
    centroids: Sequence[Vector],
    past: Shares,
    now: Instant,
) -> NDArray[np.float64]:
    """Return how well each leaf and cluster fit, 0 where they cannot be the same.

    Overlap is the Dice coefficient over the sessions that were given to a leaf before: new
    sessions say nothing about which of two clusters a leaf has become.
    """
    scores = np.zeros((len(leaves), len(places)))
    if not scores.size:
        return scores
    cosines = np.stack([leaf.centroid for leaf in leaves]) @ np.stack(centroids).T
    standing = [_standing(leaf, now) for leaf in leaves]
    for column, place in enumerate(places):
        known = past.known(place)
        for row, leaf in enumerate(leaves):
            common, held = past.common(leaf.id, place), past.held[leaf.id]
            cosine = float(cosines[row, column])
            overlap = 2 * common / max(known + held, 1)
            # Where its sessions are says more of a leaf than where its centroid was.
            elsewhere = common < ELSEWHERE_MAX * min(known, held)
            stays = leaf.level == place[0] + 1
            least = OVERLAP_MIN if stays or not held else MOVED_OVERLAP_MIN
            if overlap < least and (cosine < COSINE_SAME or elsewhere or (held and not stays)):
                continue
            score = overlap + cosine + (SAME_LEVEL if stays else 0.0) + standing[row]
            if not _is_the_whole_of(leaf, place, past):
                scores[row, column] = max(score - 1e-9 * row, 1e-9)
    return scores


def _is_the_whole_of(leaf: Leaf, part: Place, past: Shares) -> bool:
    """True if a leaf is most of the domain that a part is of: it is that domain, not its part.

    Otherwise a leaf that was joined to it for a day would be given the domain, and keep it.
    """
    whole = past.above.get(part)
    if whole is None or leaf.level == part[0] + 1:
        return False
    return 2 * past.common(leaf.id, whole) >= past.known(whole) > 0


def _standing(leaf: Leaf, now: Instant) -> float:
    """What a leaf has to lose: an adapter, and a history."""
    age_days = (now - leaf.created) / DAY_S
    senior = SENIOR * min(max(age_days, 0.0) / SENIOR_DAYS, 1.0)
    return senior + (TRAINED if leaf.trainings else 0.0)


def _revivals(
    ended: Sequence[Leaf],
    live: Sequence[Leaf],
    places: Sequence[Place],
    centroids: Sequence[Vector],
) -> NDArray[np.float64]:
    """Return how near each archived leaf is to each cluster that no live leaf claims.

    A cluster that is nearer to a live leaf is a part of that one, not what was archived.
    """
    scores = np.zeros((len(ended), len(places)))
    if not scores.size:
        return scores
    at = np.stack(centroids).T
    cosines = np.stack([leaf.centroid for leaf in ended]) @ at
    for column, (level, _) in enumerate(places):
        rivals = [float(leaf.centroid @ at[:, column]) for leaf in live if leaf.level == level + 1]
        least = max([COSINE_SAME, *rivals])
        for row, leaf in enumerate(ended):
            if leaf.level == level + 1 and cosines[row, column] >= least:
                scores[row, column] = cosines[row, column]
    return scores


def _assign(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    if not scores.any():
        return []
    from scipy.optimize import linear_sum_assignment  # 0.3 s to load; only rounds come here

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if scores[r, c] > 0]


def _heirs(
    leaves: Sequence[Leaf], places: Sequence[Place], past: Shares, matched: dict[Place, LeafId]
) -> None:
    """Give a leaf that fell into many parts its largest, and what many became to the largest.

    With four equal parts no overlap reaches half, yet one of them is the heir: the one with most
    of the leaf's sessions, if either is the better part of the other and neither a mere trace.
    """
    found = set(matched.values())
    lost = [leaf for leaf in leaves if leaf.id not in found]
    free = [place for place in places if place not in matched]
    claims = []
    for row, leaf in enumerate(lost):
        for column, place in enumerate(free):
            common = past.common(leaf.id, place)
            less, more = sorted((past.held[leaf.id], past.known(place)))
            if leaf.level == place[0] + 1 and common >= max(0.5 * less, HEIR_MIN * more, 1):
                claims.append((-common, row, column))
    taken: set[Place] = set()
    for _, row, column in sorted(claims):
        leaf, place = lost[row], free[column]
        if leaf.id not in found and place not in taken:
            matched[place] = leaf.id
            found.add(leaf.id)
            taken.add(place)
