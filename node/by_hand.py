"""The five steps of one leaf's training, done one by one by the owner instead of by a round.

They work in a folder of their own and change nothing in the forest but the count of looks: each
verdict that is shown is a chance to win by luck. A round that comes meanwhile trains the leaf as it
would have. What `package` made is put in force only with `--adopt`, which
journals it as a round of one training; killed in the middle, `groove-node round` ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from leaves import looks
from leaves.bundle import BundleError
from leaves.lifecycle import Rules, conclude, training_threshold
from leaves.model import Instant, Leaf, Look, Looking, Stage, Verdict
from leaves.ports import Report, Trained, silent
from leaves.store import ForestStore

from . import judging, overview, preferring, rounds, show, teaching
from .errors import OwnerError
from .notes import Step
from .preferring import Preferred, Skipped
from .regrouping import Last
from .teaching import Material, MaterialGoneError, Taught
from .told import Tell

if TYPE_CHECKING:
    from .app import App
    from .capture.sessions import Session
    from .classroom import Classroom

FOLDER = "by-hand"  # beside those of rounds, which are named by their numbers
NOTHING = "Nothing in the forest was changed."
Facts = list[tuple[str, str]]


class NotYetError(OwnerError):
    """A step before this one was not done, or not on what is there now."""


class NotTrainableError(OwnerError):
    """This leaf cannot be trained."""


class NotAdoptedError(OwnerError):
    """What was packed cannot be put in force."""


@dataclass(frozen=True, slots=True)
class Done:
    """What one step came to: to read, and for a program."""

    step: Step
    facts: Facts
    figures: dict[str, Any]
    next_step: str


def run(
    app: App, name: str, steps: Sequence[Step], tell: Tell, report: Report, *, adopt: bool = False
) -> Iterator[Done]:
    """Do these steps of a leaf's training and tell of each; the caller must exhaust it."""
    app.require("capture")
    app.require("train")
    leaf = _trainable(overview.own_leaf(app, name))
    with app.lock("round", "a round is running already"), _ended(leaf):
        sessions = rounds.clean_sessions(app, tell, report)
        rules, now = app.config.rules, app.now()
        work = ByHand(app.forests, rules, rounds.classroom(app), sessions, leaf, now, report)
        for step in steps:
            yield work.do(step)
        if adopt:
            work.adopt()
    if adopt:
        rounds.run(app, tell, report)  # ends the round that `adopt` has begun: a new routing table


