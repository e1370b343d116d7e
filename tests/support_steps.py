"""Work in numbers that are the same on any machine, where seconds depend on what else runs.

`steps` sees Python alone. What an extension does is counted at a door of its own, by the test
that needs it; seconds are measured in tests/bench.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(work: Callable[[], object]) -> int:
    """Return how many lines of Python `work` runs in this thread, in whatever it calls.

    The tracer before, such as coverage's, is put back at the end and misses what was counted.
    """
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
        return count

    former = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(former)
    return lines
