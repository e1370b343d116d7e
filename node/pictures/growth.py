"""How the tree came to be: sessions per leaf and week, and what became of each leaf when.

Sessions count for the leaf that holds them today, on the day they were closed; stages are the
journal's, as of the day of the round that changed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leaves.model import DAY_S, LeafId, Stage
from leaves.store import HistoryEntry

WEEK = 7
BARS_MAX = 104  # two years of weeks; of a longer time, a bar stands for several


@dataclass(frozen=True, slots=True)
class Then:
    """What a leaf was from this day on. day: days since 1970-01-01."""

    day: int
    stage: Stage
    sessions: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that changed a leaf's stage, or began it."""

    day: int
    leaf: LeafId
    name: str
    what: str  # "born", or the stage that it came to


@dataclass(frozen=True, slots=True)
class Growth:
    """Sessions per leaf and stretch of time.

    counts: shape (len(leaves) + 1, bars); the last row is of sessions in no leaf. Bar i begins on
    `first_day + i * days_per_bar`.
    """

    leaves: tuple[LeafId, ...]
    first_day: int
    days_per_bar: int
    counts: NDArray[np.int64]


def life(history: Iterable[HistoryEntry]) -> list[Then]:
    """A leaf's life: its changes of stage, and between them one entry a week."""
    out: list[Then] = []
    for entry in history:
        then = Then(entry.at // DAY_S, entry.leaf.stage, entry.leaf.sessions)
        last = out[-1] if out else None
        if last and last.stage is then.stage and _monday(last.day) == _monday(then.day):
            out[-1] = replace(last, sessions=then.sessions)
        else:
            out.append(then)
    return out


def events(history: Iterable[HistoryEntry]) -> list[Event]:
    """What a leaf went through, oldest first; its drift is no event."""
    out: list[Event] = []
    stage: Stage | None = None
    for entry in history:
        leaf = entry.leaf
        if leaf.stage is not stage:
            what = "born" if stage is None else leaf.stage.value
            out.append(Event(entry.at // DAY_S, leaf.id, leaf.name, what))
            stage = leaf.stage
    return out


def growth(
    ids: Sequence[str],
    days: Sequence[int],
    leaf_of: Mapping[str, LeafId],
    leaves: Sequence[LeafId],
) -> Growth:
    """Count sessions by leaf and stretch of time, weeks beginning on Mondays.

    ids and days are parallel and not empty; a session of a leaf that is not in `leaves` is in none.
    """
    first, last = _monday(min(days)), max(days)
    weeks = (last - first) // WEEK + 1
    step = WEEK * -(-weeks // BARS_MAX)
    bars = (last - first) // step + 1
    row = {leaf: at for at, leaf in enumerate(leaves)}
    rows = np.fromiter(
        (row.get(leaf_of.get(id_, LeafId("")), len(leaves)) for id_ in ids), np.int64, len(ids)
    )
    at = (np.asarray(days, dtype=np.int64) - first) // step
    counts = np.bincount(rows * bars + at, minlength=(len(leaves) + 1) * bars)
    return Growth(tuple(leaves), first, step, counts.reshape(len(leaves) + 1, bars))


def _monday(day: int) -> int:
    return day - (day + 3) % WEEK  # 1970-01-01 was a Thursday
