"""What the warm start says of each pair, measured once and kept as numbers in the working folder.

So preference training holds one model in memory, and a killed one does not measure again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..ports import Progress, Report
from .backend import Backend
from .checkpoint import write_whole
from .encode import Encoded, chunks
from .preference import PairLosses
from .tensors import Array, TensorFileError, pack, unpack

NAME = "reference.safetensors"
_PARTS_KEPT = 8  # measured between two writes: some seconds of work


class EncodedPair(NamedTuple):
    """Both answers to one ask, each with the ask before it."""

    chosen: Encoded
    rejected: Encoded

    @property
    def length(self) -> int:
        return len(self.chosen.tokens) + len(self.rejected.tokens)


@dataclass(frozen=True, slots=True)
class Reference:
    """Losses under the warm start. `measured` of the pairs are done, in the order of `parts`."""

    job: str  # fingerprint
    dtype: str  # that the chassis is computed in; the training keeps to it
    measured: int
    chosen: Array  # shape (pairs,)
    rejected: Array

    def __getitem__(self, pair: int) -> PairLosses:
        return PairLosses(float(self.chosen[pair]), float(self.rejected[pair]))


def begun(work: Path, job: str, dtype: str, pairs: int) -> Reference:
    """What was measured so far for this job, or the beginning, written down with its dtype."""
    path = work / NAME
    if path.exists():
        try:
            arrays, told = unpack(path.read_bytes(), {"chosen": (pairs,), "rejected": (pairs,)})
            if told["job"] == job:
                both = arrays["chosen"].copy(), arrays["rejected"].copy()
                return Reference(job, told["dtype"], int(told["measured"]), *both)
        except (TensorFileError, KeyError, ValueError):
            pass  # of another job
    fresh = Reference(job, dtype, 0, np.zeros(pairs, np.float32), np.zeros(pairs, np.float32))
    _save(work, fresh)
    return fresh


def measure(
    work: Path, kept: Reference, model: Backend, pairs: Sequence[EncodedPair], report: Report
) -> Reference:
    """Measure what is left, by the model as it is bound."""
    measured = 0
    for number, part in enumerate(parts(pairs)):
        measured += len(part)
        if measured <= kept.measured:
            continue
        both = [pairs[index].chosen for index in part] + [pairs[index].rejected for index in part]
        losses = model.losses(both)
        kept.chosen[part], kept.rejected[part] = losses[: len(part)], losses[len(part) :]
        kept = Reference(kept.job, kept.dtype, measured, kept.chosen, kept.rejected)
        if measured == len(pairs) or number % _PARTS_KEPT == _PARTS_KEPT - 1:
            _save(work, kept)
        report(Progress("reference", measured, len(pairs)))
    return kept


def parts(pairs: Sequence[EncodedPair]) -> Iterator[list[int]]:
    """Indices of pairs alike in length, as many as are computed at once; no pair is torn apart."""
    return chunks([Encoded(pair.chosen.tokens + pair.rejected.tokens, 0) for pair in pairs])


def _save(work: Path, kept: Reference) -> None:
    told = {"job": kept.job, "dtype": kept.dtype, "measured": str(kept.measured)}
    write_whole(work / NAME, pack({"chosen": kept.chosen, "rejected": kept.rejected}, told))
