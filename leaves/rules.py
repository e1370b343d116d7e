"""The thresholds of a leaf's life, in one place, each with the clause that asks for it.

They are `[rules]` of groove.toml. The clauses are of the leaf architecture document; what has none
is ours, and says what it is for.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

Approve = Literal["auto", "ask"]
COUNT_MAX = 1_000_000_000  # far beyond any corpus
_NOUGHT = frozenset(  # of these 0 means: at once, never, or whatever their number
    (
        "dormant_days",
        "dormant_sessions_per_month",
        "stay_days",
        "full_each_round_sessions",
        "full_weekly_sessions",
        "full_monthly_sessions",
    )
)
_COSINES = frozenset(("merge_cosine", "split_cosine"))
_SHARES = frozenset(("sprout_gate", "drift_share", "starters_leave", "replay_drop", "replay_doubt"))


def bounds(name: str) -> tuple[int, int] | None:
    """The least and the greatest value of a rule; None of one that is a word."""
    if name == "approve":
        return None
    if name in _COSINES:
        return -1, 1
    if name in _SHARES:
        return 0, 1
    return (0 if name in _NOUGHT else 1), COUNT_MAX


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every threshold of a leaf's life."""

    branch_sessions: int = 1000  # §4, level 1: smallest branch
    seed_sessions: int = 200  # §5 SEED: smallest cluster that makes a leaf
    child_sessions: int = 100  # §4, level 3 and §5 SPLIT: smallest specialisation
    first_discovery_sessions: int = 1000  # §8: starters alone serve before this many sessions
    skill_sessions: int = 500  # §5 SPROUT: code, journalism, general
    reasoning_sessions: int = 300  # §5 SPROUT: research, planning
    sprout_gate: float = 0.3  # §5 SPROUT: below this confidence the parent serves
    sprout_retrain_sessions: int = 100  # new sessions before a sprout is trained again
    mature_sessions: int = 500  # §5 MATURE: fewest of a mature leaf
    mature_wins: int = 2  # rounds won on fresh held-out sessions
    mature_retrain_sessions: int = 500  # §5 MATURE: retrained every so many new sessions
    mature_retrain_days: int = 30  # §5 MATURE: "or monthly, whichever comes first"
    dormant_days: int = 30  # §5 PRUNE: not routed to, and how old a leaf must be first
    dormant_sessions_per_month: int = 10  # §5 PRUNE: with fewer new ones it rests
    regressions: int = 3  # §5 PRUNE: sure ones in a row; a single one may be chance
    missed_reclusters: int = 3  # a seed not found this often is dissolved
    merge_cosine: float = 0.92  # §5 MERGE: leaves nearer than this are one
    merge_sessions: int = 800  # §5 MERGE: together fewer than this
    split_cosine: float = 0.90  # parts nearer than this are none: a little drift would merge them
    part_looks: int = 3  # full looks in a row in which parts show: a cut of one day is none
    stay_days: int = 7  # how long a leaf stays in a stage that it came to, so that it never flaps,
    surge: float = 10.0  # unless its sessions have become so many times as many in that time
    approve: Approve = "auto"  # §10: "ask" has splits and merges wait for the owner's word
    ask_again: float = 1.5  # what was refused is proposed anew when so many times as large
    full_each_round_sessions: int = 10_000  # §9: up to here each round clusters all sessions anew
    full_weekly_sessions: int = 100_000  # §9: from here weekly; between the two daily
    full_monthly_sessions: int = 1_000_000  # §9: from here monthly
    drift_share: float = 0.25  # of new sessions in no leaf, from which all are clustered anew
    starters_leave: float = 0.8  # §8: data-driven leaves take so much; then starters are deprecated
    starters_sessions: int = 1000  # of the last so many sessions
    replay_sessions: int = 1000  # §12, phase 4: a new table is compared on so many recent sessions
    replay_drop: float = 0.05  # and is refused if worse by so much: good ones differ by 0.02
    replay_doubt: float = 0.01  # and chance would do that so seldom (exact sign test)

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            within = bounds(name)
            # Not `<` and `>`: what is not a number is in no order, and must fail.
            if within is not None and not within[0] <= value <= within[1]:
                low, high = within
                raise ValueError(f"rules.{name} must be {low} to {high:,}, not {value!r}")
        if self.child_sessions > self.seed_sessions:
            raise ValueError(
                f"rules.child_sessions ({self.child_sessions}) must not exceed "
                f"rules.seed_sessions ({self.seed_sessions})"
            )
        if self.split_cosine > self.merge_cosine:
            raise ValueError(
                f"rules.split_cosine ({self.split_cosine}) must not exceed "
                f"rules.merge_cosine ({self.merge_cosine}): parts would merge as soon as they are"
            )
        if self.approve not in get_args(Approve):
            raise ValueError(f'rules.approve must be "auto" or "ask", not {self.approve!r}')
