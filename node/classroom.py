"""Teaches one leaf: sessions split, a style control and an adapter trained, judged and packed.

All work is in the leaf's own folder under GROOVE_HOME/training and is named by the round, so the
same lesson of a killed round finds its checkpoints and goes on from them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from leaves.bundle import BundleError, Privacy, unpack
from leaves.lifecycle import Outcome
from leaves.model import Adapter, Evaluation, Forest, Instant, Leaf, LeafId, Verdict
from leaves.ports import (
    EvaluateJob,
    Evaluator,
    Example,
    Report,
    Schedule,
    Trained,
    Trainer,
    TrainJob,
    silent,
)
from leaves.store import ForestStore, Role
from leaves.training.chassis import Chassis
from leaves.training.evaluate import judge
from leaves.training.general import general_examples
from leaves.training.package import Origin, package
from leaves.training.preprocess import Prepared, preprocess, style_control

from .bundles import BundleStore
from .capture.scrubber import SCRUB_RULES_VERSION
from .capture.sessions import Session
from .capture.terms import TRAINABLE, LeftOut, Terms, why_left_out

WARM_RATE = 0.5  # of the learning rate, once a leaf has an adapter
NO_PAIRS = "preference step skipped: no A/C pairs"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What teaching one leaf came to. outcome is None if there was too little to judge by."""

    leaf: LeafId
    outcome: Outcome | None
    note: str
    used: Mapping[Role, frozenset[str]]
    folder: Path
    anew: bool = False  # not begun from the version before, for that had learned what it must not


