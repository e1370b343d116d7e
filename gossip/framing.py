"""Frames on a byte stream: four bytes of length, then that many bytes.

A frame's length is checked before a byte of it is kept, and its bytes are kept only as they
arrive, so that a peer cannot make us allocate what it has not sent.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol

import trio

from .ports import FRAME_BYTES_MAX

_LENGTH = struct.Struct(">I")
# A muxer may answer each read with a window update, encrypted and in a packet of its own:
# small reads cost a factor of six in throughput.
_READ_BYTES = 256 * 1024


class FrameError(Exception):
    """What arrived is no frame. `reason` is a fixed phrase, to be counted by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ByteSource(Protocol):
    """A stream to read from; at its end it returns nothing or raises EOFError."""

    async def read(self, n: int) -> bytes: ...


def length_of(frame: bytes) -> bytes:
    """Return what goes before the frame."""
    if not 0 < len(frame) <= FRAME_BYTES_MAX:
        raise ValueError(f"a frame has 1 to {FRAME_BYTES_MAX} bytes, not {len(frame)}")
    return _LENGTH.pack(len(frame))


class FrameReader:
    """Takes frames off a stream by large reads."""

    def __init__(self, source: ByteSource, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._source = source
        self._frame_bytes_max = frame_bytes_max
        self._pieces: deque[bytes | memoryview] = deque()  # as they came: joined once
        self._bytes = 0

    async def next(self, *, idle_s: float, frame_s: float) -> bytes | None:
        """Return the next frame, or None where the stream ends, or falls silent, between two.

        idle_s: how long to wait for a frame to begin. frame_s: how long it may then take.
        Raises FrameError on bytes that are no frame, and on a frame that takes too long.
        """
        if not self._bytes:
            with trio.move_on_after(idle_s):
                if not await self._read_more():
                    return None
        if not self._bytes:
            return None
        deadline = trio.current_time() + frame_s
        await self._fill(_LENGTH.size, deadline)
        (size,) = _LENGTH.unpack(self._take(_LENGTH.size))
        if not 0 < size <= self._frame_bytes_max:
            raise FrameError("frame too large" if size else "frame empty")
        await self._fill(size, deadline)
        return self._take(size)

    def _take(self, size: int) -> bytes:
        """Remove the first so many bytes, which must be here."""
        self._bytes -= size
        taken: list[bytes | memoryview] = []
        while size:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(memoryview(piece)[size:])
                piece = memoryview(piece)[:size]
            taken.append(piece)
            size -= len(piece)
        return b"".join(taken)

    async def _fill(self, size: int, deadline: float) -> None:
        with trio.move_on_at(deadline):
            while self._bytes < size:
                if not await self._read_more():
                    raise FrameError("frame cut short")
        if self._bytes < size:
            raise FrameError("frame too slow")

    async def _read_more(self) -> bool:
        """Wait for more bytes; False at the end of the stream."""
        try:
            data = await self._source.read(_READ_BYTES)
        except EOFError:
            return False
        self._pieces.append(data)
        self._bytes += len(data)
        return bool(data)
