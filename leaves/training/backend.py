"""What training and evaluation ask of a chassis in memory, and which implementation answers.

Only the child process imports this: it needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from .adapter import Adapters
from .chassis import llama_shape, open_chassis, weight_files
from .encode import Encoded
from .llama import Llama
from .tensors import Weights


class Backend(Protocol):
    """A frozen chassis with at most one set of adapters bound to it."""

    def bind(self, adapters: Adapters | None) -> None:
        """Put on adapters; None leaves the bare chassis."""
        ...

    def refresh(self) -> None:
        """Take over the values of the bound adapters after an optimiser's step."""
        ...

    def losses(self, sessions: Sequence[Encoded]) -> list[float]:
        """Nats per completion token of each session."""
        ...

    def train(self, sessions: Sequence[Encoded], weight: float) -> float:
        """Return `weight` times the sum of the sessions' losses, and add its gradient to the
        bound adapters'."""
        ...

    def generate(self, prompt: Sequence[int], *, count: int, end: int) -> list[int]:
        """At most `count` tokens, each the likeliest; `end` stops and is not returned."""
        ...


def open_backend(chassis: Path, dtype: torch.dtype) -> Backend:
    """Load a chassis: with our own forward if it is a plain Llama, else through transformers."""
    opened = open_chassis(chassis)
    shape = llama_shape(opened.config)
    if shape is None:
        from .hf import HuggingFace  # imports transformers and PEFT, which takes seconds

        return HuggingFace(opened, dtype)
    weights = Weights(weight_files(opened.path))
    return Llama(shape, {name: torch.tensor(weights.array(name)).to(dtype) for name in weights})


def fastest_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it faster than float32, else float32; takes 0.1 s.

    The best of several tries: the machine may be busy. It must win clearly, for it rounds more.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        tries = []
        for _ in range(6):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    faster = seconds[torch.bfloat16] * 1.3 < seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32
