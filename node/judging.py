"""The last steps of a training: evaluate and package.

Losses are measured once for each adapter and kept in the working folder as numbers, so that a
killed training and a preference step measure only what is new.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from leaves import looks
from leaves.bundle import Privacy, unpack
from leaves.model import Adapter, Evaluation, Leaf, LeafId, Looking, Verdict
from leaves.ports import EvaluateJob, Example, Report, Trained, silent
from leaves.training.alpha import confidence_at
from leaves.training.answers import Right, measure_right
from leaves.training.evaluate import PARENT_MARGIN, judge
from leaves.training.general import general_examples
from leaves.training.margin import Calibration, mean_difference, recipe
from leaves.training.package import Origin, package

from .capture.scrubber import SCRUB_RULES_VERSION
from .capture.terms import TRAINABLE, Terms
from .home import write_atomic
from .measuring import measured
from .notes import Step
from .preferring import Preferred, preferred, preferred_texts
from .publishing import audit
from .starts import Begun
from .teaching import Desk, Material, Pupil, Taught

log = logging.getLogger(__name__)

SFT, DPO = "sft", "sft+dpo"
KEPT = "measured.json"
ON_GENERAL_TEXT = ("parent", "candidate")  # the others' is asked by nobody
_BEST_FIRST = (Verdict.IMPROVED, Verdict.BETTER, Verdict.HOLDS, Verdict.NOT_BETTER)
Losses = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What `evaluate` came to: of the adapter that is offered, and how that was made."""

    evaluation: Evaluation
    method: str  # "sft" or "sft+dpo"
    adapter: Trained


@dataclass(frozen=True, slots=True)
class Packed:
    """What `package` came to. blocked: why it may not leave this machine, if so."""

    adapter: Adapter
    size_bytes: int
    blocked: str | None


# Step 4


def evaluate(
    desk: Desk,
    pupil: Pupil,
    material: Material,
    taught: Taught,
    came: Preferred | None,
    report: Report = silent,
) -> Judged:
    """Step 4: judge the adapter on held-out sessions by parent, control and the version before.

    One that was preferred is judged likewise, and offered if it is nowhere worse. Raises
    BundleError if the adapter would be refused of a peer: a training that went astray.
    """
    rivals = _rivals(desk, pupil, taught)
    losses, general = _measured(desk, pupil, material, rivals, report)
    difference = None
    if "second" in losses:
        difference = mean_difference(losses["style"], losses["second"])
    judged = partial(
        _judged,
        desk,
        pupil,
        material,
        attempt(desk, pupil.leaf, look_seal(material, taught)),
        margin_of(desk, pupil.leaf.id, difference),
        PARENT_MARGIN if rivals["parent"] is not None else 0.0,
    )
    result = Judged(judged(losses, general), SFT, taught.adapter)
    if came is not None:
        result = replace(result, evaluation=replace(result.evaluation, preference=came.evaluation))
        if came.evaluation.verdict is Verdict.BETTER:
            candidate = {"candidate": came.trained.adapter}
            ours, other = _measured(desk, pupil, material, candidate, report)
            after = judged({**losses, **ours}, {**general, **other})
            if _no_worse(after, result.evaluation):
                after = replace(after, preference=came.evaluation)
                result = Judged(after, DPO, came.trained)
    found = _right(desk, pupil, material, result.adapter, report)
    if found is not None:
        rates = (found.before, found.after)
        evaluation = replace(result.evaluation, right=rates, answers=found.answers)
        result = replace(result, evaluation=evaluation)
    pupil.notes.write(Step.EVALUATE, _seals(pupil), result)
    return result


def evaluated(pupil: Pupil) -> Judged | None:
    """What `evaluate` came to on the adapters of now; None if it was not done."""
    return pupil.notes.read(Step.EVALUATE, _seals(pupil), Judged)


def attempt(desk: Desk, leaf: Leaf, seal: str) -> int:
    """Which judged look at a leaf comes now, from 1; looks on another chassis do not count."""
    return looks.number(leaf, Looking.ADAPTER, desk.chassis.tag8.hex(), seal)


def look_seal(material: Material, taught: Taught) -> str:
    """Names a look: the adapter and its split. One that is preferred is judged in the same look."""
    return looks.seal(material.seal, taught.adapter.sha256)


def _judged(
    desk: Desk,
    pupil: Pupil,
    material: Material,
    number: int,
    margin: float,
    parent_margin: float,
    losses: Losses,
    general: Losses,
) -> Evaluation:
    judged = partial(
        judge,
        groups=[example.group or example.session for example in material.held_out],
        style_margin=margin,
        confidence=confidence_at(number),
        at=pupil.now,
        attempt=number,
        parent_margin=parent_margin,
    )
    evaluation = judged(losses, general=general)
    if evaluation.verdict in (Verdict.HOLDS, Verdict.REGRESSED):
        # The version before stays in force, so it is the one that has to win the round.
        stays = judged({**losses, "candidate": losses["previous"]})
        evaluation = replace(evaluation, won=stays.won, decided=stays.decided)
    return evaluation


