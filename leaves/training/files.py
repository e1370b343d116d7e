"""What a training finds and leaves in its working folder: an adapter to begin with, and its result.

Supervised and preference training share it, so that each can go on where the other ended.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..bundle import read_adapter
from ..ports import Trained
from .adapter import Adapters
from .chassis import Chassis
from .checkpoint import Place, write_whole

ADAPTER, RESULT = "adapter.safetensors", "result.json"


@dataclass(frozen=True, slots=True)
class _Result:
    """What is left in the working folder when a training is done."""

    job: str
    trained: Trained


def warm_start(path: Path, adapters: Adapters, chassis: Chassis) -> None:
    """Give the adapters a finished one's values; raises ValueError for one of another recipe."""
    before = read_adapter(path.read_bytes(), chassis)
    if (before.rank, before.alpha, before.targets) != (
        adapters.rank,
        adapters.alpha,
        chassis.targets,
    ):
        raise ValueError(
            f"{path}: rank {before.rank}, alpha {before.alpha} on {before.targets}; "
            f"the schedule asks rank {adapters.rank}, alpha {adapters.alpha} on {chassis.targets}"
        )
    adapters.load(before.tensors)


def finished(work: Path, job: str) -> Trained | None:
    """The result of the same job, done before, if its adapter is still the same."""
    path = work / RESULT
    if not path.exists():
        return None
    result = msgspec.json.decode(path.read_bytes(), type=_Result, dec_hook=lambda kind, v: kind(v))
    adapter = work / ADAPTER
    if result.job != job or not adapter.exists():
        return None
    if hashlib.sha256(adapter.read_bytes()).hexdigest() != result.trained.sha256:
        return None
    return replace(result.trained, adapter=adapter)


def finish(work: Path, adapters: Adapters, place: Place) -> Trained:
    """Write the adapter and the result; what the training kept beside them can then go."""
    data = adapters.file()
    write_whole(work / ADAPTER, data)
    edge = max(len(place.losses) // 4, 1)
    trained = Trained(
        adapter=work / ADAPTER,
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=place.tokens,
        seconds=place.seconds,
        loss_first=sum(place.losses[:edge]) / edge,
        loss_last=sum(place.losses[-edge:]) / edge,
        dtype=place.dtype,
    )
    result = _Result(place.job, trained)
    write_whole(work / RESULT, msgspec.json.encode(result, enc_hook=str))
    return trained
