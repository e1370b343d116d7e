"""Which sessions the owner has deleted one by one, so that no import brings them back.

A transcript that a session came from may still lie on the machine, and its id is made of what the
transcript says. Ids are kept as keyed hashes: the file alone tells nothing of what was deleted.
Deleting everything revokes consent, and a new consent is the owner's word to import again; so it
forgets the tombstones too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from node.errors import OwnerError
from node.home import write_atomic

FILE = ".deleted"
_HASH_BYTES = 16


class TombstonesError(OwnerError):
    """Which sessions were deleted cannot be read, so nothing may be taken in."""


class _Stones(msgspec.Struct, frozen=True):
    key: bytes
    hashes: tuple[bytes, ...]


class Tombstones:
    """The deleted sessions of one corpus; follows what other processes write."""

    def __init__(self, root: Path) -> None:
        self._path = root / FILE
        self._seen: tuple[int, int] | None = None
        self._key = b""
        self._hashes: frozenset[bytes] = frozenset()

    def refresh(self) -> bool:
        """Read the file again if it has changed; True if there are any tombstones."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._seen, self._key, self._hashes = None, b"", frozenset()
            return False
        stamp = found.st_ino, found.st_mtime_ns
        if stamp != self._seen:
            stones = self._read()
            self._seen, self._key = stamp, stones.key
            self._hashes = frozenset(stones.hashes)
        return bool(self._hashes)

    def __contains__(self, session_id: str) -> bool:
        """As of the last `refresh`."""
        return bool(self._hashes) and self._hash(session_id) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, session_ids: Iterable[str]) -> None:
        """Remember deleted sessions; durable once this returns."""
        self.refresh()
        self._key = self._key or os.urandom(32)
        hashes = self._hashes | {self._hash(session_id) for session_id in session_ids}
        write_atomic(self._path, msgspec.json.encode(_Stones(self._key, tuple(sorted(hashes)))))
        self.refresh()

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)
        self.refresh()

    def _read(self) -> _Stones:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Stones)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise TombstonesError(
                f"{self._path} cannot be read: {problem}",
                unchanged="Nothing is captured or imported; what was captured before is safe.",
                next_step=f"Restore {self._path} from a backup, or remove it: what was deleted "
                "session by session can then be imported again.",
            ) from None

    def _hash(self, session_id: str) -> bytes:
        data = session_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=_HASH_BYTES).digest()
