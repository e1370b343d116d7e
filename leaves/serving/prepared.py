"""An order that can be carried out at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..bundle import AdapterFile
from .orders import Begin, Warm


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as tokens, an adapter as what its checked file holds."""

    order: Begin | Warm
    tokens: tuple[int, ...] = field(default=(), repr=False)
    room: int = 0  # tokens that the answer may have, so that both fit the context
    adapter: AdapterFile | None = field(default=None, repr=False)  # None: at hand, or none wanted
