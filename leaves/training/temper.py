"""An adapter made weaker until it no longer spoils what the chassis knows.

A narrow domain pulls the chassis far: trained on SQL alone, an adapter raised the loss on ordinary
prose by 0.29 nats and would have been refused. Half of what it added kept 92 % of its gain, and
lowered that loss by 0.03: what is forgotten grows with the square of the step, what is learned does
not (Wortsman 2022, "Robust fine-tuning of zero-shot models", interpolates whole weights likewise).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from ..bundle import read_adapter
from ..ports import EvaluateJob, Evaluator, Progress, Report, Trained, silent
from .bounds import bootstrap
from .chassis import Chassis
from .general import general_examples
from .tensors import pack

FACTORS = (1.0, 0.7, 0.5, 0.35, 0.25)  # of what an adapter adds; at a quarter little is left
TEMPERED, FOUND = "tempered.safetensors", "tempered.json"
_JUDGED, _LOOKED_AT = 64, 48  # passages that judge an adapter, and those after them that temper it


def temper(
    trained: Trained, chassis: Chassis, evaluator: Evaluator, report: Report = silent
) -> Trained:
    """Return the adapter, or a weaker one beside it, whose loss on general text has not risen.

    The strongest of `FACTORS` for which the upper 95 % bound of the rise over the bare chassis is
    not above zero, or else the weakest. The passages are others than those that judge it later. The
    style control is left as it is: the leaf has to win against it at full strength.
    What was found is kept beside the adapter, so that the same one is not measured again. Raises
    as the evaluator does: BundleError if an adapter is refused, or its losses are no numbers.
    """
    kept = trained.adapter.with_name(FOUND)
    about = f"{chassis.tag8.hex()}/{trained.sha256}"
    factor = _found(kept, about)
    if factor is None:
        factor = _bearable(trained.adapter, chassis, evaluator, report)
        kept.write_bytes(msgspec.json.encode(_Found(about, factor)))  # half of it is not read
    path = _weakened(trained.adapter, chassis, factor)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(trained, adapter=path, sha256=digest, strength=factor)


def _bearable(adapter: Path, chassis: Chassis, evaluator: Evaluator, report: Report) -> float:
    passages = general_examples(_JUDGED + _LOOKED_AT)[_JUDGED:]
    bare: tuple[float, ...] = ()
    for at, factor in enumerate(FACTORS[:-1]):

        def told(progress: Progress, at: int = at, factor: float = factor) -> None:
            done, total = at * progress.total + progress.done, len(FACTORS) * progress.total
            report(Progress("temper", done, total, f"at {factor:.0%} of its strength"))

        weaker = _weakened(adapter, chassis, factor)
        adapters = (("adapter", weaker),) if bare else (("adapter", weaker), ("bare", None))
        losses = evaluator.losses(EvaluateJob(chassis.path, passages, adapters), told).by_label
        bare = bare or losses["bare"]
        rises = [after - before for after, before in zip(losses["adapter"], bare, strict=True)]
        if bootstrap(rises).high <= 0:
            return factor
    return FACTORS[-1]


def _found(path: Path, about: str) -> float | None:
    """What was found before of this adapter on this chassis."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Found)
    except (FileNotFoundError, ValueError, RecursionError):
        return None  # nothing was, or it is measured again
    return found.factor if found.about == about else None


class _Found(msgspec.Struct, frozen=True):
    """The strength that other text bears, of the adapter and chassis that `about` names."""

    about: str
    factor: float


def _weakened(adapter: Path, chassis: Chassis, factor: float) -> Path:
    if factor == 1.0:
        return adapter
    read = read_adapter(adapter.read_bytes(), chassis)
    tensors = {
        name: values * factor if name.endswith(".lora_B.weight") else values
        for name, values in read.tensors.items()
    }
    path = adapter.with_name(TEMPERED)
    told = {"format": "pt", "rank": str(read.rank), "alpha": str(read.alpha)}
    path.write_bytes(pack(tensors, told))  # a half-written one is made again: no note names it yet
    return path
