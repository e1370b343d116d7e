"""Communities of the kNN graph: Leiden, at the granularity that the data bears.

Modularity has a free resolution, and everything depends on it: one that is right for 105 intents
makes 90 domains of 14 forums, and one that is right for the forums makes 45 of the intents. So a
ladder of resolutions is climbed from coarse to fine, on all rows and on subsamples, as far as
communities are large enough; and of its rungs that one is taken on which subsamples tell most of
each other, where what they do not share counts against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import adjusted_rand, contingency, information
from .coarsen import Coarse, Edges, coarsen, communities, polish
from .copies import originals
from .grid import (
    EXACT_ROWS_MAX,
    RADIUS,
    Graph,
    Grid,
    Labels,
    centred,
    nearest,
    neighbours,
    sums,
    to_grid,
)
from .model import Matrix
from .ports import Progress, Report, silent

NEIGHBOURS = 15  # of a row in the graph; 10 and 30 find much the same
START = 0.5  # the resolution that the climb begins with; each rung is √2 of the one before
FINER = 20  # rungs, to a resolution of 362; communities are too small long before
COARSER = 10  # rungs, to 0.016, where START is too fine
SUBSAMPLES = 3
SUBSAMPLE_SHARE = 0.8
SMALL_SHARE_MAX = 0.3  # of rows in communities too small to keep; where the climb ends
UNSHARED_WEIGHT = 2.0  # of a nat that subsamples do not share, against one that they do
SHARED_MIN = 0.5  # of their information; below it subsamples show no communities
COSINE_SAME = 0.92  # the specification's threshold of a merge
NOISE_SHARE = 0.18  # of rows at most: those whose neighbours and centroids agree least
OUTLIER_SHARE = 0.05
JUDGED_ROWS_MAX = 20_000  # rows by which subsamples are compared; more say the same


@dataclass(frozen=True, slots=True)
class Division:
    """What was found at one level.

    labels: shape (n,), -1 is noise. copies: which rows are copies of another, and do not count.
    nearness: of each row, the mean cosine to its neighbours, centred. stability: of each label,
    the mean Jaccard index with the most similar community of a subsample. agreement: mean
    adjusted Rand index of subsamples, by nearest centroid over all rows. settings: in words.
    """

    labels: Labels
    copies: NDArray[np.bool_]
    nearness: NDArray[np.float64]
    stability: tuple[float, ...] = ()
    agreement: float = 0.0
    settings: str = ""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some rows, their graph, and the graph of its parts."""

    rows: NDArray[np.int64]
    graph: Any
    coarse: Coarse


@dataclass(frozen=True, slots=True)
class _Rung:
    """Communities at one resolution: of all rows first, then of each subsample; -1 is not in it.

    shared, told: what two of the divisions tell of each other, and what one tells alone, in nats.
    lost: share of rows in communities that are too small.
    """

    resolution: float
    divisions: tuple[Labels, ...]
    shared: float
    told: float
    lost: float

    @property
    def worth(self) -> float:
        return self.shared - UNSHARED_WEIGHT * (self.told - self.shared)


def divide(grid: Grid, size_min: int, report: Report = silent) -> Division:
    """Return communities of at least `size_min` rows of the grid that are not copies.

    The same rows give the same labels on any number of threads. Ties between exact copies are
    broken by row, so the caller sorts rows by id. Needs at least two rows.
    """
    middle = centred(grid, report)
    graph = neighbours(middle, 2 * NEIGHBOURS, report=report)
    stands_for = originals(grid, graph, NEIGHBOURS + 1)
    copies = stands_for != np.arange(len(grid))
    if not copies.any():
        return _divide(grid, middle, graph, size_min, report)
    kept = np.flatnonzero(~copies)
    inner, middle = _too_few(len(kept)), middle[kept]
    if len(kept) >= max(size_min, 2):
        graph = neighbours(middle, 2 * NEIGHBOURS, report=report)
        inner = _divide(grid[kept], middle, graph, size_min, report)
    place = np.searchsorted(kept, stands_for)
    crowds = np.unique(place[copies])
    labels = _outliers_out(middle, inner.labels, crowds)
    return Division(
        labels[place],
        copies,
        inner.nearness[place],
        inner.stability,
        inner.agreement,
        inner.settings,
    )


def _divide(grid: Grid, middle: Grid, graph: Graph, size_min: int, report: Report) -> Division:
    count = len(grid)
    edges = _edges(graph.rows[:, : NEIGHBOURS + 1])
    rung = _best_rung(edges, count, size_min, report)
    if rung is None:
        return _too_few(count)
    report(Progress("cluster: borders", 0, 3))
    labels = _joined(grid, _gathered(middle, rung.divisions[0], size_min))
    report(Progress("cluster: borders", 1, 3))
    sure = _without_noise(middle, graph, labels, size_min)
    report(Progress("cluster: borders", 2, 3))
    return Division(
        sure,
        np.zeros(count, np.bool_),
        graph.cosines[:, 1 : NEIGHBOURS + 1].mean(axis=1),
        _stability(labels, rung),
        _agreement(grid, rung, size_min),
        f"{NEIGHBOURS} neighbours, resolution {rung.resolution:.2g}, "
        f"subsamples share {rung.shared:.2f} of {rung.told:.2f} nats",
    )


