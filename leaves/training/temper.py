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

from ..bundle import read_adapter
from ..ports import EvaluateJob, Evaluator, Progress, Report, Trained, silent
from .bounds import bootstrap
from .chassis import Chassis
from .general import general_examples
from .tensors import pack

FACTORS = (1.0, 0.7, 0.5, 0.35, 0.25)  # of what an adapter adds; at a quarter little is left
TEMPERED = "tempered.safetensors"
_JUDGED, _LOOKED_AT = 64, 48  # passages that judge an adapter, and those after them that temper it


def temper(
    trained: Trained, chassis: Chassis, evaluator: Evaluator, report: Report = silent
) -> Trained:
    """Return the adapter, or a weaker one beside it, whose loss on general text has not risen.

    The strongest of `FACTORS` for which the upper 95 % bound of the rise over the bare chassis is
    not above zero, or else the weakest. The passages are others than those that judge it later. The
    style control is left as it is: the leaf has to win against it at full strength.
    """
    passages = general_examples(_JUDGED + _LOOKED_AT)[_JUDGED:]
    path, factor = trained.adapter, FACTORS[0]
    bare: tuple[float, ...] = ()
    for at, factor in enumerate(FACTORS):
        path = _weakened(trained.adapter, chassis, factor)
        if factor == FACTORS[-1]:
            break
        report(Progress("temper", at, len(FACTORS), f"at {factor:.0%} of its strength"))
        adapters = (("adapter", path),) if bare else (("adapter", path), ("bare", None))
        losses = evaluator.losses(EvaluateJob(chassis.path, passages, adapters), report).by_label
        bare = bare or losses["bare"]
        rises = [after - before for after, before in zip(losses["adapter"], bare, strict=True)]
        if bootstrap(rises).high <= 0:
            break
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(trained, adapter=path, sha256=digest, strength=factor)


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
