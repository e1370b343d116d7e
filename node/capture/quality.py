"""How good a session was, from how it went: the score, its tier, and what both are for.

Tier A and B are trained on; an A and a C answer to near-equal asks make a preference pair.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

TIER_A, TIER_B = 70, 50  # the least score of each; C is below
GOOD, FAIR, POOR = "A", "B", "C"  # the names of the tiers


class Outcome(StrEnum):
    """What became of the answer."""

    ACCEPTED = "accepted"
    MODIFIED = "modified"  # taken, after the owner had changed it
    ITERATED = "iterated"  # taken in the end, after corrections
    REJECTED = "rejected"
    ERROR = "error"


_SCORES: Final = {
    Outcome.ACCEPTED: 90,
    Outcome.MODIFIED: 70,
    Outcome.ITERATED: 55,
    Outcome.REJECTED: 25,
    Outcome.ERROR: 10,
}
_CORRECTION, _ERROR = 10, 5  # taken off for each correction that followed, each call that failed
_OFF_MAX = 40


def score(outcome: str, *, corrections: int = 0, errors: int = 0) -> int | None:
    """Return 0 to 100, or None if nothing is known of how the session went."""
    try:
        base = _SCORES[Outcome(outcome)]
    except ValueError:
        return None
    return max(0, base - min(_OFF_MAX, corrections * _CORRECTION + errors * _ERROR))


def tier(quality: int | None) -> str:
    """Return GOOD, FAIR or POOR, or "" for a session of which nothing is known."""
    if quality is None:
        return ""
    return GOOD if quality >= TIER_A else FAIR if quality >= TIER_B else POOR
