"""Which implementation answers: our own forward for a plain Llama, else transformers'."""

from __future__ import annotations

import torch

from ..training.backend import fastest_dtype
from ..training.chassis import Chassis, llama_shape
from .stepping import Stepper


def open_stepper(chassis: Chassis, dtype: str | None, threads: int) -> tuple[Stepper, str]:
    """Load a chassis; returns also the type that its weights are held in.

    dtype: None takes the one that this machine multiplies faster.
    """
    torch.set_num_threads(threads)
    chosen: torch.dtype = getattr(torch, dtype) if dtype else fastest_dtype()
    name = str(chosen).removeprefix("torch.")
    if llama_shape(chassis.config) is not None:
        from .llama import LlamaStepper

        return LlamaStepper(chassis, chosen, threads), name
    from .hf import HuggingFaceStepper

    return HuggingFaceStepper(chassis, chosen), name
