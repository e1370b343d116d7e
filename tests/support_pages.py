"""A home with everything that the pages show: leaves of all stages, rounds, peers, nights, words.

Nothing is trained: figures are written as rounds would have written them, over months.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from support_pictures import DAYS, DIMENSIONS, FIRST_DAY, FixedClock, a_leaf

from leaves.lifecycle import Split
from leaves.model import (
    DAY_S,
    Adapter,
    Evaluation,
    Instant,
    Interval,
    Leaf,
    LeafId,
    Matrix,
    Stage,
    Verdict,
    leaf_id,
    unit,
)
from node import deploying, night_book, told
from node.app import App
from node.consent import Scope
from node.foreign import State
from node.mesh import ForeignLeaf, Shown, quantised
from node.tables import Kind, Note, Starters

TOPICS = (
    *("async-python", "kubernetes-ingress", "postgres-indexes", "rust-lifetimes", "react-hooks"),
    *("bread-baking", "garden-soil", "train-timetables", "essay-outlines", "unit-tests"),
)
PEER = "b7" * 32
ROUND_DAYS = (80, 100, 110, 120)
HOSTILE = "<script>alert(1)</script>"


def sessions(count: int, topics: int) -> tuple[list[str], list[int], Matrix]:
    """Sessions near the centre of a topic each, later topics with fewer; every tenth near none."""
    rng = np.random.default_rng(11)
    centres = unit(rng.normal(0, 1, (topics, DIMENSIONS)).astype(np.float32))
    weights = 1.0 / np.arange(1, topics + 1) ** (0.7 if topics < 50 else 0.2)
    of = rng.choice(topics, count, p=weights / weights.sum())
    rows = np.empty((count, DIMENSIONS), dtype=np.float32)
    for start in range(0, count, 10_000):
        part = slice(start, start + 10_000)
        noise = unit(rng.normal(0, 1, (len(of[part]), DIMENSIONS)).astype(np.float32))
        spread = rng.uniform(0.5, 1.6, (len(of[part]), 1)).astype(np.float32)
        rows[part] = unit(centres[of[part]] + spread * noise)
        rows[part][::10] = noise[::10]
    ids = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(count)]
    days = [FIRST_DAY + int(DAYS * (n / count) ** 0.7) for n in range(count)]
    return ids, days, rows


def grown(
    home: Path, count: int = 2_400, names: tuple[str, ...] = TOPICS, *, evil: str = HOSTILE
) -> App:
    """The whole of it. Its clock stands on the day after the last session.

    evil: what one peer calls its leaf, and what stands in reasons and events.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = App(home, FixedClock())
    app.consent.grant(app.user_id, list(Scope), disclosure="0" * 64)
    ids, days, rows = sessions(count, len(names))
    app.embeddings.append(ids, days, rows)
    branches = _leaves(app, ids, rows, names)
    _rounds(app)
    _proposal(app, branches)
    _table(app)
    _peers(app, rows, evil)
    _night(app, evil)
    _routed(app)
    _shown(app)
    return app


def at(day: int) -> Instant:
    """A moment of a day of the home's life."""
    return Instant((FIRST_DAY + day) * DAY_S + 3 * 3600)


def an_evaluation(day: int, verdict: Verdict, gain: float) -> Evaluation:
    def interval(mean: float, wide: float) -> Interval:
        return Interval(mean, mean - wide, mean + wide)

    previous = None if verdict is Verdict.BETTER else interval(0.06, 0.03)
    return Evaluation(
        held_out=96,
        loss=1.62,
        over_parent=interval(gain + 0.7, 0.09),
        over_style=interval(gain, 0.07),
        over_previous=previous,
        general_rise=0.012,
        won=True,
        verdict=verdict,
        at=at(day),
    )


def _leaves(app: App, ids: list[str], rows: Matrix, names: tuple[str, ...]) -> list[Leaf]:
    """Branches of ten leaves each; of ten, five are mature, two sprouts, one is archived."""
    store, members = app.forests, dict[str, LeafId]()
    rng = np.random.default_rng(11)
    centres = unit(rng.normal(0, 1, (len(names), DIMENSIONS)).astype(np.float32))
    near = np.concatenate(
        [rows[n : n + 4096] @ centres.T for n in range(0, len(rows), 4096)], axis=0
    )
    nearest, clear = near.argmax(axis=1), near.max(axis=1) > 0.4
    out: list[Leaf] = []
    births = 0
    for number, name in enumerate(names):
        if number % 10 == 0:
            branch = replace(
                a_leaf(0, f"branch {number // 10 + 1}", level=1, sessions=len(ids)),
                id=leaf_id(b"\1" * 32, births),
                centroid=centres[number],
            )
            births += 1
            store.change(branch, "born", "joins the leaves below it", branch.created)
        mine = [ids[row] for row in np.flatnonzero((nearest == number) & clear)]
        leaf = replace(
            a_leaf(0, name, parent=branch.id, sessions=len(mine), growth_per_day=len(mine) / 60),
            id=leaf_id(b"\1" * 32, births),
            centroid=centres[number],
        )
        births += 1
        leaf = _life(app, leaf, number)
        out.append(leaf)
        if leaf.stage.live:
            members.update(dict.fromkeys(mine, leaf.id))
    store.assign(members)
    return out


