"""One mark for each leaf, the same in every picture: a colour, and a shape once colours run out.

Colours alone cannot tell two hundred leaves apart, and fewer still to the eyes of one man in
twelve. Eight can: their smallest distance in OKLab, also as protanopes, deuteranopes and
tritanopes see them (Machado 2009), is 0.11, five times what is just noticed; so is theirs to grey.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from leaves.model import Leaf, LeafId

COLOURS = (
    "#4488ff",
    "#336611",
    "#eeaa22",
    "#993399",
    "#bbaaee",
    "#cc7711",
    "#55cc99",
    "#0044ff",
)
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, slots=True)
class Mark:
    colour: str
    shape: str


UNASSIGNED = Mark("#8c8c8c", "circle")


def marks(leaves: Iterable[Leaf]) -> dict[LeafId, Mark]:
    """Give each leaf a mark by its id; of two that want one colour the elder has it.

    leaves: all that ever lived: a mark then never changes, for later births come after it. The
    least used colour is taken, from the one that the id names on; the n-th leaf of a colour has
    the n-th shape.
    """
    used = [0] * len(COLOURS)
    out: dict[LeafId, Mark] = {}
    for leaf in sorted(leaves, key=lambda x: (x.created, x.id)):
        wanted = int(leaf.id[:8], 16)
        turn = [(wanted + step) % len(COLOURS) for step in range(len(COLOURS))]
        colour = min(turn, key=used.__getitem__)
        out[leaf.id] = Mark(COLOURS[colour], SHAPES[used[colour] % len(SHAPES)])
        used[colour] += 1
    return out
