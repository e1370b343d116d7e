"""Bundles on disk: `ROOT.part` while they come, `ROOT.bundle` once they are whole and durable.

A part has the size of the whole from the start. Which of its chunks are there is never written
down: on resume they are hashed, so there is no record that could disagree with them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from .wire import CHUNK_BYTES, ChunkList, encode

_DISK_RESERVE_BYTES: Final = 64 * 1024 * 1024  # for what must not fail: deletion, retraction
_TOUCH_AGAIN_S: Final = 3600.0
_TOUCHED_MAX: Final = 1024
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)  # Linux


class DiskFullError(OSError):
    """There is no room for a bundle, or there would be none left for anything else."""


class BundleFiles:
    """One folder of bundles, each named by its root. All methods block; call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._touched: dict[bytes, float] = {}  # when, by a clock that never goes back
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, root: bytes) -> Path:
        return self._folder / f"{root.hex()}.bundle"

    def part_path(self, root: bytes) -> Path:
        return self._folder / f"{root.hex()}.part"

    def whole(self, root: bytes) -> ChunkList | None:
        """Return the chunk list of a bundle that is here and has this root, else None."""
        try:
            data = self.path(root).read_bytes()
        except FileNotFoundError:
            return None
        chunks = chunk_list(data)
        return chunks if root_of(chunks) == root else None

    def check_part(self, root: bytes, size_bytes: int, hashes: bytes) -> frozenset[int]:
        """Make room for the bundle, and return the chunks of it that are there already."""
        descriptor = self._open_part(root, os.O_CREAT)
        with os.fdopen(descriptor, "r+b") as part:
            resumed = os.fstat(part.fileno()).st_size == size_bytes
            if not resumed:
                free = shutil.disk_usage(self._folder).free
                if free < size_bytes + _DISK_RESERVE_BYTES:
                    self.part_path(root).unlink()
                    raise DiskFullError(f"{self._folder}: {free} bytes free, {size_bytes} wanted")
                part.truncate(0)
                os.posix_fallocate(part.fileno(), 0, size_bytes)
                return frozenset()
            good = set()
            for index in range(len(hashes) // 32):
                chunk = part.read(CHUNK_BYTES)
                if hashlib.sha256(chunk).digest() == hashes[32 * index : 32 * index + 32]:
                    good.add(index)
            return frozenset(good)

    def write_chunk(self, root: bytes, index: int, data: bytes) -> None:
        descriptor = self._open_part(root, 0)
        try:
            written = os.pwrite(descriptor, data, index * CHUNK_BYTES)
            if written != len(data):
                raise DiskFullError(f"{self.part_path(root)}: {written} of {len(data)} written")
        finally:
            os.close(descriptor)

    def flush(self, root: bytes) -> None:
        """Bring to disk what was written of a part, so that its end has little left to wait for."""
        descriptor = self._open_part(root, 0)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def finish(self, root: bytes) -> Path:
        """Make the part durable under its final name."""
        descriptor = self._open_part(root, 0)
        try:
            os.fsync(descriptor)
        except OSError:
            # The pages may be marked clean and lost: a second fsync would lie. Begin again.
            self.part_path(root).unlink()
            raise
        finally:
            os.close(descriptor)
        self.part_path(root).replace(self.path(root))
        self._sync_folder()
        return self.path(root)

    def add(self, data: bytes) -> ChunkList:
        """Put a bundle of one's own here, whole and durable."""
        chunks = chunk_list(data)
        root = root_of(chunks)
        if self.whole(root) is None:
            self.check_part(root, len(data), chunks.hashes)
            for index in range(len(chunks.hashes) // 32):
                offset = index * CHUNK_BYTES
                self.write_chunk(root, index, data[offset : offset + CHUNK_BYTES])
            self.finish(root)
        return chunks

    def read_chunk(self, root: bytes, index: int) -> bytes | None:
        """Return one chunk of a whole bundle, or None if it is not here."""
        try:
            with self.path(root).open("rb") as bundle:
                bundle.seek(index * CHUNK_BYTES)
                self.touch(root)
                return bundle.read(CHUNK_BYTES) or None
        except FileNotFoundError:
            return None

    def cached_chunk(self, root: bytes, index: int) -> bytes | None:
        """Return a chunk if that needs no disk, so that it may be called on an event loop."""
        if not _NOWAIT:
            return None
        try:
            descriptor = os.open(self.path(root), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            size = min(CHUNK_BYTES, os.fstat(descriptor).st_size - index * CHUNK_BYTES)
            chunk = bytearray(max(0, size))
            came = os.preadv(descriptor, [chunk], index * CHUNK_BYTES, _NOWAIT)
            self.touch(root)
            return bytes(chunk) if chunk and came == size else None
        except OSError:  # not in memory, or a file system that cannot tell
            return None
        finally:
            os.close(descriptor)

    def touch(self, root: bytes) -> None:
        """Note in a bundle's times that it was used; not again for an hour."""
        now = time.monotonic()
        if now - self._touched.get(root, -_TOUCH_AGAIN_S) < _TOUCH_AGAIN_S:
            return
        self._touched.pop(root, None)
        self._touched[root] = now
        if len(self._touched) > _TOUCHED_MAX:
            del self._touched[next(iter(self._touched))]
        with suppress(OSError):  # it has just gone, or the disk is read-only
            os.utime(self.path(root))

    def remove(self, root: bytes) -> None:
        """Delete a bundle and its part, durably."""
        for path in (self.path(root), self.part_path(root)):
            path.unlink(missing_ok=True)
        self._sync_folder()

    def _open_part(self, root: bytes, flags: int) -> int:
        return os.open(self.part_path(root), os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def chunk_list(data: bytes) -> ChunkList:
    view = memoryview(data)
    hashes = b"".join(
        hashlib.sha256(view[offset : offset + CHUNK_BYTES]).digest()
        for offset in range(0, len(data), CHUNK_BYTES)
    )
    return ChunkList(len(data), CHUNK_BYTES, hashes)


def root_of(chunks: ChunkList) -> bytes:
    """Return the name of a bundle: the hash that its owner signs in a card."""
    return hashlib.sha256(encode(chunks)).digest()
