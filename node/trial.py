"""A peer's leaf on trial: what it is worth on this node's own sessions.

The peer chose the style control that its leaf has to beat, and nothing can attest that it is an
honest one: it may have learned next to nothing, or been spoilt. So the leaf has to beat the best of
all that is here to compare it with, the peer's control, an own one and the bare chassis, whichever
has the lowest mean loss on these sessions. A peer's control can then only make the trial harder.
(The lowest loss of each single session would be a rival that nobody has, better by luck alone.)

A node that never trained has no control of its own. It refuses a leaf whose control is no better
than the bare chassis; one that is a little better it cannot tell from an honest one, and the margin
over it is then all that a leaf has to beat which learned the style alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gossip.downloads import FetchError
from leaves.model import LeafId, Verdict
from leaves.ports import EvaluateJob, Example, Schedule
from leaves.store import Role
from leaves.training.alpha import confidence_at
from leaves.training.evaluate import HELD_OUT_MIN, judge
from leaves.training.general import general_examples
from leaves.training.margin import MARGINS, Calibration, recipe
from leaves.training.preprocess import stable
from router.calibrate import FALSE_REJECTS

from .foreign import LOOKS, TRUSTED, Known, State
from .measuring import measured
from .show import evaluation_line
from .usage import ATTESTATIONS, attestations

if TYPE_CHECKING:
    from .app import App
    from .mesh import ForeignLeaf

log = logging.getLogger(__name__)

PARENT, CANDIDATE, THEIRS, OURS = "parent", "candidate", "style", "own style"


@dataclass(frozen=True, slots=True)
class OwnControl:
    """The style control of an own leaf, and which of the sessions of a trial it learned from."""

    bundle: str
    learned: frozenset[str]


def tried(app: App, known: Known, control_root: str) -> tuple[State, dict[str, Any]]:
    """Judge a leaf whose bundle and control are here; how far it comes by that, and the figures.

    Raises FetchError if a bundle went meanwhile, BundleError if a loss is no number.
    """
    rows = app.region(known.leaf)
    ours = own_control(app, known.leaf, rows)
    if ours is not None and len(rows) - len(ours.learned) < HELD_OUT_MIN:
        ours = None
    examples = _examples(app, rows, ours)
    if len(examples) < HELD_OUT_MIN:
        return _on_trust(app, known, rows, len(examples))
    losses, general = _measured(app, known, control_root, ours, examples)
    rival = strongest(losses)
    if rival == PARENT and OURS not in losses:
        worse = fmean(losses[THEIRS]) - fmean(losses[PARENT])
        return State.REFUSED, {
            "reason": f"its style control is no control: {worse:+.3f} nats per token over the bare "
            f"chassis on {len(examples)} own sessions, and no own one is here"
        }
    looks = known.detail.get(LOOKS, 0) + 1
    evaluation = judge(
        {PARENT: losses[PARENT], CANDIDATE: losses[CANDIDATE], "style": losses[rival]},
        groups=[example.group or example.session for example in examples],
        general=general,
        style_margin=margin(app),
        confidence=confidence_at(looks),
        at=app.now(),
        attempt=looks,
    )
    vectors = app.embeddings.vectors()
    scores = [float(vectors[id_] @ known.leaf.centroid) for id_ in rows]
    return State.ACCEPTED if evaluation.won else State.REFUSED, {
        "gate": float(np.quantile(scores, FALSE_REJECTS)),
        TRUSTED: 0,
        "sessions": len(examples),
        LOOKS: looks if evaluation.verdict is not Verdict.TOO_FEW else looks - 1,
        "verdict": evaluation.verdict.value,
        "over_parent": msgspec.to_builtins(evaluation.over_parent),
        "over_style": msgspec.to_builtins(evaluation.over_style),
        "style_control": {THEIRS: "the peer's", OURS: "own", PARENT: "the chassis"}[rival],
        "general_rise": evaluation.general_rise,
        "margin": evaluation.margin,
        "reason": evaluation_line(evaluation),
    }


def _on_trust(
    app: App, known: Known, rows: Sequence[str], sessions: int
) -> tuple[State, dict[str, Any]]:
    """A leaf that cannot be judged here: routed to if enough others accepted what it answered."""
    few = f"{sessions} own sessions to judge it by"
    count = attestations(app, known.leaf.origin, known.leaf.leaf)
    if count < ATTESTATIONS:
        return State.WAITING, {"reason": f"{few}; {count} of {ATTESTATIONS} origins vouch for it"}
    vectors = app.embeddings.vectors()
    scores = [float(vectors[id_] @ known.leaf.centroid) for id_ in rows]
    floor = app.config.mesh.interest_cosine
    return State.ACCEPTED, {
        "gate": max(floor, float(np.quantile(scores, FALSE_REJECTS))) if scores else floor,
        TRUSTED: count,
        "sessions": sessions,
        "reason": f"{few}; {count} origins accepted its answers",
    }


def strongest(losses: Mapping[str, Sequence[float]]) -> str:
    """The label that stands for style: of parent and controls that of the lowest mean loss."""
    return min((PARENT, THEIRS, OURS), key=lambda label: fmean(losses.get(label, (math.inf,))))


def own_control(app: App, leaf: ForeignLeaf, rows: Sequence[str]) -> OwnControl | None:
    """The own style control that learned the fewest of the sessions in a region; None without one.

    A control learns from outside its leaf's branch, so that of a leaf of the same subject learned
    none of them. Of those that are equal in this, the leaf's that is nearest.
    """
    chassis, region = app.chassis.tag8.hex(), set(rows)
    choices: list[tuple[int, float, LeafId, OwnControl]] = []
    for own in app.forests.forest().live():
        adapter = own.adapter
        if adapter is None or adapter.chassis != chassis or not app.bundles.path(adapter.control):
            continue
        learned = frozenset(app.forests.used(own.id, Role.CONTROL) & region)
        away = 1.0 - float(own.centroid @ leaf.centroid)
        choices.append((len(learned), away, own.id, OwnControl(adapter.control, learned)))
    return min(choices, key=lambda choice: choice[:3])[3] if choices else None


def margin(app: App) -> float:
    """By how much the style control has to be beaten: as configured, or more if pairs of controls
    that were measured here differ by more. Less is for own leaves, whose recipe was measured."""
    training = app.config.training
    schedule = Schedule(steps=training.steps, learning_rate=training.learning_rate)
    name = recipe(app.chassis.tag8.hex(), schedule)
    try:
        document = (app.home / "training" / MARGINS).read_bytes()
        known = msgspec.json.decode(document, type=dict[str, dict[str, float]])
    except FileNotFoundError:
        known = {}
    except (ValueError, RecursionError) as problem:  # the next round measures them again
        log.warning("margins cannot be read why=%s", type(problem).__name__)
        known = {}
    calibration = Calibration()
    for difference in known.get(name, {}).values():
        calibration = calibration.with_difference(name, difference)
    return max(training.style_margin, calibration.margin(name, start=training.style_margin))


def _examples(app: App, rows: Sequence[str], ours: OwnControl | None) -> tuple[Example, ...]:
    """Own sessions to judge by: none that an own control has learned from."""
    sessions = app.sessions()
    free = (id_ for id_ in rows if ours is None or id_ not in ours.learned)
    chosen = sorted(free, key=stable)[: app.config.mesh.evaluate_sessions]
    return tuple(
        Example(s.session_id, s.prompt, s.completion, s.group)
        for s in (sessions[id_] for id_ in chosen)
        if s.completion
    )


def _measured(
    app: App,
    known: Known,
    control_root: str,
    ours: OwnControl | None,
    examples: tuple[Example, ...],
) -> tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]]:
    """Losses on own sessions, and those of the chassis and of the leaf on general text."""
    roots = [known.leaf.root, control_root, *([ours.bundle] if ours else [])]
    with app.adapter_files(roots) as (leaf, theirs, *others):
        if leaf is None or theirs is None:  # it would be judged as the bare chassis
            raise FetchError("the bundle is gone")
        bare = ((PARENT, None), (CANDIDATE, leaf))
        controls = ((THEIRS, theirs), *((OURS, path) for path in others if path))
        path = app.chassis.path
        losses = measured(app.evaluator, EvaluateJob(path, examples, bare + controls))
        general = measured(app.evaluator, EvaluateJob(path, general_examples(), bare))
    return losses, general
