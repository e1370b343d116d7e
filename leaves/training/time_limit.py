"""The time that an order may take, which stands still while its child is stopped.

A child that the governor pauses for an evening has not taken too long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Does something later, once, unless it is cancelled."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


def _timer(seconds: float, over: Callable[[], None]) -> Timer:
    timer = threading.Timer(seconds, over)
    timer.daemon = True
    return timer


class TimeLimit:
    """Calls `over` once an order has taken too long. Safe to use from several threads."""

    def __init__(
        self,
        limit_s: float | None,
        over: Callable[[], None],
        *,
        now_s: Callable[[], float] = time.monotonic,
        timer: Callable[[float, Callable[[], None]], Timer] = _timer,
    ) -> None:
        """limit_s: of each order; None is unlimited. now_s: of a clock that only goes forward."""
        self._limit_s, self._over, self._now_s, self._make = limit_s, over, now_s, timer
        self._lock = threading.Lock()
        self._left_s: float | None = None  # None: no order is at work
        self._held = False
        self._since_s = 0.0
        self._timer: Timer | None = None

    def begin(self) -> None:
        """An order begins; while the time is held, it has all of it left."""
        with self._lock:
            self._stop()
            self._left_s = self._limit_s
            self._go_on()

    def end(self) -> None:
        """The order is done."""
        with self._lock:
            self._stop()
            self._left_s = None

    def hold(self) -> None:
        """Let the time stand still, for this order and for those that follow."""
        with self._lock:
            self._held = True
            self._stop()

    def release(self) -> None:
        """Let it go on, with what was left."""
        with self._lock:
            self._held = False
            self._go_on()

    def _go_on(self) -> None:
        if self._left_s is not None and not self._held and self._timer is None:
            self._since_s = self._now_s()
            self._timer = self._make(self._left_s, self._over)
            self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None and self._left_s is not None:
            self._timer.cancel()
            self._timer = None
            self._left_s = max(0.0, self._left_s - (self._now_s() - self._since_s))