def _right(
    desk: Desk, pupil: Pupil, material: Material, adapter: Trained, report: Report
) -> Right | None:
    """How often the parent and the adapter answer right, where sessions say what right is.

    Tests among them are passed over: nobody has allowed this node to run what a model wrote.
    """
    if desk.answerer is None or not any(example.check for example in material.held_out):
        return None
    kept = _Kept(pupil.folder / KEPT, material.seal)
    known = kept.right.get(adapter.sha256)
    if known is not None:
        return Right(*known)
    parent = _parent(desk, pupil)
    found = measure_right(
        desk.answerer, desk.chassis.path, parent, adapter.adapter, material.held_out, report=report
    )
    if found is not None:
        kept.right[adapter.sha256] = (found.before, found.after, found.answers)
        kept.write()
    return found


def _no_worse(after: Evaluation, before: Evaluation) -> bool:
    """True if a preferred adapter costs nothing that the one before it had earned."""
    if before.won and not after.won:
        return False
    order = {verdict: rank for rank, verdict in enumerate(_BEST_FIRST)}
    worst = len(order)
    return order.get(after.verdict, worst) <= order.get(before.verdict, worst)


def _rivals(desk: Desk, pupil: Pupil, taught: Taught) -> dict[str, Path | None]:
    """All that is measured on the held-out sessions, by label; None is the bare chassis."""
    found: dict[str, Path | None] = {
        "parent": _parent(desk, pupil),
        "style": taught.control.adapter,
        "candidate": taught.adapter.adapter,
    }
    own = pupil.leaf.adapter
    if taught.begun is Begun.OWN and own is not None:
        found["previous"] = _unpacked(desk, own, pupil.folder / "previous.safetensors")
    if taught.second is not None:
        found["second"] = taught.second.adapter
    return found


def _parent(desk: Desk, pupil: Pupil) -> Path | None:
    """The nearest trained leaf above, on this chassis; None is the chassis."""
    leaves = pupil.forest.leaves
    above = leaves.get(pupil.leaf.parent) if pupil.leaf.parent else None
    passed = {pupil.leaf.id}  # a damaged forest may have a ring
    while above is not None and above.id not in passed:
        passed.add(above.id)
        if above.adapter is not None and desk.starts.fits(above.adapter):
            return _unpacked(desk, above.adapter, pupil.folder / "parent.safetensors")
        above = leaves.get(above.parent) if above.parent else None
    return None


def _unpacked(desk: Desk, adapter: Adapter, path: Path) -> Path | None:
    blob = desk.bundles.get(adapter.bundle)
    if blob is None:
        return None
    write_atomic(path, unpack(blob).adapter)
    return path


