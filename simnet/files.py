"""A file system that loses power: what was not synced is there in part, torn, or not at all.

A file has the bytes that were synced and those that were written since, by sectors; a crash takes
each of these sectors or leaves it, in no order. The directory is journalled: of what was created,
renamed or removed since it was synced, a crash keeps the first few. So a file that was synced can
still be lost with its name, and one that was renamed before it was synced can come back empty.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class DiskFaults:
    """What a disk does wrong. Shares are of sectors, crashes, writes or syncs."""

    lost: float = 0.5  # F12: of the sectors not synced, those that a crash loses
    torn: float = 0.5  # F11: of crashes, those that tear one sector at a byte
    flip: float = 0.0  # F5: of crashes, those that turn a bit in what was not synced
    full: float = 0.0  # F13: of writes, those for which there is room for a part only
    power: float = 0.0  # F10: of operations, those at which the power goes
    failed_sync: float = 0.0  # F14: of syncs; what was to be synced may be lost, and never said so
    rot: float = 0.0  # F16: of crashes, those after which a bit of the base has turned


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: dict[int, None] = field(default_factory=dict)  # sectors written since the last sync
    resized: bool = False

    def touch(self, start: int, end: int) -> None:
        for sector in range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            self.dirty[sector] = None

    def settle(self) -> None:
        self.durable = bytes(self.data)
        self.dirty.clear()
        self.resized = False


class SimFiles:
    """One directory of files. Raises OSError for the faults that a program is told of."""

    def __init__(self, faults: DiskFaults, rng: Random, count: Counter[str]) -> None:
        self.faults = faults
        self._rng = rng
        self._count = count
        self._files: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._journal: list[dict[str, _File]] = []  # the directory after each change not synced
        self.operations = 0  # so far
        self.fails_at: int | None = None  # the operation at which the power goes

    def names(self) -> list[str]:
        return list(self._files)

    def read(self, name: str) -> bytes:
        return bytes(self._files[name].data)

    def create(self, name: str) -> None:
        """Make an empty file, in place of one of this name."""
        self._enter({**self._files, name: _File()})

    def append(self, name: str, data: bytes) -> None:
        """Write at the end. Raises OSError when the disk is full; a part is written then."""
        self._operate(name)
        file = self._files[name]
        full = self._rng.random() < self.faults.full
        written = data[: self._rng.randrange(len(data))] if full else data
        file.touch(len(file.data), len(file.data) + len(written))
        file.data += written
        if full:
            self._count["F13 no space"] += 1
            raise OSError(errno.ENOSPC, "no space left on device", name)

    def truncate(self, name: str, size: int) -> None:
        self._operate(name)
        file = self._files[name]
        file.touch(size, len(file.data))
        del file.data[size:]
        file.resized = True

    def sync(self, name: str) -> None:
        """Make a file's bytes durable. Raises OSError if the disk fails: then nobody knows."""
        self._operate(name)
        file = self._files[name]
        if self._rng.random() < self.faults.failed_sync:
            self._count["F14 failed sync"] += 1
            raise OSError(errno.EIO, "input/output error", name)
        file.settle()

    def rename(self, old: str, new: str) -> None:
        files = {**self._files, new: self._files[old]}
        del files[old]
        self._enter(files)

    def remove(self, name: str) -> None:
        self._enter({other: file for other, file in self._files.items() if other != name})

    def sync_directory(self) -> None:
        """Make the names durable."""
        self._operate(".")
        self._settle()

    def _settle(self) -> None:
        self._durable = self._files
        self._journal.clear()

    def _operate(self, name: str) -> None:
        self.operations += 1
        goes = self._rng.random() < self.faults.power
        if goes or self.operations == self.fails_at:
            self._count["F10 power lost"] += 1
            raise OSError(errno.EIO, "the power went", name)

    def _enter(self, files: dict[str, _File]) -> None:
        self._operate(".")
        self._files = files
        self._journal.append(files)

    # ---- power loss ----------------------------------------------------------------------------

    def crash(self) -> int:
        """Lose power; return how many sectors were lost. What is there then is durable."""
        kept = self._rng.randint(0, len(self._journal))
        self._files = self._journal[kept - 1] if kept else self._durable
        lost = 0
        for file in self._files.values():
            lost += self._crash_file(file)
        self._settle()
        return lost

    def rot(self, name: str) -> None:
        """Turn a bit in what was synced long ago."""
        if name in self._files and (data := self._files[name].data):
            self._count["F16 rotten"] += 1
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            self._files[name].settle()

    def _crash_file(self, file: _File) -> int:
        rng, faults = self._rng, self.faults
        kept = [sector for sector in file.dirty if rng.random() >= faults.lost]
        lost = len(file.dirty) - len(kept)
        was, now = file.durable, bytes(file.data)
        shrunk = file.resized and rng.random() < 0.5
        size = min(len(was), len(now)) if shrunk else len(was)
        size = max([size, *(_end(sector, now) for sector in kept)])
        after = bytearray(was[:size].ljust(size, b"\0"))
        for sector in kept:
            _copy(now, after, sector, _end(sector, now))
        if kept and rng.random() < faults.torn:
            self._count["F11 torn write"] += 1
            sector = rng.choice(kept)
            start = sector * SECTOR_BYTES
            end = min(_end(sector, now), len(after))
            cut = rng.randint(start, end)
            after[cut:end] = was[cut:end].ljust(end - cut, b"\0")
        if kept and rng.random() < faults.flip:
            self._count["F5 flipped on disk"] += 1
            sector = rng.choice(kept)
            # Bytes that were synced stay as they are, also where their sector is written again:
            # SQLite relies on this too (its "powersafe overwrite").
            start, end = max(sector * SECTOR_BYTES, len(was)), min(_end(sector, now), len(after))
            if start < end:
                after[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        file.data = after
        file.settle()
        return lost


def _end(sector: int, data: bytes) -> int:
    return min((sector + 1) * SECTOR_BYTES, len(data))


def _copy(source: bytes, target: bytearray, sector: int, end: int) -> None:
    start = sector * SECTOR_BYTES
    if start < end:
        target[start:end] = source[start:end]
