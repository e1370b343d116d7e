"""What training and evaluation ask of a chassis in memory, and which implementation answers.

Only the child process imports this: it needs torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil
import torch

from .adapter import Adapters, Weigh
from .chassis import llama_shape, open_chassis, weight_files
from .encode import Encoded
from .llama import Llama
from .tensors import Weights

DEVICE_VARIABLE = "GROOVE_DEVICE"


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

    def learn(self, sessions: Sequence[Encoded], weigh: Weigh) -> list[float]:
        """Return the sessions' losses, as `losses` does, and add the gradient of the sum of
        weight times loss to the bound adapters'.

        weigh: called once with the losses, gives a weight for each; a weight may be negative.
        A gradient is linear in the weights, so one forward is enough even if they depend on it.
        """
        ...

    def recalls(self, sessions: Sequence[Encoded]) -> list[list[bool]]:
        """For each completion token, whether it is the likeliest after all that is before it."""
        ...

    def digest(self) -> bytes:
        """SHA-256 of the chassis' weights as they are in memory; 0.3 s for SmolLM2."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, count: int, end: int
    ) -> list[list[int]]:
        """To each prompt at most `count` tokens, each the likeliest; `end` stops and is not
        returned."""
        ...


def open_backend(
    chassis: Path, dtype: torch.dtype, *, device: torch.device | None = None
) -> Backend:
    """Load a chassis: with our own forward if it is a plain Llama, else through transformers.

    device: None takes `best_device`.
    """
    opened, chosen = open_chassis(chassis), device or best_device()
    shape = llama_shape(opened.config)
    if shape is None:
        from .hf import HuggingFace  # imports transformers and PEFT, which takes seconds

        return HuggingFace(opened, dtype, chosen)
    files = Weights(weight_files(opened.path))
    weights = {name: torch.tensor(files.array(name)).to(chosen, dtype) for name in files}
    return Llama(shape, weights, kept_bytes_max=free_bytes(chosen) // 4)


def best_device() -> torch.device:
    """The one named by GROOVE_DEVICE (cpu, cuda, cuda:1, mps), else CUDA, else MPS, else the CPU.

    Raises ValueError for a name that torch does not know or a device that is not here.
    """
    wanted = os.environ.get(DEVICE_VARIABLE, "").strip()
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps_available()}
    if not wanted:
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if here[kind]))
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(
            f"{DEVICE_VARIABLE}={wanted!r} is no device; use cpu, cuda or mps"
        ) from None
    if not here.get(device.type):
        found = ", ".join(kind for kind, present in here.items() if present)
        raise ValueError(f"{DEVICE_VARIABLE}={wanted!r}: this machine has {found}")
    return device


def mps_available() -> bool:
    return torch.backends.mps.is_available()


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken, now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)  # MPS shares it with the CPU


def fastest_dtype() -> torch.dtype:
    """What `best_device` multiplies faster: on a CPU bfloat16 or float32; takes 0.1 s.

    The best of several tries: the machine may be busy. It must win clearly, for it rounds more.
    """
    device = best_device()
    if device.type != "cpu":
        short = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if short else torch.float32
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
