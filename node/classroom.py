"""Teaches one leaf in a round: the five steps in a row, and what came of them for the lifecycle.

All work is in the leaf's own folder under GROOVE_HOME/training and is named by the round, so the
same lesson of a killed round finds its notes and checkpoints and goes on from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leaves.bundle import BundleError
from leaves.lifecycle import Outcome, Rules, would_mature
from leaves.model import Forest, Instant, Leaf, LeafId, Stage, Vector, Verdict
from leaves.ports import (
    Answerer,
    BlobStore,
    Evaluator,
    Report,
    Schedule,
    Trainer,
    TrainJob,
    silent,
)
from leaves.store import ForestStore, Role
from leaves.training.chassis import Chassis
from leaves.training.margin import MARGINS

from .capture.sessions import Session
from .judging import DPO, Judged, Packed, evaluate, pack, wants_second
from .preferring import Preferred, Skipped, prefer
from .teaching import Desk, Material, Pupil, prepare, sft, trainings

if TYPE_CHECKING:
    from .examining import Gate

TrainAll = Callable[[Sequence[TrainJob], Report], object]  # side by side


@dataclass(frozen=True, slots=True)
class Lesson:
    """What teaching one leaf came to. outcome is None if there was too little to judge by."""

    leaf: LeafId
    outcome: Outcome | None
    note: str
    used: Mapping[Role, frozenset[str]]
    folder: Path
    anew: bool = False  # not begun from the version before, for that had learned what it must not
    waits: bool = False  # for more sessions to judge it by: nothing was trained


class Classroom:
    """Trains and judges leaves on one chassis."""

    def __init__(
        self,
        folder: Path,
        store: ForestStore,
        bundles: BlobStore,
        chassis: Chassis,
        trainer: Trainer,
        control_trainer: Trainer,
        evaluator: Evaluator,
        schedule: Schedule,
        style_margin: float,
        left_out: frozenset[str] = frozenset(),
        restricted_outputs: bool = False,
        *,
        rules: Rules | None = None,
        control_pairs: int = 0,
        gate: Callable[[Report], Gate] | None = None,
        vectors: Callable[[], Mapping[str, Vector]] | None = None,
        answerer: Answerer | None = None,
    ) -> None:
        """left_out: sessions that nothing may be made of any more, whatever was made before.

        restricted_outputs: learn also from answers whose provider forbids it; the label says so.
        control_pairs: how many pairs of style controls are to be measured, one on the first
        training of each leaf, before the margin over a control is taken as known.
        gate: looks into adapters for what they give away; without one the label says: not measured.
        vectors: by session, to find preference pairs; without them asks must be equal.
        answerer: has asks answered whose right answer is known.
        """
        self._folder = folder
        self._rules = rules or Rules()
        self.desk = Desk(
            store,
            bundles,
            chassis,
            trainer,
            control_trainer,
            evaluator,
            schedule,
            style_margin,
            left_out,
            restricted_outputs,
            control_pairs,
            folder / MARGINS,
            gate,
            vectors,
            answerer,
        )

    def teach(
        self,
        leaf: Leaf,
        forest: Forest,
        sessions: Mapping[str, Session],
        round_id: int,
        now: Instant,
        report: Report = silent,
        begins: Callable[[], None] = lambda: None,
    ) -> Lesson:
        """Train and judge a leaf. Run again after a kill it goes on from its checkpoints.

        begins: called before anything is trained, and not where there is too little to judge by.
        """
        pupil = self.pupil(leaf, forest, sessions, round_id, now, str(round_id))
        material = prepare(self.desk, pupil)
        if not material.teachable:
            return Lesson(leaf.id, None, too_few(material), {}, pupil.folder, waits=True)
        begins()
        second = wants_second(self.desk, pupil, material)
        try:
            taught = sft(self.desk, pupil, material, second=second, report=report)
            judged = evaluate(self.desk, pupil, material, taught, None, report)
            why_not = self._why_not_preferred(leaf, judged)
            preferred: Preferred | Skipped = Skipped(why_not)
            if not why_not:
                preferred = prefer(self.desk, pupil, material, taught, report)
            if isinstance(preferred, Preferred):
                judged = evaluate(self.desk, pupil, material, taught, preferred, report)
            packed = pack(self.desk, pupil, material, taught, judged, report)
        except BundleError as problem:  # our own adapter passes a peer's checks or is not used
            return Lesson(leaf.id, None, f"training went astray: {problem}", {}, pupil.folder)
        return lesson(pupil, material, preferred, judged, packed)

    def ahead(
        self,
        leaves: Sequence[Leaf],
        forest: Forest,
        sessions: Mapping[str, Session],
        round_id: int,
        now: Instant,
        train_all: TrainAll,
        report: Report = silent,
    ) -> None:
        """Train several leaves and their style controls side by side.

        `teach` then finds them done, for it asks for the same trainings in the same folders. Where
        it asks for another, such as of a child of a leaf that was judged meanwhile, it trains anew.
        """
        jobs: list[TrainJob] = []
        for leaf in leaves:
            pupil = self.pupil(leaf, forest, sessions, round_id, now, str(round_id))
            material = prepare(self.desk, pupil)
            if material.teachable:
                jobs.extend(trainings(self.desk, pupil, material)[:2])
        train_all(jobs, report)

    def pupil(
        self,
        leaf: Leaf,
        forest: Forest,
        sessions: Mapping[str, Session],
        round_id: int,
        now: Instant,
        name: str,
    ) -> Pupil:
        """A leaf at one moment, with a working folder of this name."""
        folder = self._folder / leaf.id / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Pupil(leaf, forest, sessions, round_id, now, folder)

    def record(self, lesson: Lesson, round_id: int) -> None:
        """Write down which sessions were used, in the caller's transaction."""
        store = self.desk.store
        in_force = lesson.outcome and lesson.outcome.evaluation.verdict is Verdict.BETTER
        if lesson.anew and in_force:  # it replaces the version before, and owes it nothing
            store.unuse(lesson.leaf)
        for role, used in lesson.used.items():
            store.use(lesson.leaf, role, used, round_id)

    def clean(self, lesson: Lesson) -> None:
        """Remove the working folder, once the outcome is in the store."""
        shutil.rmtree(lesson.folder, ignore_errors=True)
        self.drop_unrecorded([lesson.leaf])

    def drop_unrecorded(self, leaves: Iterable[LeafId]) -> None:
        """Remove replaced versions of which it is not on record any more what they learned.

        They learned from what nothing may be made of, so nothing is lost with them; with a lineage
        of each version instead, every question of what a leaf has used would ask which version is
        meant. Follows from the store alone: done again, it ends what a kill has left.
        """
        for leaf in leaves:
            for address in sorted(self.desk.store.unrecorded(leaf)):
                self.desk.bundles.delete(address)

    def _why_not_preferred(self, leaf: Leaf, judged: Judged) -> str:
        """Why the preference step is not due; empty if it is."""
        evaluation = judged.evaluation
        if leaf.stage is Stage.MATURE or would_mature(leaf, evaluation, self._rules):
            return ""
        return "preference step not due: it comes with maturity"