class Classroom:
    """Trains and judges leaves on one chassis."""

    def __init__(
        self,
        folder: Path,
        store: ForestStore,
        bundles: BundleStore,
        chassis: Chassis,
        trainer: Trainer,
        control_trainer: Trainer,
        evaluator: Evaluator,
        schedule: Schedule,
        style_margin: float,
        left_out: frozenset[str] = frozenset(),
        restricted_outputs: bool = False,
    ) -> None:
        """left_out: sessions that nothing may be made of any more, whatever was made before.

        restricted_outputs: learn also from answers whose provider forbids it; the label says so.
        """
        self._folder = folder
        self._store = store
        self._bundles = bundles
        self._chassis = chassis
        self._trainer = trainer
        self._control_trainer = control_trainer
        self._evaluator = evaluator
        self._schedule = schedule
        self._style_margin = style_margin
        self._left_out = left_out
        self._restricted_outputs = restricted_outputs

    def teach(
        self,
        leaf: Leaf,
        forest: Forest,
        sessions: Mapping[str, Session],
        round_id: int,
        now: Instant,
        report: Report = silent,
    ) -> Lesson:
        """Train and judge a leaf. Run again after a kill it goes on from its checkpoints."""
        folder = self._folder / leaf.id / str(round_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        prepared, controls, left_out = self._prepare(leaf, forest, sessions, round_id)
        if prepared.too_few or not controls:
            note = _too_few(prepared, controls, left_out)
            return Lesson(leaf.id, None, note, {}, folder)
        schedule = replace(self._schedule, seed=round_id)
        anew = self._begins_anew(leaf)
        if leaf.adapter is not None and not anew:
            # A warm start at full rate spoils what the chassis knows.
            rate = self._schedule.learning_rate * WARM_RATE
            schedule = replace(schedule, learning_rate=rate)
        control_job = self._job(
            folder / "control", controls, schedule, self._earlier(leaf, folder, control=True)
        )
        leaf_job = self._job(folder / "leaf", prepared.train, schedule, self._earlier(leaf, folder))
        # Side by side, on half of the cores each: small matrices gain little from more threads.
        with ThreadPoolExecutor(2) as together:
            aside = together.submit(
                self._control_trainer.train, control_job, _as("train style control", report)
            )
            try:
                adapter = self._trainer.train(leaf_job, _as("train leaf", report))
                control = aside.result()
            except BaseException:  # Ctrl-C too must not wait for the other to finish
                self._control_trainer.stop()
                raise
        try:
            evaluation = self._judge(leaf, forest, prepared, control, adapter, folder, now, report)
        except BundleError as problem:  # our own adapter passes a peer's checks or is not used
            return Lesson(leaf.id, None, f"training went astray: {problem}", {}, folder)
        packed = self._pack(leaf, evaluation, control, adapter, len(prepared.train))
        note = NO_PAIRS + (f"; {left_out} sessions left out" if left_out else "")
        used = {
            Role.TRAIN: frozenset(example.session for example in prepared.train),
            Role.HELD_OUT: frozenset(example.session for example in prepared.held_out),
            Role.CONTROL: frozenset(example.session for example in controls),
        }
        return Lesson(leaf.id, Outcome(evaluation, packed, NO_PAIRS), note, used, folder, anew)

    def _begins_anew(self, leaf: Leaf) -> bool:
        """True if the version in force, or its control, learned from what is left out now."""
        used = self._store.used(leaf.id, Role.TRAIN) | self._store.used(leaf.id, Role.CONTROL)
        return not used.isdisjoint(self._left_out)

    def record(self, lesson: Lesson, round_id: int) -> None:
        """Write down which sessions were used, in the caller's transaction."""
        in_force = lesson.outcome and lesson.outcome.evaluation.verdict is Verdict.BETTER
        if lesson.anew and in_force:  # it replaces the version before, and owes it nothing
            self._store.unuse(lesson.leaf)
        for role, used in lesson.used.items():
            self._store.use(lesson.leaf, role, used, round_id)

    def clean(self, lesson: Lesson) -> None:
        """Remove the working folder, once the outcome is in the store."""
        shutil.rmtree(lesson.folder, ignore_errors=True)

    def _prepare(
        self, leaf: Leaf, forest: Forest, sessions: Mapping[str, Session], round_id: int
    ) -> tuple[Prepared, tuple[Example, ...], int]:
        """The leaf's two sides, the control's sessions, and how many members are left out."""
        assigned = self._store.assignment()
        branch = _branch(forest, leaf)
        inside, outside, left_out = [], [], 0
        for id_ in sorted(assigned.keys() & sessions.keys()):
            session = sessions[id_]
            member = assigned[id_] == leaf.id
            if self._why_left_out(session):
                left_out += member
            elif member:
                inside.append(_example(session))
            elif assigned[id_] not in branch:
                outside.append(_example(session))
        samples = self._schedule.steps * self._schedule.batch
        prepared = preprocess(
            inside,
            held_before=self._store.used(leaf.id, Role.HELD_OUT, round_id),
            trained_before=self._store.used(leaf.id, Role.TRAIN, round_id),
            samples=samples,
        )
        sources = {id_: session.source for id_, session in sessions.items()}
        return prepared, style_control(prepared.train, outside, sources), left_out

    def _why_left_out(self, session: Session) -> LeftOut | None:
        return why_left_out(
            session, restricted_outputs=self._restricted_outputs, flagged=self._left_out
        )

    def _terms(self) -> str:
        """The classes of the texts that an adapter may have learned from, for its label."""
        also = {Terms.RESTRICTED} if self._restricted_outputs else set[Terms]()
        return ", ".join(sorted(TRAINABLE | also))

    def _earlier(self, leaf: Leaf, folder: Path, *, control: bool = False) -> Path | None:
        """The adapter to start from: of the version in force, or of its control."""
        if leaf.adapter is None or leaf.adapter.chassis != self._chassis.tag8.hex():
            return None
        if self._begins_anew(leaf):
            return None
        blob = self._bundles.get(leaf.adapter.control if control else leaf.adapter.bundle)
        if blob is None:
            return None
        path = folder / ("earlier-control.safetensors" if control else "earlier.safetensors")
        path.write_bytes(unpack(blob).adapter)
        return path

    def _job(
        self,
        work: Path,
        examples: tuple[Example, ...],
        schedule: Schedule,
        warm_start: Path | None,
    ) -> TrainJob:
        work.mkdir(mode=0o700, exist_ok=True)
        return TrainJob(work, self._chassis.path, examples, schedule, warm_start)

    def _judge(
        self,
        leaf: Leaf,
        forest: Forest,
        prepared: Prepared,
        control: Trained,
        adapter: Trained,
        folder: Path,
        now: Instant,
        report: Report,
    ) -> Evaluation:
        adapters: list[tuple[str, Path | None]] = [
            ("parent", self._parent(leaf, forest, folder)),
            ("style", control.adapter),
            ("candidate", adapter.adapter),
        ]
        previous = folder / "earlier.safetensors"
        if previous.exists():
            adapters.append(("previous", previous))
        # One child for both: starting one and loading the chassis costs as much as 40 sessions.
        held_out = len(prepared.held_out)
        examples = prepared.held_out + general_examples()
        job = EvaluateJob(self._chassis.path, examples, tuple(adapters))
        measured = self._evaluator.losses(job, report).by_label
        losses = {label: values[:held_out] for label, values in measured.items()}
        general = {label: values[held_out:] for label, values in measured.items()}
        judged = partial(
            judge,
            groups=[example.group or example.session for example in prepared.held_out],
            style_margin=self._style_margin,
            at=now,
        )
        evaluation = judged(losses, general=general)
        if evaluation.verdict in (Verdict.HOLDS, Verdict.REGRESSED):
            # The version before stays in force, so it is the one that has to win the round.
            stays = judged({**losses, "candidate": losses["previous"]})
            evaluation = replace(evaluation, won=stays.won)
        return evaluation

    def _parent(self, leaf: Leaf, forest: Forest, folder: Path) -> Path | None:
        """The nearest trained leaf above; None is the chassis."""
        above = forest.leaves.get(leaf.parent) if leaf.parent else None
        while above is not None and above.adapter is None:
            above = forest.leaves.get(above.parent) if above.parent else None
        if above is None or above.adapter is None:
            return None
        blob = self._bundles.get(above.adapter.bundle)
        if blob is None:
            return None
        path = folder / "parent.safetensors"
        path.write_bytes(unpack(blob).adapter)
        return path

    def _pack(
        self, leaf: Leaf, evaluation: Evaluation, control: Trained, adapter: Trained, sessions: int
    ) -> Adapter:
        """Keep the adapter and its control as bundles; the label names the control."""
        origin = Origin(
            leaf=leaf.id,
            name=f"{leaf.name}-style-control",
            method="control",
            dtype=control.dtype,
            tokens=control.tokens,
            privacy=Privacy(1, sessions, None, SCRUB_RULES_VERSION),
            terms=self._terms(),
        )
        blob = package(control.adapter.read_bytes(), self._chassis, origin, None)
        control_root = self._bundles.put(blob)
        origin = replace(
            origin,
            name=leaf.name,
            method="sft",
            dtype=adapter.dtype,
            tokens=adapter.tokens,
            lineage=leaf.lineage,
        )
        packed = package(
            adapter.adapter.read_bytes(),
            self._chassis,
            origin,
            evaluation,
            control_root=control_root,
            control_bytes=len(blob),
        )
        return Adapter(
            bundle=self._bundles.put(packed),
            label=hashlib.sha256(unpack(packed).label).hexdigest(),
            control=control_root,
            chassis=self._chassis.tag8.hex(),
            rank=self._schedule.rank,
        )


def _as(phase: str, report: Report) -> Report:
    """The same progress under a name that tells two trainings apart."""
    return lambda progress: report(replace(progress, phase=phase))


def _example(session: Session) -> Example:
    """What is learned from a session: its ask, and its answer as the owner left it."""
    revised = session.edited and session.edited_from == session.completion
    answer = session.edited if revised else session.completion
    return Example(session.session_id, session.prompt, answer, session.group)


def _branch(forest: Forest, leaf: Leaf) -> set[LeafId]:
    """The leaf, and all that share its level 1 branch: what a style control must not see.

    Where all domains stand in one branch, the control is drawn from the other domains of it.
    """
    own = {leaf.id} | {other.id for other in forest if other.parent == leaf.id}
    if leaf.parent is None:
        return own
    branch = {other.id for other in forest if other.parent == leaf.parent}
    everything = {other.id for other in forest.live() if other.level > 1}
    return own if everything <= branch else own | branch | {leaf.parent}


def _too_few(prepared: Prepared, controls: tuple[Example, ...], left_out: int) -> str:
    more = f"; {left_out} more are left out, `data --stats` says why" if left_out else ""
    if not controls:
        return "no sessions outside its branch to train a style control on" + more
    return f"{len(prepared.held_out)} sessions to judge it by, 20 wanted" + more