def _told(app: App, leaf: Leaf, kind: str, why: str, day: int) -> None:
    """A change that a round made: the rounds are of these days, in their order."""
    app.forests._put(leaf, kind, why, at(day), ROUND_DAYS.index(day) + 1)


def _life(app: App, leaf: Leaf, number: int) -> Leaf:
    """The journal of one leaf; what comes of it depends on its number alone."""
    store, whole = app.forests, leaf.sessions
    leaf = replace(leaf, created=at(20 + number % 30), stage_since=at(20 + number % 30))
    found = replace(leaf, sessions=whole // 5)
    store.change(found, "born", f"a cluster of {whole // 5} sessions without a leaf", leaf.created)
    for week in range(6, 10):
        found = replace(found, sessions=whole * week // 12)
        store.change(found, "drifted", "", at(7 * week))
    kind = number % 10
    adapter = Adapter("b" * 64, "c" * 64, "d" * 64, "62c99a05acf4eb68", 8)
    if kind <= 6:
        first = an_evaluation(80, Verdict.BETTER, 0.21)
        leaf = replace(leaf, stage=Stage.SPROUT, stage_since=at(80), trainings=1, wins=1)
        leaf = replace(leaf, evaluation=first, adapter=adapter, attempts=1, trained_at=at(80))
        _told(app, leaf, "trained", "better: +0.210 nats over the style control", 80)
    if kind <= 4:
        second = an_evaluation(100, Verdict.IMPROVED, 0.27)
        leaf = replace(leaf, stage=Stage.MATURE, stage_since=at(100), trainings=2, wins=2)
        leaf = replace(leaf, evaluation=second, matured_at=at(100), used_by=number % 4)
        why = f"{whole} sessions, won 2 rounds on fresh sessions, last one improved"
        _told(app, leaf, "trained", why, 100)
    if kind == 7:
        leaf = replace(leaf, stage=Stage.ARCHIVED, stage_since=at(120))
        _told(app, leaf, "archived", "not routed to for 30 days here nor by others", 120)
    if kind == 8:
        leaf = replace(leaf, stage=Stage.DISSOLVED, stage_since=at(110))
        _told(app, leaf, "dissolved", "its cluster was not found in 3 full looks", 110)
    if kind == 9:
        store.change(leaf, "drifted", "", at(130))
    return leaf


def _rounds(app: App) -> None:
    for day, trained in zip(ROUND_DAYS, (7, 5, 0, 0), strict=True):
        row = app.forests.begin_round(at(day), "embed", {}, app.config.rules)
        took: dict[str, list[float]] = {"embed": [41.0, 600], "cluster": [12.0, 2_400]}
        took |= {"train": [190.0 * trained, trained]} if trained else {}
        due = [{"id": str(n), "purpose": "first", "reason": ""} for n in range(trained)]
        app.forests.advance_round(row.id, "done", {"due": due, "done": {}, "took": took})
        app.forests.finish_round(row.id, Instant(at(day) + 60 + 190 * trained))


def _proposal(app: App, leaves: list[Leaf]) -> None:
    """One leaf would be split, and waits for the owner's word."""
    parent = next(leaf for leaf in leaves if leaf.stage is Stage.MATURE)
    rng = np.random.default_rng(5)
    forest = app.forests.forest()
    children = tuple(
        replace(
            parent,
            id=leaf_id(forest.origin, forest.births + n),
            name=f"{parent.name}-{word}",
            level=3,
            parent=parent.id,
            lineage=(parent.id,),
            stage=Stage.SPROUT,
            sessions=parent.sessions // 2,
            centroid=unit(
                parent.centroid[None] + 0.01 * rng.normal(0, 1, (1, DIMENSIONS)).astype(np.float32)
            )[0],
        )
        for n, word in enumerate(("tasks", "streams"))
    )
    why = "2 parts of 100 sessions or more, cosine 0.71 to each other"
    change = Split(parent.id, children, why)
    app.forests.proposals.propose(change, f"waits for your word: {why}", at(120), 4)


def _table(app: App) -> None:
    embedded, forest = app.embeddings.snapshot(), app.forests.forest()
    assigned = app.forests.assignment()
    table = deploying.table_of(app, forest, embedded, assigned)
    measures = [
        {"name": name, "sessions": 1_000, "old": old, "new": new, "chance": 0.4, "worse": False}
        for name, old, new in (("coverage", 0.94, 0.95), ("agreement", 0.91, 0.93))
    ]
    note = Note(
        at=at(120),
        kind=Kind.ROUND,
        why="a round found it no worse than the one before",
        leaves=len(table),
        starters=Starters.GONE,
        accuracy=0.93,
        replayed=1_000,
        replay={"measures": measures},
    )
    app.tables.put(table, note)


def _peers(app: App, rows: Matrix, evil: str) -> None:
    """Leaves of one peer in each state; one has a hostile name and a hostile reason."""
    states = (*State, State.HEARD)
    theirs = []
    for number, state in enumerate(states):
        leaf = ForeignLeaf(
            origin=PEER,
            leaf=leaf_id(bytes.fromhex(PEER), number),
            version=3,
            stage=Stage.MATURE if number < 5 else Stage.SEED,
            sessions_log2=10,
            root=f"{number:02x}" * 32 if number < 5 else None,
            label="ab" * 32 if number < 5 else "",
            size_bytes=9_824_121 if number < 5 else 0,
            chassis="62c99a05acf4eb68",
            centroid=rows[number],
        )
        theirs.append((leaf, state))
    app.foreign.replace_origin(PEER, [leaf for leaf, _ in theirs])
    for leaf, state in theirs:
        if state is State.HEARD:
            continue
        name = {State.REFUSED: evil}.get(state, f"helm-{state}")
        detail = {
            "reason": f"over parent +0.412, over style control +0.193 {evil}",
            "over_parent": {"mean": 0.412, "low": 0.31, "high": 0.52},
            "over_style": {"mean": 0.193, "low": 0.11, "high": 0.28},
            "gate": 0.41,
        }
        known = app.foreign.get(PEER, leaf.leaf)
        assert known is not None
        app.foreign.settle(known, state, detail, name)


def _night(app: App, evil: str) -> None:
    now = app.now()
    report = {
        "date": "2026-07-05",
        "began": at(138),
        "ended": at(138) + 7_200,
        "minutes": 120.0,
        "left": [],
        "sessions": 64,
        "published": 1,
        "counts": {"grown": 1, "trained": 2},
        "put_off": {"you were at the machine": 12.0},
        "bytes_in": 19_600_000,
        "bytes_out": 2_100_000,
        "cpu_hours": 2.6,
        "energy_wh": 41.0,
        "grown": ["async-python: sprout -> mature"],
        "trained": ["unit-tests: better", f"{evil}: not better"],
    }
    book = night_book.Book(app.home, now)
    book.begin("2026-07-05", at(138))
    book.tell(report)
    events = told.EventFile(app.home, app.clock)
    for event, text in (
        ("embedded", "64 sessions embedded"),
        ("stage", "async-python: sprout -> mature (won 2 rounds on fresh sessions)"),
        ("judged", f"{evil}: not better"),
        ("deployed", "routing table with 8 entries"),
    ):
        events.tell(told.Told(event, text))
    (app.home / "capture_counts.json").write_bytes(
        msgspec.json.encode({"sources": {"claude-code": {"sessions": 812, "records": 5_104}}})
    )


def _routed(app: App) -> None:
    """Closing records as the endpoint leaves them: what the last sessions were routed with."""
    folder = app.home / "training_data"
    folder.mkdir(mode=0o700, exist_ok=True)
    rng = np.random.default_rng(3)
    lines = []
    for confidence in rng.normal(0.68, 0.13, 400).clip(0.05, 0.98).round(4).tolist():
        routing = {"leaf_id": "ab" * 16, "routing_confidence": confidence}
        routing["fallback_used"] = confidence < 0.45
        lines.append(msgspec.json.encode({"metadata": {"routing": routing}}))
    (folder / "training_2026-07-05.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def _shown(app: App) -> None:
    live = [leaf for leaf in app.forests.forest().live() if leaf.stage is Stage.MATURE][:3]
    app.remember_shown({x.id: Shown(quantised(x.centroid), x.sessions) for x in live})
