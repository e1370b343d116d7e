"""A training's place, on disk: one file that is always whole.

Safetensors with the place in its metadata, renamed into position; no pickle. The random choices of
a training follow from its seed and step alone, so no generator's state has to be kept.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .tensors import TensorFileError, pack, unpack

NAME = "checkpoint.safetensors"
_PAUSED = 5  # times as long a token as on average: load alone slows less, and no clock sees a pause


@dataclass(frozen=True, slots=True)
class Place:
    """How far a training is. A checkpoint of another job is of no use and is not read."""

    job: str  # fingerprint
    dtype: str
    step: int
    tokens: int
    seconds: float
    losses: tuple[float, ...]  # of each step

    def after_step(self, tokens: int, seconds: float, loss: float) -> Place:
        """One step further. Most of a step that took far longer than usual was a pause."""
        if self.tokens:
            seconds = min(seconds, _PAUSED * tokens * self.seconds / self.tokens)
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            seconds=self.seconds + seconds,
            losses=(*self.losses, loss),
        )


def save(work: Path, place: Place, state: dict[str, Tensor]) -> None:
    """Replace the checkpoint. state: flat float32 vectors."""
    told = {
        "job": place.job,
        "dtype": place.dtype,
        "step": str(place.step),
        "tokens": str(place.tokens),
        "seconds": repr(place.seconds),
        "losses": json.dumps(place.losses),
    }
    write_whole(work / NAME, pack({name: value.numpy() for name, value in state.items()}, told))


def load(work: Path, size: int, names: tuple[str, ...]) -> tuple[Place, dict[str, Tensor]] | None:
    """The place and its vectors of `size` numbers, or None if there is none to go on from."""
    path = work / NAME
    if not path.exists():
        return None
    try:
        arrays, told = unpack(path.read_bytes(), dict.fromkeys(names, (size,)))
        place = Place(
            job=told["job"],
            dtype=told["dtype"],
            step=int(told["step"]),
            tokens=int(told["tokens"]),
            seconds=float(told["seconds"]),
            losses=tuple(json.loads(told["losses"])),
        )
    except (TensorFileError, KeyError, ValueError):
        return None  # of another shape: of another job
    return place, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, readable by its owner."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.touch(mode=0o600)
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
