"""What the router needs from outside: something that turns a prompt into a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from leaves.model import Matrix, Vector
from leaves.ports import Report, silent

ENCODED_CHARS = 512  # of a prompt; specification §7: "the first 512 characters of the task prompt"


class Encoder(Protocol):
    """Turns texts into unit vectors. Vectors of encoders with different `enc8` never meet."""

    @property
    def enc8(self) -> bytes:
        """Eight bytes that name weights, pooling, normalisation and truncation together."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        """Return one unit row per text, in order. Texts are cut to ENCODED_CHARS here."""
        ...

    def encode_one(self, text: str) -> Vector:
        """Return the vector of one text, equal to its row in a batch within 1e-5."""
        ...