def _outliers_out(middle: Grid, labels: Labels, rows: NDArray[np.int64]) -> Labels:
    """Return labels where those of `rows` are noise that are further from their centroid than
    19 of 20 members: a whole crowd would follow them."""
    if labels.max() < 0:
        return labels
    centroids = to_grid(sums(middle, labels, int(labels.max()) + 1)).astype(np.float64)
    out = labels.copy()
    for row in rows[labels[rows] >= 0]:
        members = np.asarray(middle[labels == labels[row]], np.float64)
        near = np.asarray(middle[row], np.float64) @ centroids[labels[row]]
        if near < np.quantile(members @ centroids[labels[row]], OUTLIER_SHARE):
            out[row] = -1
    return out


def _too_few(count: int) -> Division:
    """Nothing but noise."""
    return Division(
        np.full(count, -1, np.int64),
        np.zeros(count, np.bool_),
        np.zeros(count),
        settings="subsamples show no communities",
    )


def _best_rung(edges: Edges, count: int, size_min: int, report: Report) -> _Rung | None:
    """Return the resolution that says most, of those whose communities are large enough."""
    samples = list(_samples(edges, count, report))
    small = count <= EXACT_ROWS_MAX  # above, borders take minutes and change the choice little

    def at(step: float) -> _Rung:
        done = int((step + COARSER) * len(samples))
        report(Progress("cluster: resolutions", done, (FINER + COARSER) * len(samples)))
        return _rung(samples, count, size_min, START * 2.0 ** (step / 2), borders=small)

    found = [at(0)]
    while len(found) <= COARSER and found[-1].lost > SMALL_SHARE_MAX:
        found.append(at(-len(found)))  # few domains, beside what a domain has to be
    if len(found) == 1:
        for step in range(1, FINER):
            found.append(at(step))
            if found[-1].lost > SMALL_SHARE_MAX:
                break
    able = [rung for rung in found if rung.lost <= SMALL_SHARE_MAX] or found[-1:]
    # One rung's worth moves by a tenth with a few rows; the mean over its neighbours moves less.
    worths = [np.mean([r.worth for r in able[max(0, i - 1) : i + 2]]) for i in range(len(able))]
    return _mended(samples[0], able[int(np.argmax(worths))], small)


def _mended(sample: _Sample, rung: _Rung, done: bool) -> _Rung | None:
    """Return the rung with borders mended where they were not; None if subsamples share little."""
    if rung.shared <= SHARED_MIN * rung.told:
        return None
    if done:
        return rung
    whole = polish(sample.graph, rung.divisions[0], rung.resolution)
    return replace(rung, divisions=(whole, *rung.divisions[1:]))


def _samples(edges: Edges, count: int, report: Report) -> Iterator[_Sample]:
    """Yield all rows first, then each subsample."""
    for index in range(SUBSAMPLES + 1):
        report(Progress("cluster: subsamples", index, SUBSAMPLES + 1))
        rows = np.arange(count)
        if index:
            drawn = np.random.default_rng(index).permutation(count)
            rows = np.sort(drawn[: max(2, int(SUBSAMPLE_SHARE * count))])
        place = np.full(count, -1)
        place[rows] = np.arange(len(rows))
        ends = place[edges]
        kept = ends[(ends >= 0).all(axis=1)]
        graph = _graph(kept, len(rows))
        yield _Sample(rows, graph, coarsen(graph, kept, seed=index))


