"""A home with leaves that grew over months: vectors and a journal without a model or a round."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from leaves.model import (
    DAY_S,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Matrix,
    Stage,
    leaf_id,
    unit,
)
from node.app import App

DIMENSIONS = 384
FIRST_DAY = 20_500  # 2026-02-16, a Monday
DAYS = 140
NAMES = ("python", "kubernetes", "poems", "tides", "gears")


class FixedClock:
    """Stands still on the day after the last session."""

    def now_s(self) -> float:
        return float((FIRST_DAY + DAYS) * DAY_S)


def a_leaf(birth: int, name: str, **fields: object) -> Leaf:
    """A domain that was born in the fifth week."""
    born = Instant((FIRST_DAY + 30) * DAY_S)
    plain = Leaf(
        id=leaf_id(b"\1" * 32, birth),
        name=name,
        stage=Stage.SEED,
        stage_since=born,
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=born,
        sessions=0,
        growth_per_day=0.0,
        centroid=np.eye(DIMENSIONS, dtype=np.float32)[birth],
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def vectors(count: int, topics: int) -> tuple[list[str], list[int], Matrix]:
    """Sessions near the centre of a topic each; every tenth is near none."""
    rng = np.random.default_rng(7)
    centres = rng.normal(0, 1, (topics, DIMENSIONS))
    ids = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(count)]
    rows = centres[np.arange(count) % topics] + rng.normal(0, 0.8, (count, DIMENSIONS))
    rows[::10] = rng.normal(0, 1, (len(rows[::10]), DIMENSIONS))
    days = [FIRST_DAY + (n * DAYS) // count for n in range(count)]
    return ids, days, unit(rows.astype(np.float32))


def planted(home: Path, count: int = 300, names: tuple[str, ...] = NAMES) -> App:
    """Leaves of `names` under one branch: the first is mature, the second was a sprout and is
    archived, the others are seeds. Their sessions are assigned, but every tenth."""
    home.mkdir(mode=0o700, exist_ok=True)
    app = App(home, FixedClock())
    ids, days, rows = vectors(count, len(names))
    app.embeddings.append(ids, days, rows)
    grow(app, ids, names)
    return app


def grow(app: App, ids: list[str], names: tuple[str, ...] = NAMES) -> None:
    """The journal of the leaves of some sessions, the n-th of the n-th name."""
    members: dict[str, LeafId] = {}
    store = app.forests
    branch = a_leaf(0, "Everything", level=1, sessions=len(ids))
    store.change(branch, "born", "found", branch.created)
    for at, name in enumerate(names):
        mine = [id_ for n, id_ in enumerate(ids) if n % len(names) == at and n % 10]
        leaf = a_leaf(at + 1, name, parent=branch.id, sessions=len(mine) // 5, growth_per_day=1.5)
        store.change(leaf, "born", "found", leaf.created)
        for week in range(5, 12):  # of the twenty that there are
            leaf = replace(leaf, sessions=len(mine) * week // 20)
            store.change(leaf, "drifted", "", Instant((FIRST_DAY + 7 * week) * DAY_S))
        if at == 0:
            now = Instant((FIRST_DAY + 90) * DAY_S)
            leaf = replace(leaf, stage=Stage.MATURE, stage_since=now, trainings=3, wins=2)
            store.change(leaf, "promoted", "won", now)
        if at == 1:
            now = Instant((FIRST_DAY + 95) * DAY_S)
            leaf = replace(leaf, stage=Stage.ARCHIVED, stage_since=now)
            store.change(leaf, "archived", "dormant", now)
        else:
            members.update(dict.fromkeys(mine, leaf.id))
    store.assign(members)
