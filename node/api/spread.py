"""How long things took, as counts in fixed steps: what a histogram of Prometheus is made of."""

from __future__ import annotations

from bisect import bisect_left

# Seconds; the first five are about what the node adds itself, the rest about models that write.
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Spread:
    """One histogram. A value on a step counts as within it."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(STEPS_S) + 1)  # the last: longer than the last step
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(STEPS_S, seconds)] += 1
        self.sum_s += seconds
