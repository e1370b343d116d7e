"""Frames that have arrived and wait for the driver, taken from one peer after the other.

A peer that sends without pause has two frames here and is made to wait; another peer's frame is
behind one of each other peer, and not behind all that the first could send.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

import trio

T = TypeVar("T")
_EACH_MAX: Final = 2  # of one sender: one that is dealt with next, and one that is read meanwhile


class Inbox(Generic[T]):
    """A queue for each sender, of `frames_max` frames in all."""

    def __init__(self, frames_max: int) -> None:
        self._frames_max = frames_max
        self._frames = 0
        self._queues: dict[object, deque[T]] = {}  # those with frames, whose turn is next first
        self._waiting = trio.lowlevel.ParkingLot()

    async def put(self, sender: object, frame: T) -> None:
        """Add a frame; waits for room."""
        await trio.lowlevel.checkpoint()
        while self._frames >= self._frames_max or len(self._queues.get(sender, ())) >= _EACH_MAX:
            await self._waiting.park()
        self._queues.setdefault(sender, deque()).append(frame)
        self._frames += 1

    def take(self) -> T | None:
        """Return the next frame of the sender whose turn it is; None if there is none."""
        if not self._queues:
            return None
        sender = next(iter(self._queues))
        queue = self._queues.pop(sender)
        frame = queue.popleft()
        if queue:
            self._queues[sender] = queue
        self._frames -= 1
        self._waiting.unpark_all()
        return frame
