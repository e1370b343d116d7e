"""What a round works with: its tools wired to one home, and its failures told to the owner.

`engine.Round` knows stores and ports alone; here they are the home's own. Nothing that loads a
model is imported before a round needs it: every command imports this module.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from leaves.model import Instant
from leaves.ports import Report, Schedule, Trainer, silent
from leaves.store import RoundRow

from . import registry, screening, set_aside, show, usage
from .errors import OwnerError
from .home import groove_cache, private_dir
from .told import Tell, Told

if TYPE_CHECKING:
    from leaves.rules import Rules

    from .app import App
    from .capture.sessions import Session
    from .classroom import Classroom
    from .config import RoundsConfig
    from .engine import Round
    from .planning import Plan
    from .spreading import Spread
    from .tables import Deployed


CANARIES = (
    "before a first leaf is packed, the recipe is tried once on canaries on this machine, which "
    "takes about as long as a training"
)


class TrainingEndedError(OwnerError):
    """The training process ended before its work was done."""


class UnscannedError(OwnerError):
    """The second scan cannot run, and without it nothing is trained."""


def run(app: App, tell: Tell, report: Report = silent) -> RoundRow:
    """Run one round, or take up the one that was killed."""
    app.require("capture")
    from leaves.training.child import TrainingError

    from . import spreading

    with (
        app.lock("round", "a round is running already"),
        spreading.spread(app.config.executor) as spread,
    ):
        try:
            app.forests.used_by = usage.by_others(app)
            return _round(app, app.telling(tell), report, spread=spread).run(app.now())
        except TrainingError as problem:
            raise TrainingEndedError(
                f"the training process ended: {problem}",
                unchanged="What was reached is kept; no leaf was changed by it.",
                next_step="`groove-node round` goes on from there.",
            ) from None


def round_due(
    last: Instant | None, now: Instant, new_sessions: int, rounds: RoundsConfig
) -> str | None:
    """Why a round is due; None if it is not.

    last: when the last finished round began; None if there was none. A clock that was set back
    does not put a round off for ever.
    """
    if last is None:
        return "there was none yet" if new_sessions else None
    if new_sessions >= rounds.sessions:
        return f"{new_sessions:,} new sessions, {rounds.sessions:,} wanted"
    hours = (now - last) / 3600
    if hours >= rounds.every_h:
        return f"the last one began {hours:.0f} h ago, and is wanted every {rounds.every_h:g} h"
    if hours < 0:
        return "the last one began in what is the future now"
    return None


def due(app: App) -> str | None:
    """Why a round is due in this home; None if it is not. Reads the sessions of the corpus."""
    app.require("capture")
    if app.forests.open_round() is not None:
        return "one was begun and is not finished"
    last = app.forests.last_round()
    known = int(last.state.get("sessions", 0)) if last is not None else 0
    new = max(0, len(app.sessions().keys() - screening.read(app.home).hits.keys()) - known)
    return round_due(last.started if last else None, app.now(), new, app.config.rounds)


def plan(app: App, report: Report = silent) -> Plan:
    """What a round would do with what is embedded already. Changes nothing, and scans nothing."""
    app.require("capture")
    planned = _round(app, lambda told: None, report, scan=False).plan(app.now())
    if app.allows("train"):
        if not any((groove_cache() / "canaries").glob("*.json")):
            planned = replace(planned, note="; ".join(filter(None, (planned.note, CANARIES))))
        return planned
    why = f"{show.WAITS_FOR_CONSENT} ({show.GRANT_TRAIN})"
    trainings = tuple((what, leaf, why) for what, leaf, _ in planned.trainings)
    expected = tuple(step for step in planned.expected if step.step != "train")
    return replace(planned, trainings=trainings, expected=expected)


def _round(
    app: App, tell: Tell, report: Report, *, scan: bool = True, spread: Spread | None = None
) -> Round:
    from leaves.discover import default_clusterer

    from .engine import Round, Tools

    untrained = "" if app.allows("train") else "the scope `train` is not granted"
    sessions = list(app.sessions().values())
    if scan and (not untrained or app.allows("publish")):
        sessions, unscanned = _screened(app, sessions, tell, report)
        untrained = untrained or unscanned
    tools = Tools(
        folder=private_dir(app.home / "rounds"),
        sessions=lambda: sessions,
        embeddings=app.embeddings,
        store=app.forests,
        encoder=partial(spread.encoder, app) if spread else app.encoder,
        clusterer=app.adapters.clusterer(spread.clusterer if spread else default_clusterer),
        classroom=None if untrained else lambda rules: classroom(app, spread, rules),
        deploy=lambda: _deploy(app, tell, report),
        now=app.now,
        untrained=untrained,
        chassis=lambda: app.chassis.tag8.hex(),
        train_all=spread.train_all if spread else None,
        seconds=time.monotonic,
    )
    return Round(tools, app.config.rules, tell, report)


def _deploy(app: App, tell: Tell, report: Report) -> Deployed:
    """A routing table for here, and for others what may be published."""
    deployed = app.deploy_anew(tell, report)
    usage.count(app)
    registry.push_after_round(app, tell)
    return deployed


def clean_sessions(app: App, tell: Tell, report: Report = silent) -> dict[str, Session]:
    """The sessions that may be trained on, by id; raises UnscannedError if nobody can tell."""
    sessions, unscanned = _screened(app, list(app.sessions().values()), tell, report)
    if unscanned:
        raise UnscannedError(
            f"the second scan cannot run: {unscanned}",
            unchanged="Nothing was trained.",
            next_step="`groove-node doctor` says what is missing.",
        )
    return {session.session_id: session for session in sessions}


def _screened(
    app: App, sessions: list[Session], tell: Tell, report: Report
) -> tuple[list[Session], str]:
    """The sessions that passed the second scan; and why nothing may be trained, if so."""
    from .capture.second_scan import SecondScanError

    try:
        with app.adapters.second_scan(private_dir(groove_cache() / "kingfisher")) as scan:
            screened = screening.screened(app.home, sessions, scan, report)
    except SecondScanError as problem:
        tell(Told("unscanned", f"second scan: {problem}; nothing is trained"))
        return sessions, str(problem)
    if screened.hits:
        tell(Told("left out", screened.told(), {"sessions": len(screened.hits)}))
    return list(screened.sessions), ""


def classroom(app: App, spread: Spread | None = None, rules: Rules | None = None) -> Classroom:
    """The home's classroom: trains leaves and their style controls, half of the cores each.

    rules: those that the round began with; without a round, those of now.
    """
    from .classroom import Classroom

    set_aside.remember(app)
    training = app.config.training

    def trainer() -> Trainer:
        if spread is not None:
            return spread.trainer()
        return app.adapters.trainer(max(1, app.threads() // 2))

    schedule = Schedule(steps=training.steps, learning_rate=training.learning_rate)
    return Classroom(
        private_dir(app.home / "training"),
        app.forests,
        app.bundles,
        app.chassis,
        trainer(),
        trainer(),
        app.evaluator,
        schedule,
        training.style_margin,
        frozenset(screening.read(app.home).hits),
        training.restricted_outputs,
        rules=rules or app.config.rules,
        control_pairs=training.control_pairs,
        gate=partial(app.adapters.gate, app, schedule),
        vectors=app.embeddings.vectors,
        answerer=app.evaluator,
    )
