"""What the engine asks of a chassis in memory, whichever implementation answers.

Only the child process imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..bundle import AdapterFile


class Segment(NamedTuple):
    """The next tokens of one text, after those that its memory holds already."""

    memory: Any  # keys and values so far, as `Stepper.memory` made them
    tokens: Sequence[int]
    worn: Any  # an adapter as `Stepper.put_on` made it; None: the bare chassis
    speaks: bool  # whether what follows the last token is wanted


class Stepper(Protocol):
    """A frozen chassis that computes some texts further, each under an adapter of its own."""

    rewinds: bool  # whether a text's end can be forgotten

    def memory(self, tokens_max: int) -> Any:
        """Room for the keys and values of a text."""
        ...

    def rewind(self, memory: Any, tokens: int, tokens_max: int) -> None:
        """Forget all but the first tokens, and have room for another number at most."""
        ...

    def memory_bytes(self, tokens: int) -> int:
        """What a text of so many tokens takes."""
        ...

    def put_on(self, adapter: AdapterFile) -> Any:
        """Have an adapter ready to be worn."""
        ...

    def take_off(self, worn: Any) -> None:
        """Forget it; no segment wears it any more."""
        ...

    def step(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        """Compute all segments, and return for each that speaks the logits after its last token.

        What a segment comes to depends on no other segment, but for rounding.
        """
        ...

    def digest(self) -> bytes:
        """SHA-256 of the chassis' weights as they are in memory."""
        ...
