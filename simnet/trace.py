"""What happened, as one hash, and the end of it in words."""

from __future__ import annotations

import hashlib
from collections import deque
from struct import Struct
from zlib import crc32

from gossip.ports import PeerId

TAIL = 4000  # events remembered, to show what led to a failure
_FLUSH_BYTES = 1 << 16
_PACK = Struct("<dII").pack


class Trace:
    """Takes note of every event. Two runs with one hash have done the same at the same times."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._notes = bytearray()
        # Where, what and with whom: by number once they were spelled out, for that is done often.
        self._numbers: dict[tuple[PeerId, str, PeerId], int] = {}
        self._tail: deque[tuple[float, tuple[PeerId, str, PeerId], int]] = deque(maxlen=TAIL)

    def note(self, now: float, name: PeerId, what: str, peer: PeerId, frame: bytes) -> None:
        """Note an event. A frame enters by its CRC: chance is to be told apart, not malice."""
        said, check = (name, what, peer), crc32(frame)
        number = self._numbers.get(said)
        if number is None:
            number = self._numbers[said] = len(self._numbers)
            self._notes += f"{name} {what} {peer}\n".encode()
        self._notes += _PACK(now, check, number)
        self._tail.append((now, said, check))
        if len(self._notes) > _FLUSH_BYTES:
            self._flush()

    def hexdigest(self) -> str:
        self._flush()
        return self._hash.hexdigest()

    def tail(self) -> list[tuple[float, PeerId, str]]:
        """The last events: when, where and what."""
        return [
            (now, name, " ".join(filter(None, (what, peer, f"{check:08x}" if check else ""))))
            for now, (name, what, peer), check in self._tail
        ]

    def _flush(self) -> None:
        self._hash.update(self._notes)
        self._notes.clear()
