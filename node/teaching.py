"""The five steps of a training: preprocess, sft, dpo, evaluate, package.

Each is a function of a leaf at one moment and of what the steps before it came to. It leaves a note
in the working folder and, done again on the same, reads the note instead. A round does all five in
a row; the owner can do them one by one. Nothing here changes the forest.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from leaves.model import DAY_S, Forest, Instant, Leaf, LeafId, Vector
from leaves.ports import (
    Answerer,
    BlobStore,
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
from leaves.training.preprocess import Dropped, preprocess, style_control
from leaves.training.temper import temper

from .capture.sessions import Session
from .capture.terms import LeftOut, why_left_out
from .notes import Notes, Step
from .starts import Begun, Start, Starts

if TYPE_CHECKING:
    from .examining import Gate

SECOND_SEED = 1 << 20  # from a control's seed to that of the one it is compared with


@dataclass(frozen=True)
class Desk:
    """What every step works with."""

    store: ForestStore
    bundles: BlobStore
    chassis: Chassis
    trainer: Trainer
    control_trainer: Trainer
    evaluator: Evaluator
    schedule: Schedule
    style_margin: float  # in nats per token, before pairs of controls were measured
    left_out: frozenset[str] = frozenset()
    restricted_outputs: bool = False
    control_pairs: int = 0  # wanted of each recipe, to know how much controls differ by themselves
    margins: Path | None = None  # where their differences are kept
    gate: Callable[[Report], Gate] | None = None  # looks into adapters for the label
    vectors: Callable[[], Mapping[str, Vector]] | None = None  # find near-equal asks for pairs
    answerer: Answerer | None = None  # has asks answered whose right answer is known

    @cached_property
    def starts(self) -> Starts:
        return Starts(self.store, self.bundles, self.chassis, self.left_out)


@dataclass(frozen=True, slots=True)
class Pupil:
    """One leaf at one moment, and where the work on it is kept."""

    leaf: Leaf
    forest: Forest
    sessions: Mapping[str, Session] = field(repr=False)
    round_id: int  # seeds the training
    now: Instant
    folder: Path

    @property
    def notes(self) -> Notes:
        return Notes(self.folder)


@dataclass(frozen=True, slots=True)
class Split:
    """The note of `preprocess`: who trains, who judges, who is in the control, by session id."""

    round_id: int
    trainings: int  # of the leaf so far: after another one this split is out of date
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    controls: tuple[str, ...]
    too_few: bool
    left_out: int  # members that may not be trained on, by their terms or the second scan
    dropped: Dropped
    start: Start


@dataclass(frozen=True, slots=True)
class Material:
    """A split with its texts. `seal` names it to the later steps."""

    split: Split
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    controls: tuple[Example, ...]
    seal: str

    @property
    def teachable(self) -> bool:
        return not self.split.too_few and bool(self.controls)

    def used(self) -> dict[Role, frozenset[str]]:
        """What is to be written down of which session was used for what."""
        return {
            Role.TRAIN: frozenset(self.split.train),
            Role.HELD_OUT: frozenset(self.split.held_out),
            Role.CONTROL: frozenset(self.split.controls),
        }


@dataclass(frozen=True, slots=True)
class Taught:
    """What `sft` came to: the leaf's adapter, its style control, and a second one if asked for."""

    adapter: Trained
    control: Trained
    second: Trained | None
    schedule: Schedule
    begun: Begun


class MaterialGoneError(Exception):
    """A session of a split is not there any more, or may not be used any more."""


def prepare(desk: Desk, pupil: Pupil) -> Material:
    """Step 1: which sessions train the leaf, which judge it, which are in its style control."""
    leaf, store = pupil.leaf, desk.store
    start = desk.starts.of(leaf, pupil.forest)
    inside, outside, left_out = _members(desk, pupil)
    own = start.begun is Begun.OWN
    before = pupil.round_id
    judged = store.used(leaf.id, Role.HELD_OUT, before)
    # A member that was once in the control has told it something: it may train, and not judge.
    learned = desk.starts.learned(start, Role.TRAIN, Role.CONTROL, before_round=before)
    learned |= store.used(leaf.id, Role.TRAIN, before) | store.used(leaf.id, Role.CONTROL, before)
    prepared = preprocess(
        inside,
        held_before=judged if own else (),
        trained_before=learned,
        may_judge=() if own else judged | desk.starts.learned(start, Role.HELD_OUT),
        days=days_of(pupil.sessions),
        samples=desk.schedule.steps * desk.schedule.batch,
    )
    sources = {id_: session.source for id_, session in pupil.sessions.items()}
    controls = style_control(prepared.train, outside, sources)
    split = Split(
        pupil.round_id,
        leaf.trainings,
        _ids(prepared.train),
        _ids(prepared.held_out),
        _ids(controls),
        prepared.too_few,
        left_out,
        prepared.dropped,
        start,
    )
    seal = pupil.notes.write(Step.PREPROCESS, "", split)
    return Material(split, prepared.train, prepared.held_out, controls, seal)


def prepared(desk: Desk, pupil: Pupil) -> Material | None:
    """What `prepare` came to before, read from its note; None if it was not done.

    Raises MaterialGoneError if a session of it may not be used any more.
    """
    split = pupil.notes.read(Step.PREPROCESS, None, Split)
    if split is None:
        return None
    sides = (split.train, split.held_out, split.controls)
    for id_ in (id_ for side in sides for id_ in side):
        session = pupil.sessions.get(id_)
        if session is None or left_out_because(desk, session):
            raise MaterialGoneError(id_)
    train, held_out, controls = (
        tuple(example_of(pupil.sessions[id_]) for id_ in side) for side in sides
    )
    return Material(split, train, held_out, controls, pupil.notes.seal(Step.PREPROCESS))


