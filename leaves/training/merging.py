"""One adapter out of several: what a merged leaf starts from.

The best adapter of a given rank, in the sense of least squares, for a weighted sum of adapters is
the truncated singular value decomposition of that sum. The sum is a product of tall and flat
factors, so it is decomposed through them and never formed: two 576 x 1536 changes of rank 8 cost a
QR of each factor and the decomposition of a 16 x 16 matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import AdapterFile
from .tensors import Array, pack

_A, _B = ".lora_A.weight", ".lora_B.weight"
_NOTHING = 1e-7  # of the largest singular value: what is smaller is rounding of float32

Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter and its share of the sum; shares need not sum to 1."""

    adapter: AdapterFile
    share: float


def merge(parts: Sequence[Part], rank: int, alpha: int) -> bytes:
    """Return the adapter of this rank nearest to the weighted mean of what the parts add.

    The file is in PEFT's layout, as a training's. Exact if `rank` is at least the rank of the sum.
    Equal parts give equal bytes on one machine, whatever their order. Raises ValueError for no
    part, a share that is not positive, or parts that sit on other modules than the first.
    """
    if not parts or any(not part.share > 0 for part in parts):
        raise ValueError("parts to merge must each have a positive share")
    modules = sorted(name.removesuffix(_A) for name in parts[0].adapter.shapes if name.endswith(_A))
    if any(part.adapter.targets != parts[0].adapter.targets for part in parts):
        raise ValueError("parts sit on different modules and cannot be merged")
    total = sum(part.share for part in parts)
    # In an order of their own: floating sums depend on the order.
    ordered = sorted(
        parts, key=lambda part: (part.share, part.adapter.tensors[modules[0] + _A].tobytes())
    )
    tensors: dict[str, Array] = {}
    for module in modules:
        up = [_scaled(part, module, part.share / total) for part in ordered]
        down = [part.adapter.tensors[module + _A].astype(np.float64) for part in ordered]
        b, a = truncated(np.concatenate(up, axis=1), np.concatenate(down, axis=0), rank)
        root = np.sqrt(rank / alpha)  # the loader multiplies by alpha / rank
        tensors[module + _A] = (a * root).astype(np.float32)
        tensors[module + _B] = (b * root).astype(np.float32)
    return pack(tensors, {"format": "pt", "rank": str(rank), "alpha": str(alpha)})


def _scaled(part: Part, module: str, share: float) -> Wide:
    """The factor B of what a part adds, with its scale and its share in it."""
    scale = part.adapter.alpha / part.adapter.rank
    return part.adapter.tensors[module + _B].astype(np.float64) * (scale * share)


def truncated(left: Wide, right: Wide, rank: int) -> tuple[Wide, Wide]:
    """Return (b, a) of this rank with b @ a nearest to left @ right, both factors alike in size.

    left: shape (out, n). right: shape (n, in). Each row of `a` has its largest entry positive, for
    a decomposition is free to choose signs. A direction that nothing is left of keeps a row of `a`
    of length 1 and a column of zeros in `b`: with both zero it could never be trained again.
    """
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    inner, values, outer = np.linalg.svd(r_left @ r_right.T)
    kept = min(rank, len(values))
    rows = outer[:kept] @ q_right.T
    columns = q_left @ inner[:, :kept]
    signs = np.sign(rows[np.arange(kept), np.abs(rows).argmax(axis=1)])
    size = np.sqrt(np.maximum(values[:kept], 0.0))
    live = values[:kept] > _NOTHING * max(float(values[0]), np.finfo(np.float64).tiny)
    b = np.zeros((left.shape[0], rank))
    a = np.zeros((rank, right.shape[1]))
    b[:, :kept] = columns * np.where(live, signs * size, 0.0)
    a[:kept] = rows * np.where(live, size, 1.0)[:, None] * signs[:, None]
    for spare in range(kept, rank):  # the parts are of lower rank: unit vectors stand in
        a[spare, spare % right.shape[1]] = 1.0
    return b, a
