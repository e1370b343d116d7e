"""Sessions on a plane: UMAP over our own neighbours, the same picture for the same sessions.

The neighbours are `leaves.grid`'s, whose arithmetic is exact, so neither the order of the rows nor
the number of threads reaches the layout, and umap's own search with its compile time is not paid.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaves.grid import neighbours, to_grid
from leaves.model import Matrix
from leaves.ports import Progress, Report, silent

SHOWN_MAX = 30_000  # a screen has no room for more dots, and the layout takes a minute
NEIGHBOURS = 15  # umap's default, and what below which it has nothing to lay out
EPOCHS_SMALL, EPOCHS_LARGE, SMALL_ROWS = 500, 200, 10_000  # umap's defaults, told to the progress

_CELLS = 40  # of the grid in which the densest place is sought

Places = NDArray[np.float32]  # shape (n, 2), each in [0, 1], one scale for both axes


@dataclass(frozen=True, slots=True)
class Projection:
    """Where each row is shown, by which method, and why not by UMAP if it is not."""

    places: Places
    method: str
    why: str = ""


def sampled(ids: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return the rows of `count` sessions by hash of their id, or of all, in the order of ids.

    A session that is shown once stays shown while others of smaller hash do not outnumber it.
    """
    rows = range(len(ids))
    if len(ids) > count:
        hashes = [hashlib.sha256(id_.encode()).digest() for id_ in ids]
        rows = sorted(rows, key=hashes.__getitem__)[:count]  # type: ignore[assignment]
    return np.array(sorted(rows, key=ids.__getitem__), dtype=np.int64)


def project(vectors: Matrix, report: Report = silent) -> Projection:
    """Lay rows out on a plane. vectors: shape (n, d), unit length, in the order of their ids.

    About 25 s for 2,500 rows, most of it umap's import and compiling; 80 s for 30,000.
    """
    start = _pca(vectors)
    if len(vectors) <= NEIGHBOURS:
        return Projection(_framed(start), "PCA", f"UMAP needs more than {NEIGHBOURS} sessions")
    if float(np.ptp(start, axis=0).min()) < 1e-6:  # umap scales each axis of its start to 10
        return Projection(_framed(start), "PCA", "the sessions are all alike")
    try:
        laid = _umap(vectors, start, report)
    except ImportError:
        return Projection(_framed(start), "PCA", "umap-learn is not installed")
    return Projection(_framed(laid), "UMAP")


def densest(places: Places) -> tuple[float, float]:
    """The middle of where most of some rows are: where a label says what they are.

    places: shape (n, 2) with n > 0. The fullest 3 x 3 cells of a grid; of equal ones the first.
    """
    cells = np.minimum((places * _CELLS).astype(np.int64), _CELLS - 1)
    counts = np.zeros((_CELLS + 2, _CELLS + 2), dtype=np.int64)
    np.add.at(counts, (cells[:, 0] + 1, cells[:, 1] + 1), 1)
    inner = range(3)
    around = sum(counts[x : x + _CELLS, y : y + _CELLS] for x in inner for y in inner)
    best = np.unravel_index(int(np.argmax(around)), (_CELLS, _CELLS))
    near = (np.abs(cells - np.array(best)) <= 1).all(axis=1)
    x, y = places[near].mean(axis=0, dtype=np.float64)
    return float(x), float(y)


def _umap(vectors: Matrix, start: NDArray[np.float64], report: Report) -> NDArray[np.float64]:
    epochs = EPOCHS_SMALL if len(vectors) <= SMALL_ROWS else EPOCHS_LARGE
    report(Progress("map: loading", 0, 0))
    with warnings.catch_warnings():
        # numba tells of its threads, umap of a transform that nobody asked for.
        warnings.simplefilter("ignore")
        logging.getLogger("numba").setLevel(logging.ERROR)
        from umap import UMAP

        report(Progress("map: neighbours", 0, 0))
        graph = neighbours(to_grid(vectors), NEIGHBOURS, report=_as_neighbours(report))
        # On unit vectors |a - b|² = 2 - 2·cos(a, b).
        distances = np.sqrt(np.maximum(2.0 - 2.0 * graph.cosines, 0.0)).astype(np.float32)
        known = (graph.rows[:, :NEIGHBOURS].astype(np.int32), distances[:, :NEIGHBOURS])
        report(Progress("map: layout", 0, epochs))
        layout = UMAP(
            n_neighbors=NEIGHBOURS,
            n_epochs=epochs,
            # Rounded, for the last bits of a float sum differ between numbers of threads.
            init=np.round(start / max(float(np.abs(start).max()), 1e-9), 4).astype(np.float32),
            precomputed_knn=known,
            force_approximation_algorithm=True,
            random_state=0,
            n_jobs=1,
            tqdm_kwds={
                "disable": False,
                "file": _Epochs(report),
                "mininterval": 0.5,
                "bar_format": "{n_fmt}/{total_fmt}",
            },
        )
        laid: NDArray[np.float64] = layout.fit_transform(vectors)
    report(Progress("map: layout", epochs, epochs))
    return np.where(np.isfinite(laid), laid, 0.0)  # umap gives nan to a row without neighbours


def _as_neighbours(report: Report) -> Report:
    """The search's own progress, as one of the map's."""

    def tell(progress: Progress) -> None:
        report(Progress("map: neighbours", progress.done, progress.total, progress.detail))

    return tell


class _Epochs:
    """The file that umap's bar writes to: each line of it is a call of our report."""

    _LINE = re.compile(r"(\d+)/(\d+)")

    def __init__(self, report: Report) -> None:
        self._report = report

    def write(self, text: str) -> None:
        found = self._LINE.search(text)
        if found and found[1] != found[2]:
            self._report(Progress("map: layout", int(found[1]), int(found[2])))

    def flush(self) -> None:
        """Nothing is held back."""


def _pca(vectors: Matrix) -> NDArray[np.float64]:
    """The two widest directions, each with the sign that makes its largest part positive."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    widest = directions[:, ::-1][:, :2]
    largest = widest[np.abs(widest).argmax(axis=0), np.arange(2)]
    places: NDArray[np.float64] = centred @ (widest * np.sign(largest))
    return places


def _framed(places: NDArray[np.float64]) -> Places:
    """Moved and scaled, both axes alike, into the unit square."""
    low, high = places.min(axis=0), places.max(axis=0)
    scale = max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    framed: Places = ((places - middle) / scale + 0.5).clip(0.0, 1.0).astype(np.float32)
    return framed