def lesson(
    pupil: Pupil,
    material: Material,
    preferred: Preferred | Skipped,
    judged: Judged,
    packed: Packed,
) -> Lesson:
    """Put together what the steps came to, as the lifecycle and the store are to have it."""
    said = [preferred.told()]
    if left_out := material.split.left_out:
        said.append(f"{left_out} sessions left out")
    if packed.blocked:
        said.append(f"stays at home: {packed.blocked}")
    used = material.used()
    if isinstance(preferred, Preferred):
        used[Role.HELD_OUT] |= set(preferred.held_out)  # they have judged, whether it won or not
        if judged.method == DPO:
            used[Role.TRAIN] |= set(preferred.trained_on)
    outcome = Outcome(judged.evaluation, packed.adapter, preferred.told(), judged.method)
    anew = material.split.start.anew
    return Lesson(pupil.leaf.id, outcome, "; ".join(said), used, pupil.folder, anew)


def too_few(material: Material) -> str:
    """Why a leaf cannot be taught on its split."""
    left_out = material.split.left_out
    more = f"; {left_out} more are left out, `data --stats` says why" if left_out else ""
    if not material.controls:
        return "no sessions outside its branch to train a style control on" + more
    count = len(material.held_out)
    lacking = max(20 - count, 1)
    newer = " newer than its last training" if material.split.trainings else ""
    return f"{count} sessions to judge it by, 20 wanted: {lacking} more{newer} are missing" + more
