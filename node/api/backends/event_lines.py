"""The events of a stream as they come in, wherever the bytes are cut.

A server of somebody else's sends them: no line is kept that grows without end.
"""

from __future__ import annotations

LINE_BYTES_MAX = 1 << 20  # a chunk with a tool call's arguments or many log-probabilities
_ENDS = (b"data", b"error")


class TooLongError(Exception):
    """A line has no end."""


class EventLines:
    """What stands behind `data:`, line by line. Some versions of llama.cpp say `error:` too."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, chunk: bytes) -> list[bytes]:
        """The data that are whole by now. Raises TooLongError."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            raise TooLongError
        found = []
        for line in lines:
            name, colon, data = line.rstrip(b"\r").partition(b":")
            if colon and name in _ENDS and data.strip():
                found.append(data.strip())
        return found