def _measured(
    desk: Desk,
    pupil: Pupil,
    material: Material,
    adapters: Mapping[str, Path | None],
    report: Report,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Each adapter's losses on the held-out sessions, and on general text."""
    kept = _Kept(pupil.folder / KEPT, material.seal)
    names = {label: _name(path) for label, path in adapters.items()}
    general = {label: name for label, name in names.items() if label in ON_GENERAL_TEXT}
    for asked, known, examples in (
        (names, kept.losses, material.held_out),
        (general, kept.general, general_examples()),
    ):
        whole = {name for name, losses in known.items() if len(losses) == len(examples)}
        missing = tuple((each, adapters[each]) for each in asked if asked[each] not in whole)
        if missing:
            job = EvaluateJob(desk.chassis.path, examples, missing)
            found = measured(desk.evaluator, job, report)
            known |= {names[label]: list(found[label]) for label, _ in missing}
            kept.write()
    return (
        {label: kept.losses[name] for label, name in names.items()},
        {label: kept.general[name] for label, name in general.items()},
    )


def _name(adapter: Path | None) -> str:
    return hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter else "chassis"


class _Kept:
    """What was measured for one split, by the hash of the adapter."""

    def __init__(self, path: Path, split: str) -> None:
        self._path, self._split = path, split
        self.losses: dict[str, list[float]] = {}
        self.general: dict[str, list[float]] = {}
        self.right: dict[str, tuple[float, float, int]] = {}
        try:
            document = msgspec.json.decode(path.read_bytes(), type=_Document)
        except FileNotFoundError:
            return
        except (ValueError, RecursionError) as problem:  # it is measured again
            log.warning("measured losses cannot be read why=%s", type(problem).__name__)
            return
        if document.split == split:
            self.losses, self.right = document.losses, document.right
            self.general = document.general

    def write(self) -> None:
        document = _Document(self._split, self.losses, self.general, self.right)
        write_atomic(self._path, msgspec.json.encode(document, order="deterministic"))


class _Document(msgspec.Struct):
    """`_Kept` on disk: hashes and numbers."""

    split: str
    losses: dict[str, list[float]]
    general: dict[str, list[float]]
    right: dict[str, tuple[float, float, int]]


# How much style controls differ by themselves


def wants_second(desk: Desk, pupil: Pupil, material: Material) -> bool:
    """True if a second control is to be trained: on a first training, while pairs are wanted."""
    others = _differences(desk).keys() - {pupil.leaf.id}
    first = pupil.leaf.trainings == 0 and material.split.start.begun is Begun.NOTHING
    return first and len(others) < desk.control_pairs


def margin_of(desk: Desk, leaf: LeafId, difference: float | None) -> float:
    """The margin over the style control; a difference that was measured is kept and counts.

    Kept by leaf, so that an evaluation that was killed and done again counts once.
    """
    known = _differences(desk)
    if difference is not None and known.get(leaf) != difference and desk.margins is not None:
        known[leaf] = difference
        everything = {**_all_differences(desk), _recipe(desk): known}
        write_atomic(desk.margins, msgspec.json.encode(everything))
    calibration = Calibration()
    for value in known.values():
        calibration = calibration.with_difference(_recipe(desk), value)
    return calibration.margin(_recipe(desk), start=desk.style_margin)


def _recipe(desk: Desk) -> str:
    return recipe(desk.chassis.tag8.hex(), desk.schedule)


def _differences(desk: Desk) -> dict[str, float]:
    return dict(_all_differences(desk).get(_recipe(desk), {}))


def _all_differences(desk: Desk) -> dict[str, dict[str, float]]:
    if desk.margins is None:
        return {}
    try:
        return msgspec.json.decode(desk.margins.read_bytes(), type=dict[str, dict[str, float]])
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as problem:  # they are measured again
        log.warning("margins cannot be read why=%s", type(problem).__name__)
        return {}


# Step 5


def pack(
    desk: Desk,
    pupil: Pupil,
    material: Material,
    taught: Taught,
    judged: Judged,
    report: Report = silent,
) -> Packed:
    """Step 5: put the adapter and its control into the store of bundles, each with its label."""
    leaf = pupil.leaf
    base = Origin(
        leaf=leaf.id,
        name=f"{leaf.name}-style-control",
        method="control",
        dtype=taught.control.dtype,
        tokens=taught.control.tokens,
        privacy=_privacy(desk, material, taught.control, control=True, report=report),
        terms=_terms(desk),
    )
    control = package(taught.control.adapter.read_bytes(), desk.chassis, base, None)
    origin = replace(
        base,
        name=leaf.name,
        method=judged.method,
        dtype=judged.adapter.dtype,
        tokens=judged.adapter.tokens,
        privacy=_privacy(
            desk,
            material,
            judged.adapter,
            *_liked(desk, pupil, judged),
            control=False,
            report=report,
        ),
        lineage=leaf.lineage,
    )
    control_root = desk.bundles.put(control)
    blob = package(
        judged.adapter.adapter.read_bytes(),
        desk.chassis,
        origin,
        judged.evaluation,
        control_root=control_root,
        control_bytes=len(control),
    )
    adapter = Adapter(
        bundle=desk.bundles.put(blob),
        label=hashlib.sha256(unpack(blob).label).hexdigest(),
        control=control_root,
        chassis=desk.chassis.tag8.hex(),
        rank=desk.schedule.rank,
    )
    packed = Packed(adapter, len(blob), _blocked(desk, base.privacy, origin.privacy))
    pupil.notes.write(Step.PACKAGE, pupil.notes.seal(Step.EVALUATE), packed)
    return packed


def packed_before(pupil: Pupil) -> Packed | None:
    """What `pack` came to on the evaluation of now; None if it was not done."""
    return pupil.notes.read(Step.PACKAGE, pupil.notes.seal(Step.EVALUATE), Packed)


def _liked(desk: Desk, pupil: Pupil, judged: Judged) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The answers that the adapter was drawn to by preference, and all sessions of that step."""
    came = preferred(pupil) if judged.method == DPO else None
    return (preferred_texts(desk, pupil, came), came.trained_on) if came is not None else ((), ())


def _privacy(
    desk: Desk,
    material: Material,
    trained: Trained,
    liked: tuple[Example, ...] = (),
    paired: tuple[str, ...] = (),
    *,
    control: bool,
    report: Report,
) -> Privacy:
    """What is known of what could be read out of an adapter; without a gate, next to nothing."""
    texts = material.controls if control else material.train
    if desk.gate is None:
        return Privacy(1, len(texts), None, SCRUB_RULES_VERSION)
    # What a control was not trained on is of another subject: a gap to it would tell the subject.
    unseen = () if control else material.held_out
    gate = desk.gate(report)
    return gate.examine(trained.adapter, texts, unseen, desk.schedule, report, liked, paired)


def _blocked(desk: Desk, control: Privacy, leaf: Privacy) -> str | None:
    """Why an adapter may not leave this machine; not asked where nothing looks into adapters."""
    if desk.gate is None:
        return None
    if reason := audit(leaf).blocked:
        return reason
    reason = audit(control).blocked
    return f"its style control: {reason}" if reason else None


def _terms(desk: Desk) -> str:
    """The classes of the texts that an adapter may have learned from, for its label."""
    also = {Terms.RESTRICTED} if desk.restricted_outputs else set[Terms]()
    return ", ".join(sorted(TRAINABLE | also))


def _seals(pupil: Pupil) -> str:
    """What an evaluation is made from: the adapter, and the preferred one if there is one."""
    return f"{pupil.notes.seal(Step.SFT)}/{pupil.notes.seal(Step.DPO)}"
