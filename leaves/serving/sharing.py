"""How many threads share the work of one token: whichever number was faster of late.

On idle cores more threads read weights faster. On cores that others use too, each product waits for
the thread that was made to wait, and all together are up to three times slower than one alone; the
owner's other work comes and goes, so the question is asked again and again, by trying. The number
of threads changes no result.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

TRY_EVERY = 48  # steps: a try that fails costs a step or so of them
_LAST = 7  # steps that the other number is compared with
_CLEARLY = 0.85  # of the time taken, in two tries running


class Sharing:
    """Between one thread and all of them."""

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._most, self._clock = most, clock
        self._now = most
        self._took: deque[float] = deque(maxlen=_LAST)
        self._since = 0
        self._won = 0  # tries of the other number, one after the other
        self._rows = 0
        self._begun = 0.0

    @property
    def _other(self) -> int:
        return 1 if self._now == self._most else self._most

    @property
    def _trying(self) -> bool:
        return self._since >= TRY_EVERY and len(self._took) == _LAST and self._most > 1

    def begin(self, rows: int) -> int:
        """How many threads a step of so many rows is to have. It begins now."""
        if rows != self._rows:  # its times are not those of before
            self._rows, self._won = rows, 0
            self._took.clear()
        self._begun = self._clock()
        return self._other if self._trying else self._now

    def end(self) -> None:
        """The step has ended."""
        took = self._clock() - self._begun
        if not self._trying:
            self._took.append(took)
            self._since += 1
            return
        if took > _CLEARLY * statistics.median(self._took):
            self._won, self._since = 0, 0
            return
        self._won += 1
        if self._won == 2:
            self._now = self._other
            self._took.clear()
            self._won, self._since = 0, 0
