"""Ends a scrubbing that nobody waits for any longer, between two of its steps.

A process that ends does not wait for a long text; why it must not leave it running either is told
in `node.threads`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .scrubber import ScrubError


def halting(halt: threading.Event) -> Callable[[], float]:
    """A timer for `PIIScrubber`: once `halt` is set, every text ends at its next step."""

    def timer() -> float:
        if halt.is_set():
            raise ScrubError("it was given up: the process ends")
        return time.thread_time()

    return timer