def _rung(
    samples: list[_Sample], count: int, size_min: int, resolution: float, *, borders: bool
) -> _Rung:
    """borders: mend them on the rows of each sample, which sets apart good rungs more clearly."""
    divisions = []
    for seed, sample in enumerate(samples):
        found = communities(sample.coarse, resolution, seed)
        labels = np.full(count, -1)
        labels[sample.rows] = polish(sample.graph, found, resolution, seed) if borders else found
        divisions.append(labels)
    judged = slice(None, None, -(-count // JUDGED_ROWS_MAX))
    large = [_without_small(labels, size_min)[judged] for labels in divisions]
    told = []
    for one, other in combinations(large, 2):
        both = (one >= 0) & (other >= 0)
        told.append(information(one[both], other[both]))
    shared, alone = np.mean(told, axis=0)
    sizes = np.bincount(divisions[0])
    lost = float(sizes[sizes < size_min].sum()) / count
    return _Rung(resolution, tuple(divisions), float(shared), float(alone), lost)


def _without_small(labels: Labels, size_min: int) -> Labels:
    """Return labels where all communities that are too small have one label together.

    What they tell is lost, so a rung that is too fine tells less, without any sharp limit: by one
    a few rows more or less would decide between few domains and many.
    """
    inside = labels >= 0
    sizes = np.bincount(labels[inside])
    least = size_min * inside.mean()
    numbers = np.where(sizes < least, len(sizes), np.arange(len(sizes)))
    return np.where(inside, numbers[labels], -1)


def _edges(rows: NDArray[np.int64]) -> Edges:
    """Return each pair of neighbours once, lower row first, in order.

    rows: neighbours of each row, itself first.

    All weigh the same: weights by cosine or by common neighbours changed nothing measurable.
    """
    count, width = rows.shape
    one = np.repeat(np.arange(count), width - 1)
    other = rows[:, 1:].ravel()
    low, high = np.minimum(one, other), np.maximum(one, other)
    pairs = np.unique((low * count + high)[low != high])
    return np.column_stack([pairs // count, pairs % count])


def _graph(edges: Edges, count: int) -> Any:
    import igraph

    return igraph.Graph(n=count, edges=edges)


def _gathered(middle: Grid, labels: Labels, size_min: int) -> Labels:
    """Return labels with each community that is too small joined to its nearest, smallest first.

    Dropped instead, their rows would be drawn to whatever is left, however far it is. -1 stays.
    """
    sizes = np.bincount(labels[labels >= 0])
    total = sums(middle, labels, len(sizes))
    into = np.arange(len(sizes))
    alive = sizes > 0
    while alive.sum() > 1:
        groups = np.flatnonzero(alive)
        small = int(groups[sizes[groups].argmin()])
        if sizes[small] >= size_min:
            break
        others = groups[groups != small]
        near = to_grid(total[others]) @ to_grid(total[small : small + 1])[0]
        stays = int(others[int(near.argmax())])
        total[stays] += total[small]
        sizes[stays] += sizes[small]
        alive[small] = False
        into[into == small] = stays
    return np.where(labels >= 0, _renumbered(into)[labels], -1)


def _joined(grid: Grid, labels: Labels) -> Labels:
    """Return labels with communities joined whose centroids are one domain's."""
    groups = int(labels.max()) + 1
    total = sums(grid, labels, groups)
    into = np.arange(groups)
    alive = np.arange(groups)
    while len(alive) > 1:
        means = to_grid(total[alive])
        alike = np.triu(means @ means.T / RADIUS**2, k=1)
        one, other = np.unravel_index(int(alike.argmax()), alike.shape)
        if alike[one, other] < COSINE_SAME:
            break
        total[alive[one]] += total[alive[other]]
        into[into == alive[other]] = alive[one]
        alive = np.delete(alive, other)
    return _renumbered(into)[labels]


def _without_noise(middle: Grid, graph: Graph, labels: Labels, size_min: int) -> Labels:
    """Return labels where the rows that fit worst are noise.

    Two things make a row doubtful, and together they find the wrong ones better than either: few
    of its neighbours have its label, and another centroid is nearly as near as its own. A row
    whose neighbours all agree is never noise, and no community falls below `size_min` by it.
    """
    count = len(labels)
    agree = (labels[graph.rows[:, 1:]] == labels[:, None]).mean(axis=1)
    doubt = _ranks(agree) + _ranks(_margins(middle, labels))
    order = np.lexsort((np.arange(count), doubt))
    doubtful = order[agree[order] < 1.0][: int(NOISE_SHARE * count)]
    spare = np.bincount(labels) - size_min
    out = labels.copy()
    for row in doubtful:
        if spare[labels[row]] > 0:
            spare[labels[row]] -= 1
            out[row] = -1
    return out


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return of each value how many are below it: equal ones have one rank."""
    ranks: NDArray[np.int64] = np.searchsorted(np.sort(values), values)
    return ranks


def _margins(middle: Grid, labels: Labels) -> NDArray[np.float64]:
    """Return how much nearer each row's own centroid is than the nearest other one, in cosine."""
    centroids: Matrix = to_grid(sums(middle, labels, int(labels.max()) + 1))
    margins = np.ones(len(labels))
    if len(centroids) == 1:
        return margins
    step = 8192
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        at = np.arange(len(part))
        near = np.asarray(middle[start : start + step], np.float32) @ centroids.T
        own = near[at, part].copy()
        near[at, part] = -np.inf
        margins[start : start + step] = (own - near.max(axis=1)) / RADIUS**2
    return margins


def _stability(labels: Labels, rung: _Rung) -> tuple[float, ...]:
    """Return of each label the mean Jaccard index with its most similar subsample community."""
    found = []
    for division in rung.divisions[1:]:
        inside = division >= 0
        table = contingency(labels[inside], division[inside])
        union = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
        best = np.zeros(int(labels.max()) + 1)
        best[: len(table)] = (table / np.maximum(union, 1)).max(axis=1)
        found.append(best)
    return tuple(float(value) for value in np.mean(found, axis=0))


def _agreement(grid: Grid, rung: _Rung, size_min: int) -> float:
    judged = grid[:: -(-len(grid) // JUDGED_ROWS_MAX)]
    given = []
    for division in rung.divisions[1:]:
        labels = _gathered(grid, division, int(SUBSAMPLE_SHARE * size_min))
        given.append(nearest(judged, to_grid(sums(grid, labels, int(labels.max()) + 1))))
    return float(np.mean([adjusted_rand(*pair) for pair in combinations(given, 2)]))


def _renumbered(labels: Labels) -> Labels:
    numbers: Labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return numbers