class ByHand:
    """One leaf's training as one command sees it. Holds no lock and asks for no consent."""

    def __init__(
        self,
        store: ForestStore,
        rules: Rules,
        classroom: Classroom,
        sessions: Mapping[str, Session],
        leaf: Leaf,
        now: Instant,
        report: Report = silent,
    ) -> None:
        self._store, self._rules, self._leaf, self._now = store, rules, leaf, now
        self._classroom, self._desk, self._report = classroom, classroom.desk, report
        forest, seed = store.forest(), _next_round(store)
        self._pupil = classroom.pupil(leaf, forest, sessions, seed, now, FOLDER)

    def do(self, step: Step) -> Done:
        match step:
            case Step.PREPROCESS:
                return self._preprocess()
            case Step.SFT:
                return self._sft()
            case Step.DPO:
                return self._dpo()
            case Step.EVALUATE:
                return self._evaluate()
            case Step.PACKAGE:
                return self._package()

    def _preprocess(self) -> Done:
        material = teaching.prepare(self._desk, self._pupil)
        split = material.split
        dropped = msgspec.to_builtins(split.dropped)
        schedule = self._desk.schedule
        needed = f"not needed ({schedule.steps} steps x {schedule.batch})"
        words = [
            f"{n:,} {needed if why == 'over' else why.replace('_', ' ')}"
            for why, n in dropped.items()
            if n
        ]
        facts = [
            ("begins with", split.start.begun.value),
            ("trains on", show.counted(len(split.train), "session")),
            ("judged by", f"{show.counted(len(split.held_out), 'session')}, the newest"),
            ("style control", show.counted(len(split.controls), "session")),
            ("on neither side", ", ".join(words) or "none"),
            ("left out", self._left_out()),
        ]
        if few := self._few():
            facts.append(("adopting", f"`--adopt` will refuse it: {few}"))
        if not material.teachable:
            facts.append(("cannot be judged", self._why_not(material)))
        figures = {
            "train": len(split.train),
            "held_out": len(split.held_out),
            "controls": len(split.controls),
            "left_out": split.left_out,
            "dropped": dropped,
            "begun": split.start.begun.value,
            "teachable": material.teachable,
        }
        return self._done(Step.PREPROCESS, facts, figures, Step.SFT)

    def _sft(self) -> Done:
        material = self._material()
        if not material.teachable:
            raise NotTrainableError(
                f"{self._leaf.name} cannot be judged yet: {self._why_not(material)}",
                unchanged=NOTHING,
                next_step="Capture or import more of its sessions, then run a round.",
            )
        second = judging.wants_second(self._desk, self._pupil, material)
        before = teaching.taught_before(self._pupil, material)
        taught = teaching.sft(self._desk, self._pupil, material, second=second, report=self._report)
        trained = {"leaf": taught.adapter, "style control": taught.control}
        if taught.second is not None:
            trained["second control"] = taught.second
        facts = [(what, _trained_line(each)) for what, each in trained.items()]
        if before == taught:
            facts.insert(0, ("done already", "nothing was trained: the split is the same"))
        figures = {what.replace(" ", "_"): _trained(each) for what, each in trained.items()}
        return self._done(Step.SFT, facts, figures, Step.DPO)

    def _dpo(self) -> Done:
        material, taught = self._taught()
        came = preferring.prefer(self._desk, self._pupil, material, taught, self._report)
        facts = [("preferences", came.told())]
        figures: dict[str, Any] = {"skipped": came.why if isinstance(came, Skipped) else None}
        if isinstance(came, Preferred):
            seen = came.evaluation
            seal = preferring.preference_seal(taught.adapter, came.trained, came.held_out)
            self._spend(Looking.PREFERENCE, seal, seen.attempt, seen.verdict)
            facts += [
                ("trained", f"{came.pairs:,} pairs, {_trained_line(came.trained)}"),
                ("more told right", show.gain(seen.gain)),
                ("rise of its own loss", f"< {seen.loss_rise:+.3f} nats per token"),
            ]
            figures |= {"evaluation": msgspec.to_builtins(seen), "pairs": came.pairs}
        return self._done(Step.DPO, facts, figures, Step.EVALUATE)

    def _evaluate(self) -> Done:
        material, taught = self._taught()
        judged = judging.evaluate(
            self._desk,
            self._pupil,
            material,
            taught,
            preferring.preferred(self._pupil),
            self._report,
        )
        seen = judged.evaluation
        seal = judging.look_seal(material, taught)
        self._spend(Looking.ADAPTER, seal, seen.attempt, seen.verdict)
        facts = [
            ("verdict", f"{seen.verdict}, {'won' if seen.won else 'not won'}"),
            ("evaluation", show.evaluation_line(seen)),
            ("method", judged.method),
        ]
        figures = {"evaluation": msgspec.to_builtins(seen), "method": judged.method}
        return self._done(Step.EVALUATE, facts, figures, Step.PACKAGE)

    def _spend(self, what: Looking, seal: str, number: int, verdict: Verdict) -> None:
        """Count a look as recording its training would, for whoever sees the verdict may choose."""
        leaf, chassis = self._store.forest().leaves[self._leaf.id], self._desk.chassis.tag8.hex()
        grown = leaf.stage is Stage.MATURE and not looks.moved(leaf, chassis)
        if verdict is Verdict.TOO_FEW or (what is Looking.ADAPTER and grown):
            return
        after = looks.taken(leaf, Look(what, chassis, seal, number))
        if after is not leaf:
            reason = f"look {number} at its {what.value}, by hand: {verdict}"
            self._store.change(after, "looked", reason, self._now)

    def _package(self) -> Done:
        material, taught = self._taught()
        judged = judging.evaluated(self._pupil)
        if judged is None:
            raise self._not_yet(Step.EVALUATE)
        packed = judging.pack(self._desk, self._pupil, material, taught, judged, self._report)
        facts = [
            ("bundle", f"{packed.adapter.bundle} ({show.size(packed.size_bytes)})"),
            ("style control", packed.adapter.control),
            ("privacy checks", f"not passed: {packed.blocked}" if packed.blocked else "passed"),
        ]
        figures = {**msgspec.to_builtins(packed.adapter), "blocked": packed.blocked}
        return Done(
            Step.PACKAGE,
            facts,
            {"bytes": packed.size_bytes, **figures},
            f"not to be put in force yet: {few}"
            if (few := self._few())
            else f"`groove-node train package {self._leaf.name} --adopt` puts it in force",
        )

    def adopt(self) -> None:
        """Record what was packed as a round does, in one step; the round then only deploys."""
        store, leaf = self._store, self._leaf
        if store.open_round() is not None:
            raise NotAdoptedError(
                "a round was stopped in the middle",
                unchanged=f"The bundle is kept. {NOTHING}",
                next_step="End it with `groove-node round`, then begin again with preprocess.",
            )
        if few := self._few():
            raise NotAdoptedError(
                few,
                unchanged=f"The bundle is kept. {NOTHING}",
                next_step="Train it again when it has them; a round then does so by itself.",
            )
        material, _ = self._taught()
        judged = judging.evaluated(self._pupil)
        packed = judging.packed_before(self._pupil)
        if judged is None or packed is None:
            raise self._not_yet(Step.PACKAGE)
        from .classroom import lesson

        came = preferring.preferred(self._pupil) or Skipped("no preference step was done")
        result = lesson(self._pupil, material, came, judged, packed)
        assert result.outcome is not None, "it was packed"
        last = store.last_round()
        looked = Last.of(last.state) if last is not None else Last()
        # Nothing is due in it: killed before the next write, it ends without a training.
        state: dict[str, Any] = {"due": [], "done": {}, **looked.as_state()}
        row = store.begin_round(self._now, "train", state)
        forest = store.forest()
        transitions = conclude(forest, {leaf.id: result.outcome}, row.started, self._rules)

        def also(after: object) -> None:
            self._classroom.record(result, row.id)
            store.advance_round(row.id, "deploy", {**state, "done": {leaf.id: result.note}})

        store.carry_out(forest, transitions, row.started, row.id, also)
        self._classroom.clean(result)

    def _few(self) -> str:
        """Why a seed cannot be a sprout yet; empty if it is none, or can."""
        leaf, wanted = self._leaf, training_threshold(self._leaf.kind, self._rules)
        if leaf.stage is not Stage.SEED or leaf.sessions >= wanted:
            return ""
        return f"{leaf.name} is a seed of {leaf.sessions:,} sessions; it sprouts with {wanted:,}"

    def _left_out(self) -> str:
        """How many of the leaf's sessions train nothing, by reason."""
        members = self._store.members(self._leaf.id)
        reasons = Counter(
            teaching.left_out_because(self._desk, self._pupil.sessions[id_])
            for id_ in members
            if id_ in self._pupil.sessions
        )
        flagged = sum(id_ not in self._pupil.sessions for id_ in members)
        told = [f"{count:,}: {why}" for why, count in sorted(reasons.items(), key=str) if why]
        if flagged:
            told.append(f"{flagged:,}: by the second scan, or not stored any more")
        return "; ".join(told) or "none"

    def _material(self) -> Material:
        try:
            material = teaching.prepared(self._desk, self._pupil)
        except MaterialGoneError:
            material = None
        if material is None or material.split.trainings != self._leaf.trainings:
            raise self._not_yet(Step.PREPROCESS)
        return material

    def _taught(self) -> tuple[Material, Taught]:
        material = self._material()
        taught = teaching.taught_before(self._pupil, material)
        if taught is None:
            raise self._not_yet(Step.SFT)
        return material, taught

    def _not_yet(self, step: Step) -> NotYetError:
        name = self._leaf.name
        stale = bool(self._pupil.notes.seal(step))
        what = f"the {step} of {name} is of other data than now" if stale else f"no {step} yet"
        return NotYetError(
            f"{what}: run `groove-node train {step} {name}`",
            unchanged=NOTHING,
            next_step="The order is preprocess, sft, dpo (if there are pairs), evaluate, package; "
            f"`groove-node train all {name}` does all of them.",
        )

    def _why_not(self, material: Material) -> str:
        from .classroom import too_few

        return too_few(material)

    def _done(self, step: Step, facts: Facts, figures: dict[str, Any], then: Step) -> Done:
        return Done(step, facts, figures, f"next: `groove-node train {then} {self._leaf.name}`")


