"""Figures over all sessions, counted once for each state of the home and not for each page."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from leaves.model import DAY_S, LeafId
from node.pictures.growth import WEEK
from node.pictures.tree import SPARK_WEEKS

from .desk import Desk


def assignment(desk: Desk) -> dict[str, LeafId]:
    """The leaf of each session. In a large home it is read after the page, as a step of its own: a
    page that is asked for meanwhile waits for one step alone."""
    make = desk.app.forests.assignment
    return desk.lately("assignment", desk.stamp("forest"), make, {})


def weekly(desk: Desk) -> dict[LeafId, list[int]]:
    """Sessions of each leaf in each of the last weeks, oldest first."""
    today = desk.app.now() // DAY_S
    stamp = (*desk.stamp("forest", "embedded"), today)
    assignment(desk)  # is due before what is counted by it
    return desk.lately("weekly", stamp, partial(_weekly, desk, today), {})


def _weekly(desk: Desk, today: int) -> dict[LeafId, list[int]]:
    first = today - SPARK_WEEKS * WEEK + 1
    leaf_of, recent = assignment(desk), desk.app.embeddings.days()
    index: dict[LeafId, int] = {}
    cells = [
        (index.setdefault(leaf_of[session], len(index)), (day - first) // WEEK)
        for session, day in recent.items()
        if first <= day <= today and session in leaf_of
    ]
    counts: NDArray[np.int64] = np.zeros((len(index), SPARK_WEEKS), dtype=np.int64)
    if cells:
        np.add.at(counts, tuple(np.array(cells).T), 1)
    return {leaf: counts[row].tolist() for leaf, row in index.items()}
