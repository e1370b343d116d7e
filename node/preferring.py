"""The third step of a training: from answers that were liked and answers that were not.

It goes on from the adapter of the second step, and is judged on pairs of its own. Without pairs, or
with too few to be judged by, it says so and the adapter of the second step stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from leaves import looks
from leaves.model import Leaf, Looking, PreferenceEvaluation
from leaves.ports import (
    EvaluateJob,
    Example,
    Preference,
    PreferenceJob,
    Report,
    Schedule,
    Trained,
    silent,
)
from leaves.store import Role
from leaves.training.alpha import confidence_at
from leaves.training.preference import (
    BETA,
    PreparedPairs,
    answers,
    judge_preferences,
    paired,
    preference_schedule,
    split_pairs,
)

from .measuring import measured
from .notes import Step
from .preferences import leaf_preferences, used_by
from .teaching import Desk, Material, Pupil, Taught, days_of, example_of

NO_PAIRS = "preference step skipped: no A/C pairs"


@dataclass(frozen=True, slots=True)
class Skipped:
    """There was no preference step. why: in words; empty where nothing stands against one."""

    why: str

    def told(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Preferred:
    """What `prefer` came to. trained_on, held_out: sessions whose answers it used, either side."""

    trained: Trained
    evaluation: PreferenceEvaluation
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    pairs: int  # that it was trained on

    def told(self) -> str:
        seen = self.evaluation
        return (
            f"preference step: {seen.verdict}, {seen.accuracy_before:.0%} -> "
            f"{seen.accuracy_after:.0%} of {seen.pairs} held-out pairs"
        )


def prefer(
    desk: Desk, pupil: Pupil, material: Material, taught: Taught, report: Report = silent
) -> Preferred | Skipped:
    """Step 3: move the adapter towards the answers that were liked, and judge that."""
    schedule = preference_schedule(replace(desk.schedule, seed=taught.schedule.seed))
    split = _split(desk, pupil, material, schedule)
    if isinstance(split, Skipped):
        pupil.notes.forget(Step.DPO)
        return split
    work = pupil.folder / "dpo"
    work.mkdir(mode=0o700, exist_ok=True)
    job = PreferenceJob(
        work, desk.chassis.path, split.train, schedule, taught.adapter.adapter, BETA
    )
    trained = desk.trainer.prefer(job, report)
    preferred = Preferred(
        trained,
        _judged(desk, pupil, material, taught.adapter, trained, split, report),
        tuple(sorted(used_by(split.train))),
        tuple(sorted(used_by(split.held_out))),
        len(split.train),
    )
    pupil.notes.write(Step.DPO, pupil.notes.seal(Step.SFT), preferred)
    return preferred


def preferred(pupil: Pupil) -> Preferred | None:
    """What `prefer` came to on the adapter of now; None if it was not done or was skipped."""
    return pupil.notes.read(Step.DPO, pupil.notes.seal(Step.SFT), Preferred)


def preferred_texts(desk: Desk, pupil: Pupil, came: Preferred) -> tuple[Example, ...]:
    """The asks and liked answers that a preference step trained on, to be looked for in it."""
    trained = set(came.trained_on)
    return tuple(
        Example(pair.session, pair.prompt, pair.chosen, pair.group)
        for pair in _pairs(desk, pupil)
        if used_by([pair]) <= trained
    )


def preference_look(desk: Desk, leaf: Leaf, seal: str) -> int:
    """Which look at a leaf's preference steps comes now, from 1; as `judging.attempt`."""
    return looks.number(leaf, Looking.PREFERENCE, desk.chassis.tag8.hex(), seal)


def preference_seal(before: Trained, after: Trained, judges: Iterable[str]) -> str:
    """Names a look at a preference step: both adapters, and the sessions that judge."""
    return looks.seal(before.sha256, after.sha256, *sorted(judges))


def _pairs(desk: Desk, pupil: Pupil) -> tuple[Preference, ...]:
    return leaf_preferences(
        desk.store.members(pupil.leaf.id),
        pupil.sessions,
        desk.vectors() if desk.vectors is not None else None,
        left_out=desk.left_out,
        restricted_outputs=desk.restricted_outputs,
    )


def _split(
    desk: Desk, pupil: Pupil, material: Material, schedule: Schedule
) -> PreparedPairs | Skipped:
    store, leaf, before = desk.store, pupil.leaf.id, pupil.round_id
    members = store.members(leaf)
    pairs = _pairs(desk, pupil)
    if not pairs:
        return Skipped(NO_PAIRS)
    used = material.used()
    split = split_pairs(
        pairs,
        store.used(leaf, Role.HELD_OUT, before) | used[Role.HELD_OUT],
        store.used(leaf, Role.TRAIN, before) | used[Role.TRAIN],
        sessions=[example_of(pupil.sessions[id_]) for id_ in members if id_ in pupil.sessions],
        days=days_of(pupil.sessions),
        samples=schedule.steps * schedule.batch,
    )
    if split.too_few:
        return Skipped(
            f"preference step skipped: of {len(pairs)} A/C pairs {len(split.train)} can train and "
            f"{len(split.held_out)} judge, which is too few"
        )
    return split


def _judged(
    desk: Desk,
    pupil: Pupil,
    material: Material,
    before: Trained,
    after: Trained,
    split: PreparedPairs,
    report: Report,
) -> PreferenceEvaluation:
    """Measure both adapters on the held-out pairs and on the sessions that judge the leaf."""
    asked = answers(split.held_out)
    adapters = (("candidate", before.adapter), ("preferred", after.adapter))
    job = EvaluateJob(desk.chassis.path, asked + material.held_out, adapters)
    losses = measured(desk.evaluator, job, report)
    pairs = {label: paired(values[: len(asked)]) for label, values in losses.items()}
    own = {label: values[len(asked) :] for label, values in losses.items()}
    number = preference_look(
        desk, pupil.leaf, preference_seal(before, after, used_by(split.held_out))
    )
    judged = judge_preferences(
        pairs["candidate"],
        pairs["preferred"],
        own["candidate"],
        own["preferred"],
        split.groups,
        session_groups=[each.group or each.session for each in material.held_out],
        confidence=confidence_at(number),
    )
    return replace(judged, attempt=number)
