"""A store in a log with chained checksums, as SQLite's write-ahead log, over simulated files.

    base        magic, generation, rows, checksum: replaced as a whole by a rename
    log.G       frames since base was made: length, checksum of this frame and all before it, write

A durable write syncs the log. A checksum that runs through all frames makes what is read back a
prefix of what was written, whichever sectors a crash has kept: a frame that survived without the
one before it counts for nothing. The one before the last durable write cannot have been lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final
from zlib import crc32

import msgspec

from gossip.ports import Record

from .files import SimFiles

CHECKPOINT_BYTES: Final = 1 << 18  # of log, after which base is written anew
_FRAME: Final = Struct("<II")
_BASE: Final = Struct("<8sII")
_MAGIC: Final = b"groove\0\1"

Row = tuple[str, bytes]
_Put = tuple[str, bytes, bytes]
_Write = tuple[list[_Put], list[Row]]


class LogDamagedError(Exception):
    """The base is not whole. It can be put aside: peers hold what is needed."""


class LogStore:
    """A `gossip.ports.Store`. After an OSError it must not be used: open it anew."""

    def __init__(self, files: SimFiles, *, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        """Open what is there, and cut what a crash left behind. Raises LogDamagedError, OSError."""
        self._files = files
        self._checkpoint_bytes = checkpoint_bytes
        self._rows: dict[Row, bytes] = {}
        self._generation = self._read_base() if "base" in files.names() else 0
        self._sum = _first_sum(self._generation)
        self._size = 0
        if self._log in files.names():
            self._read_log()
        else:
            files.create(self._log)
        for name in files.names():
            if name not in ("base", self._log):
                files.remove(name)
        files.sync(self._log)
        files.sync_directory()

    @property
    def _log(self) -> str:
        return f"log.{self._generation}"

    def load(self) -> Sequence[Record]:
        """All records, ordered by (table, key)."""
        return [Record(*row, self._rows[row]) for row in sorted(self._rows)]

    def write(self, puts: Sequence[Record], deletes: Sequence[Row], *, durable: bool) -> None:
        """Apply all of it or nothing. Raises OSError; whether it is applied then is not known."""
        write: _Write = ([(put.table, put.key, put.value) for put in puts], list(deletes))
        payload = msgspec.msgpack.encode(write)
        self._sum = crc32(payload, self._sum)
        self._files.append(self._log, _FRAME.pack(len(payload), self._sum) + payload)
        if durable:
            self._files.sync(self._log)
        self._size += _FRAME.size + len(payload)
        self._apply(write)
        if self._size > self._checkpoint_bytes:
            self._checkpoint()

    def _apply(self, write: _Write) -> None:
        puts, deletes = write
        for row in deletes:
            self._rows.pop(row, None)
        self._rows.update({(table, key): value for table, key, value in puts})

    def _checkpoint(self) -> None:
        """Write all rows to a new base. Each step is durable before the next relies on it."""
        files, old = self._files, self._log
        rows = msgspec.msgpack.encode([(*row, value) for row, value in self._rows.items()])
        generation = self._generation + 1
        files.create("base.new")
        files.append("base.new", _BASE.pack(_MAGIC, generation, crc32(rows, generation)) + rows)
        files.sync("base.new")
        files.create(f"log.{generation}")
        files.rename("base.new", "base")
        files.sync_directory()
        self._generation, self._sum, self._size = generation, _first_sum(generation), 0
        files.remove(old)

    def _read_base(self) -> int:
        data = self._files.read("base")
        if len(data) < _BASE.size:
            raise LogDamagedError("base: cut short")
        magic, generation, checksum = _BASE.unpack_from(data)
        rows = data[_BASE.size :]
        if magic != _MAGIC or crc32(rows, generation) != checksum:
            raise LogDamagedError("base: wrong checksum")
        puts = msgspec.msgpack.decode(rows, type=list[_Put])
        self._rows = {(table, key): value for table, key, value in puts}
        return int(generation)

    def _read_log(self) -> None:
        """Take in the frames up to the first that is not whole, and cut the rest off."""
        data = self._files.read(self._log)
        while (frame := _frame(data, self._size, self._sum)) is not None:
            payload, self._sum = frame
            self._size += _FRAME.size + len(payload)
            self._apply(msgspec.msgpack.decode(payload, type=_Write))
        self._files.truncate(self._log, self._size)


def _frame(data: bytes, at: int, before: int) -> tuple[bytes, int] | None:
    """Return the frame at an offset and the checksum up to it, or None."""
    if len(data) < at + _FRAME.size:
        return None
    length, checksum = _FRAME.unpack_from(data, at)
    payload = data[at + _FRAME.size : at + _FRAME.size + length]
    if not payload or len(payload) < length or crc32(payload, before) != checksum:
        return None
    return payload, checksum


def _first_sum(generation: int) -> int:
    """Where the checksums of a log begin, so that no frame of another log fits."""
    return crc32(_MAGIC + generation.to_bytes(4, "little"))
