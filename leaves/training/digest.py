"""What the weights in memory are: so that a chassis which stays loaded is known to be unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def digest_of(weights: Iterable[Tensor]) -> bytes:
    """SHA-256 of the bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for weight in weights:
        flat = weight.detach().cpu().contiguous().view(-1)
        array: Any = flat.view(torch.uint8).numpy()
        digest.update(array)
    return digest.digest()
