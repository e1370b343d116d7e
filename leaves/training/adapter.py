"""LoRA adapters while they are worked on: views of one flat vector, and their file.

One vector means that clipping, an optimiser's step and a checkpoint are each a few operations
instead of hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .tensors import Array, pack

# From the sessions' losses to the weight of each in what is learned; a weight may be negative.
Weigh = Callable[[Sequence[float]], Sequence[float]]

_PREFIX = "base_model.model."


class Pair(NamedTuple):
    """One adapter and where its gradient is summed; all four are float32."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    grad_a: Tensor
    grad_b: Tensor


class Adapters:
    """The adapters of one leaf, by the name of the module each sits on."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: int) -> None:
        """shapes: by PEFT's tensor names, as `Chassis.adapter_shapes` gives them."""
        self.rank, self.alpha = rank, alpha
        self._names = sorted(shapes)
        size = sum(math.prod(shape) for shape in shapes.values())
        self.values, self.grads = torch.zeros(size), torch.zeros(size)
        self._views: dict[str, Tensor] = {}
        grads: dict[str, Tensor] = {}
        at = 0
        for name in self._names:
            end = at + math.prod(shapes[name])
            self._views[name] = self.values[at:end].view(shapes[name])
            grads[name] = self.grads[at:end].view(shapes[name])
            at = end
        self.pairs: dict[str, Pair] = {}
        for name in self._names:
            if name.endswith(".lora_A.weight"):
                other = name.replace(".lora_A.", ".lora_B.")
                module = name[len(_PREFIX) : -len(".lora_A.weight")]
                pair = Pair(self._views[name], self._views[other], grads[name], grads[other])
                self.pairs[module] = pair

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def initialise(self, seed: int) -> None:
        """Start as LoRA does: A uniform within 1/√in, B zero, so that nothing changes at first."""
        generator = torch.Generator().manual_seed(seed)
        self.values.zero_()
        for module in sorted(self.pairs):
            a = self.pairs[module].a
            a.uniform_(-1, 1, generator=generator).mul_(a.shape[1] ** -0.5)

    def load(self, tensors: Mapping[str, Array]) -> None:
        for name in self._names:
            self._views[name].copy_(torch.from_numpy(np.array(tensors[name])))

    def file(self) -> bytes:
        """The adapter in PEFT's layout, float32; rank and alpha stand in the metadata."""
        tensors = {name: self._views[name].numpy() for name in self._names}
        return pack(tensors, {"format": "pt", "rank": str(self.rank), "alpha": str(self.alpha)})
