"""What waits to be sent to one peer on one channel, counted in bytes."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

_SMALL_BYTES: Final = 64 * 1024  # any message but a chunk


class Budget:
    """Bytes that all queues together may hold."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0


class Outbox:
    """A queue of frames for one writer. What does not fit is refused, never waited for:
    one peer that does not read must not hold up what the others are sent."""

    def __init__(self, bytes_max: int, budget: Budget) -> None:
        self._bytes_max = bytes_max
        self._budget = budget
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.Event()

    def put(self, frame: bytes) -> bool:
        """Queue the frame; False if it does not fit. An empty queue takes any one frame, and a
        small one though others have filled the budget: who reads is told on."""
        size = len(frame)
        full = self._bytes + size > self._bytes_max and self._frames
        spent = self._budget.bytes_held + size > self._budget.bytes_max
        if full or (spent and (self._frames or size > _SMALL_BYTES)):
            return False
        self._frames.append(frame)
        self._bytes += size
        self._budget.bytes_held += size
        self._filled.set()
        return True

    async def first(self, idle_s: float) -> bytes | None:
        """Wait for a frame and return it, still queued; None after `idle_s` without one."""
        if not self._frames:
            self._filled = trio.Event()
            with trio.move_on_after(idle_s):
                await self._filled.wait()
        return self._frames[0] if self._frames else None

    @property
    def waits(self) -> bool:
        """True if a frame is queued."""
        return bool(self._frames)

    def drop_first(self) -> None:
        size = len(self._frames.popleft())
        self._bytes -= size
        self._budget.bytes_held -= size

    def clear(self) -> int:
        """Drop all frames, and return how many there were."""
        dropped = len(self._frames)
        while self._frames:
            self.drop_first()
        return dropped
