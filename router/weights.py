"""What users made of a leaf's answers, as a small shift of its score.

Cosines say whose domain a prompt is in; outcomes say whether that leaf is any good there. The shift
is bounded, so that no run of luck and no flood of outcomes takes a domain away from its leaf.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from leaves.model import LeafId

BOUND = 0.05  # in cosine: about a tenth of what separates a prompt of a leaf from a stranger
PRIOR = 20  # neutral outcomes that every leaf begins with: ten in a row move it by a third of BOUND
REMEMBERED = 200  # of a leaf's latest outcomes: a leaf that was retrained is not held by its past


def weigh(outcomes: Iterable[tuple[LeafId, bool]]) -> dict[LeafId, float]:
    """Return the weight of each leaf that has an outcome, strictly between -BOUND and BOUND.

    outcomes: (leaf, whether its answer was accepted), oldest first. One more accepted never lowers
    a leaf, one more rejected never raises it, and no outcome moves another leaf.
    """
    latest: dict[LeafId, deque[bool]] = {}
    for leaf, accepted in outcomes:
        latest.setdefault(leaf, deque(maxlen=REMEMBERED)).append(accepted)
    return {
        leaf: BOUND * (2 * sum(kept) - len(kept)) / (len(kept) + PRIOR)
        for leaf, kept in sorted(latest.items())
    }
