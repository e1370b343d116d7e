"""Whether a round looks at all sessions anew or gives the new ones to the leaves it knows.

The specification's §9: a re-cluster of everything each time while that takes seconds, every day
while it takes a minute, then every week and every month, with the nearest leaf in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from .lifecycle import Rules
from .model import DAY_S, Instant


@dataclass(frozen=True, slots=True)
class Full:
    """All sessions are clustered anew."""

    why: str


@dataclass(frozen=True, slots=True)
class Incremental:
    """New sessions go to the nearest leaf that takes them."""

    why: str


Mode = Full | Incremental


def mode(sessions: int, last_full: Instant | None, now: Instant, rules: Rules) -> Mode:
    """Return how this round clusters `sessions` sessions.

    last_full: when the last full re-cluster began, None if there was none. Whole days of UTC are
    counted: a nightly round that begins a minute earlier than the night before is still daily.
    """
    if last_full is None:
        return Full("there was no full re-cluster yet")
    if sessions <= rules.full_each_round_sessions:
        limit = rules.full_each_round_sessions
        return Full(f"{sessions:,} sessions; up to {limit:,} each round looks at all of them")
    days = _days_between(sessions, rules)
    passed = now // DAY_S - last_full // DAY_S
    ago = f"the last full re-cluster was {passed} days ago"
    every = f"{sessions:,} sessions are clustered anew every {days} days"
    return Full(f"{ago}; {every}") if passed >= days else Incremental(f"{ago}; {every}")


def drifted(unplaced: int, fresh: int, rules: Rules) -> Full | None:
    """Return the full re-cluster that new sessions ask for because no leaf takes them, if so.

    Fewer than make a leaf are no reason: nothing could come of them.
    """
    if fresh == 0 or unplaced < max(rules.seed_sessions, rules.drift_share * fresh):
        return None
    share = 100 * unplaced / fresh
    return Full(f"no leaf takes {unplaced:,} of {fresh:,} new sessions ({share:.0f} %)")


def _days_between(sessions: int, rules: Rules) -> int:
    if sessions >= rules.full_monthly_sessions:
        return 30
    return 7 if sessions >= rules.full_weekly_sessions else 1