def _trainable(leaf: Leaf) -> Leaf:
    if leaf.level > 1 and leaf.stage.live:
        return leaf
    what = "a branch, which is for browsing" if leaf.level == 1 else leaf.stage.value
    raise NotTrainableError(
        f"{leaf.name} is {what}: it is not trained",
        unchanged="Nothing was done.",
        next_step="`groove-node tree` lists the leaves.",
    )


@contextmanager
def _ended(leaf: Leaf) -> Iterator[None]:
    """What may go wrong in a training, as something the owner can mend."""
    from leaves.training.child import TrainingError

    try:
        yield
    except TrainingError as problem:
        raise rounds.TrainingEndedError(
            f"the training process ended: {problem}",
            unchanged=f"What was reached is kept. {NOTHING}",
            next_step="The same command goes on from there.",
        ) from None
    except BundleError as problem:
        raise NotTrainableError(
            f"the training of {leaf.name} went astray: {problem}",
            unchanged=NOTHING,
            next_step="Lower `learning_rate` under [training] in groove.toml, then run sft again.",
        ) from None


def _next_round(store: ForestStore) -> int:
    """The number that the next round will have: the training is seeded as that round's would be."""
    rows = [row for row in (store.last_round(), store.open_round()) if row is not None]
    return max((row.id for row in rows), default=0) + 1


def _trained(trained: Trained) -> dict[str, Any]:
    return {
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 3),
        "tokens_per_s": round(_rate(trained), 1),
        "loss_first": round(trained.loss_first, 4),
        "loss_last": round(trained.loss_last, 4),
        "sha256": trained.sha256,
        "dtype": trained.dtype,
    }


def _trained_line(trained: Trained) -> str:
    return (
        f"{trained.tokens:,} tokens at {_rate(trained):.0f} tokens/s, loss "
        f"{trained.loss_first:.3f} -> {trained.loss_last:.3f} nats per token"
    )


def _rate(trained: Trained) -> float:
    return trained.tokens / trained.seconds if trained.seconds > 0 else 0.0
