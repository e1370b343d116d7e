"""What the parent asks of its child, and what the child says: one JSON line each, on pipes.

Examples travel here and never through a file of their own, so nothing of them is left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..ports import EvaluateJob, Losses, PreferenceJob, Probed, ProbeJob, Trained, TrainJob


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """Answer each prompt under each adapter, choosing the likeliest token each time."""

    chassis: Path
    prompts: tuple[str, ...]
    adapters: tuple[tuple[str, Path | None], ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use. None is unlimited."""

    threads: int = 1
    niceness: int = 10
    memory_bytes_max: int | None = None  # of address space, which is far more than what is resident
    dtype: str | None = None  # None: whichever this CPU is faster in


class TrainOrder(Struct, frozen=True, tag="train"):
    job: TrainJob
    limits: Limits


class PreferOrder(Struct, frozen=True, tag="prefer"):
    job: PreferenceJob
    limits: Limits


class EvaluateOrder(Struct, frozen=True, tag="evaluate"):
    job: EvaluateJob
    limits: Limits


class GenerateOrder(Struct, frozen=True, tag="generate"):
    job: GenerateJob
    limits: Limits


class ProbeOrder(Struct, frozen=True, tag="probe"):
    job: ProbeJob
    limits: Limits


Order = TrainOrder | PreferOrder | EvaluateOrder | GenerateOrder | ProbeOrder


class Told(Struct, frozen=True, tag="progress"):
    phase: str
    done: int
    total: int
    detail: str


class Finished(Struct, frozen=True, tag="trained"):
    result: Trained


class Measured(Struct, frozen=True, tag="measured"):
    result: Losses


class Answered(Struct, frozen=True, tag="answered"):
    result: dict[str, tuple[str, ...]]  # by label, one answer per prompt


class Recalled(Struct, frozen=True, tag="recalled"):
    result: Probed


class Failed(Struct, frozen=True, tag="failed"):
    """refused: a bundle was at fault. Otherwise the owner's chassis, job or machine is."""

    message: str
    refused: bool


Answer = Told | Finished | Measured | Answered | Recalled | Failed


def encode(message: Order | Answer) -> bytes:
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def _from_text(kind: type, value: Any) -> Any:
    assert kind is Path, f"no {kind} is sent as text"
    return Path(value)


def decode_order(line: bytes) -> Order:
    order: Order = msgspec.json.decode(line, type=Order, dec_hook=_from_text)
    return order


def decode_answer(line: bytes) -> Answer:
    answer: Answer = msgspec.json.decode(line, type=Answer, dec_hook=_from_text)
    return answer