def sft(
    desk: Desk, pupil: Pupil, material: Material, *, second: bool, report: Report = silent
) -> Taught:
    """Step 2: train the leaf's adapter and its style control side by side.

    The leaf's is then made weaker if it spoils other text. second: also a control of another seed,
    which says how much two controls differ by themselves.
    Killed and run again it goes on from the checkpoints.
    """
    start = material.split.start
    leaf_job, control_job, second_job = trainings(desk, pupil, material)
    given_up = threading.Event()

    def aside() -> tuple[Trained, Trained | None]:
        control = desk.control_trainer.train(control_job, _as("train style control", report))
        if not second or given_up.is_set():
            return control, None
        return control, desk.control_trainer.train(second_job, _as("train second control", report))

    # Side by side, on half of the cores each: small matrices gain little from more threads.
    with ThreadPoolExecutor(2) as together:
        controls = together.submit(aside)
        try:
            adapter = desk.trainer.train(leaf_job, _as("train leaf", report))
            control, compared = controls.result()
        except BaseException:  # Ctrl-C too must not wait for the other to finish
            given_up.set()
            desk.control_trainer.stop()
            raise
    adapter = temper(adapter, desk.chassis, desk.evaluator, report)
    taught = Taught(adapter, control, compared, leaf_job.schedule, start.begun)
    pupil.notes.write(Step.SFT, material.seal, taught)
    return taught


def trainings(desk: Desk, pupil: Pupil, material: Material) -> tuple[TrainJob, TrainJob, TrainJob]:
    """What `sft` has trained: the leaf, its style control, and a control of another seed."""
    start, folder = material.split.start, pupil.folder
    schedule = replace(
        desk.schedule,
        seed=material.split.round_id,
        learning_rate=desk.schedule.learning_rate * start.rate,
    )
    from_leaf = desk.starts.file(start, schedule, folder / "start.safetensors", control=False)
    from_control = desk.starts.file(
        start, schedule, folder / "start-control.safetensors", control=True
    )
    leaf_job = _job(desk, folder / "leaf", material.train, schedule, from_leaf)
    control_job = _job(desk, folder / "control", material.controls, schedule, from_control)
    other = replace(schedule, seed=schedule.seed + SECOND_SEED)
    second_job = _job(desk, folder / "control-2", material.controls, other, from_control)
    return leaf_job, control_job, second_job


def taught_before(pupil: Pupil, material: Material) -> Taught | None:
    """What `sft` came to on this split; None if it was not done, or an adapter is damaged."""
    taught = pupil.notes.read(Step.SFT, material.seal, Taught)
    if taught is None or not (_intact(taught.adapter) and _intact(taught.control)):
        return None
    return taught


def _intact(trained: Trained) -> bool:
    try:
        return hashlib.sha256(trained.adapter.read_bytes()).hexdigest() == trained.sha256
    except OSError:
        return False


def example_of(session: Session) -> Example:
    """What is learned from a session: its ask, and its answer as the owner left it."""
    revised = session.edited and session.edited_from == session.completion
    answer = session.edited if revised else session.completion
    return Example(session.session_id, session.prompt, answer, session.group, session.check)


def days_of(sessions: Mapping[str, Session]) -> dict[str, int]:
    """The day of each session's ask."""
    return {id_: int(session.opened) // DAY_S for id_, session in sessions.items()}


def branch(forest: Forest, leaf: Leaf) -> set[LeafId]:
    """The leaf, and all that share its level 1 branch: what a style control must not see.

    Where all domains stand in one branch, the control is drawn from the other domains of it.
    """
    own = {leaf.id} | {other.id for other in forest if other.parent == leaf.id}
    if leaf.parent is None:
        return own
    siblings = {other.id for other in forest if other.parent == leaf.parent}
    everything = {other.id for other in forest.live() if other.level > 1}
    return own if everything <= siblings else own | siblings | {leaf.parent}


def _members(desk: Desk, pupil: Pupil) -> tuple[list[Example], list[Example], int]:
    """The leaf's own sessions, those outside its branch, and how many of its own are left out."""
    assigned = desk.store.assignment()
    near = branch(pupil.forest, pupil.leaf)
    inside: list[Example] = []
    outside: list[Example] = []
    left_out = 0
    for id_ in sorted(assigned.keys() & pupil.sessions.keys()):
        session = pupil.sessions[id_]
        member = assigned[id_] == pupil.leaf.id
        if left_out_because(desk, session):
            left_out += member
        elif member:
            inside.append(example_of(session))
        elif assigned[id_] not in near:
            outside.append(example_of(session))
    return inside, outside, left_out


def left_out_because(desk: Desk, session: Session) -> LeftOut | None:
    return why_left_out(session, restricted_outputs=desk.restricted_outputs, flagged=desk.left_out)


def _job(
    desk: Desk,
    work: Path,
    examples: tuple[Example, ...],
    schedule: Schedule,
    warm_start: Path | None,
) -> TrainJob:
    work.mkdir(mode=0o700, exist_ok=True)
    return TrainJob(work, desk.chassis.path, examples, schedule, warm_start)


def _ids(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(example.session for example in examples)


def _as(phase: str, report: Report) -> Report:
    """The same progress under a name that tells two trainings apart."""
    return lambda progress: report(replace(progress, phase=phase))
