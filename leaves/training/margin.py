"""By how much a leaf must beat its style control, which differs from run to run itself.

Two style controls of the same schedule, but of other seed and sessions, are not equally good.
A bootstrap over held-out sessions does not see that: it called one of two equivalent adapters
better in two of three pairs. So a win asks for a margin, which is larger than such a difference is
likely to be, and which each node finds for its own chassis and schedule from pairs of controls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ports import Schedule

STYLE_MARGIN = 0.08  # nats per token, before any pair was measured
# Leaves of other seeds differ by up to 0.04, whatever a few pairs of controls say; and pairs on
# sessions that are easy to answer alike must not talk the margin away.
MARGIN_MIN = 0.04
PRIOR_PAIRS = 6  # what `STYLE_MARGIN` is worth against measured pairs
# One retraining in 200 gets over the margin by run-to-run noise alone: a leaf is retrained some 30
# times before anybody looks. Three measured pairs (0.050, 0.016, 0.011) then give 0.082.
COVERED = 0.995
PAIRS_MAX = 32  # kept of each recipe: one that went astray is forgotten in time
MARGINS = "margins.json"  # in the folder of trainings, which a deletion clears
RECIPES_MAX = 16


def margin_from(differences: Sequence[float], *, start: float = STYLE_MARGIN) -> float:
    """Return the margin, in nats per token: an upper prediction bound for the next difference.

    differences: between pairs of style controls on the same held-out sessions, signs ignored.
    start: what no pair at all gives, and what few pairs are shrunk to. Differences are taken as
    normal about 0, their variance as scaled inverse chi-squared beforehand, so that the next one
    is Student's t.
    """
    from scipy.special import stdtrit  # 0.1 s to load; only rounds come here

    scale = start / float(stdtrit(PRIOR_PAIRS, COVERED))
    freedom = PRIOR_PAIRS + len(differences)
    squares = PRIOR_PAIRS * scale**2 + math.fsum(each**2 for each in differences)
    bound = float(stdtrit(freedom, COVERED)) * math.sqrt(squares / freedom)
    return max(min(MARGIN_MIN, start), bound)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """The difference between two style controls: their losses on the same held-out sessions."""
    pairs = [one - other for one, other in zip(first, second, strict=True)]
    return math.fsum(pairs) / len(pairs)


def recipe(chassis: str, schedule: Schedule) -> str:
    """The name under which differences are kept: the chassis' tag and the schedule but its seed."""
    parts = (
        chassis,
        f"steps={schedule.steps}",
        f"batch={schedule.batch}",
        f"rate={schedule.learning_rate:g}",
        f"warmup={schedule.warmup}",
        f"rank={schedule.rank}",
        f"alpha={schedule.alpha}",
        f"tokens={schedule.tokens_max}",
    )
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of run-to-run noise: by recipe, differences between pairs of style controls."""

    differences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def pairs(self, recipe: str) -> int:
        return len(self.differences.get(recipe, ()))

    def margin(self, recipe: str, *, start: float = STYLE_MARGIN) -> float:
        return margin_from(self.differences.get(recipe, ()), start=start)

    def with_difference(self, recipe: str, difference: float) -> Calibration:
        """Add one pair. Raises ValueError if it is no number: such a control went astray."""
        if not math.isfinite(difference):
            raise ValueError(f"a difference between style controls is a number, not {difference}")
        kept = dict(self.differences)
        earlier = kept.pop(recipe, ())  # out and in again: the last used stands last
        kept[recipe] = (*earlier, float(difference))[-PAIRS_MAX:]
        while len(kept) > RECIPES_MAX:
            del kept[next(iter(kept))]
        return Calibration(kept)

    def to_plain(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.differences.items()}

    @staticmethod
    def from_plain(data: object) -> Calibration:
        """The opposite of `to_plain`. Raises ValueError for anything else."""
        calibration = Calibration()
        if not isinstance(data, dict):
            raise ValueError("a calibration is an object of lists of numbers")
        for name, values in data.items():
            if not isinstance(name, str) or not isinstance(values, list):
                raise ValueError("a calibration is an object of lists of numbers")
            for value in values:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError("a calibration is an object of lists of numbers")
                calibration = calibration.with_difference(name, float(value))
        return calibration
