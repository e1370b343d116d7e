"""A tiny chassis with leaves of random adapters, and the engine over it without a process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import tiny_llama
import torch

from leaves.bundle import AdapterFile, Privacy, read_adapter
from leaves.model import LeafId
from leaves.serving.engine import Engine
from leaves.serving.opening import open_stepper
from leaves.serving.orders import Begin, Begun, Cancel, Made, Refused, Saying, Wanted, Warm
from leaves.serving.prepared import Prepared
from leaves.serving.preparing import Preparing
from leaves.serving.stepping import Stepper
from leaves.training.adapter import Adapters
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.package import Origin, package

RANK, ALPHA = 4, 8
PLENTY = 64 << 20  # bytes of keys and values


@cache
def chassis(model_type: str = "llama", seed: int = 0) -> Chassis:
    """With an end token that is never said: how long an answer gets is for the tests to choose."""
    folder = Path(mkdtemp(prefix="groove-test-"))
    path = tiny_llama.build(folder, model_type=model_type, seed=seed) / "config.json"
    config = json.loads(path.read_text()) | {"eos_token_id": tiny_llama.VOCABULARY + 1}
    path.write_text(json.dumps(config))
    return open_chassis(folder)


@cache
def adapters(seed: int) -> Adapters:
    """Random, and strong enough that each says something of its own."""
    opened = chassis()
    made = Adapters(opened.adapter_shapes(RANK, opened.targets), RANK, ALPHA)
    made.initialise(seed)
    noise = torch.randn(made.values.shape, generator=torch.Generator().manual_seed(seed))
    made.values.add_(noise, alpha=0.03)
    return made


def adapter_file(seed: int) -> AdapterFile:
    return read_adapter(adapters(seed).file(), chassis())


def blob(seed: int, *, chassis_seed: int = 0) -> bytes:
    """The bundle of a leaf, labelled as one for the chassis of this seed."""
    leaf = LeafId(hashlib.sha256(f"leaf {seed}".encode()).hexdigest()[:32])
    privacy = Privacy(contributors=1, sessions=9, canary_exposure=None, scrub_rules="1")
    origin = Origin(leaf, f"leaf {seed}", "sft", "float32", 1000, privacy, "all")
    return package(adapters(seed).file(), chassis(seed=chassis_seed), origin, None)


def stepper(model_type: str = "llama") -> Stepper:
    with torch.no_grad():
        return open_stepper(chassis(model_type), "float32", 1)[0]


@dataclass
class Desk:
    """An engine, what is asked of it and what it says. Adapters go by their seeds."""

    stepper: Stepper
    resident: int = 20
    memory_bytes: int = PLENTY
    said: list[Saying] = field(default_factory=list)
    again: list[Begin | Warm] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.preparing = Preparing(chassis(), self.memory_bytes // self.stepper.memory_bytes(1))
        self.engine = Engine(
            self.stepper,
            self.preparing.tokenizer,
            frozenset(),
            self.said.append,
            self.again.append,
            adapters_resident=self.resident,
            memory_bytes=self.memory_bytes,
        )

    def ask(self, number: int, text: str, leaf: int | None = None, **changes: object) -> None:
        wanted = None if leaf is None else Wanted(f"{leaf}", "")
        given = {"tokens_max": 12, "temperature": 0.0} | changes
        order = Begin(number, prompt=text, adapter=wanted, **given)  # type: ignore[arg-type]
        tokens = tuple(self.preparing.tokenizer.encode(text, add_special_tokens=False).ids)
        read = None if leaf is None or self.engine.has(f"{leaf}") else adapter_file(leaf)
        room = self.preparing.context - len(tokens)
        self.engine.take(Prepared(order, tokens, room, read))

    def cancel(self, number: int) -> None:
        self.engine.take(Cancel(number))

    def step(self, times: int = 1) -> None:
        with torch.no_grad():
            for _ in range(times):
                self.engine.step()

    def finish(self) -> None:
        while self.engine.busy:
            self.step()

    def text(self, number: int) -> str:
        return "".join(x.text for x in self.said if isinstance(x, Made) and x.id == number)

    def tokens(self, number: int) -> int:
        made = [x.tokens for x in self.said if isinstance(x, Made) and x.id == number]
        return made[-1] if made else 0

    def begun(self) -> list[int]:
        return [x.id for x in self.said if isinstance(x, Begun)]

    def refused(self) -> list[Refused]:
        return [x for x in self.said if isinstance(x, Refused)]
