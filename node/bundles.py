"""Bundles on disk, own and foreign, under one address: the hash that a signed card names.

So a bundle made here and one that came from a peer are found, served and deleted alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from gossip.bundle_files import BundleFiles, chunk_list, root_of
from gossip.wire import CHUNK_BYTES, CHUNKS_MAX, ChunkList, encode

from .errors import OwnerError


class WrongBlobError(OwnerError):
    """A store has something else under an address than what the address says."""


def address_of(data: bytes) -> str:
    """The address under which a blob is kept, here and everywhere."""
    return root_of(chunk_list(data)).hex()


def checked(address: str, data: bytes, where: str) -> bytes:
    """Return a blob that came from a store that nobody vouches for; raises WrongBlobError."""
    if (found := address_of(data)) != address:
        raise WrongBlobError(
            f"{where} has another blob under {address[:12]}…: its hash is {found[:12]}…",
            unchanged="Nothing of it was used.",
            next_step="Whoever has the right one mends it: `groove-node registry push`.",
        )
    return data


def list_of(read: Callable[[int], bytes | None], root: bytes, size_bytes: int) -> bytes | None:
    """Make the chunk list of a bundle whose list nobody put beside it; None if it has not this
    root. Reads all of it, and keeps nothing."""
    if not 0 < size_bytes <= CHUNK_BYTES * CHUNKS_MAX:
        return None
    hashes = bytearray()
    for index in range(-(-size_bytes // CHUNK_BYTES)):
        chunk = read(index)
        if chunk is None or len(chunk) != min(CHUNK_BYTES, size_bytes - index * CHUNK_BYTES):
            return None
        hashes += hashlib.sha256(chunk).digest()
    chunks = ChunkList(size_bytes, CHUNK_BYTES, bytes(hashes))
    return encode(chunks) if root_of(chunks) == root else None


class BundleStore:
    """`leaves.ports.BlobStore` over the mesh's folder of bundles. Addresses are hex."""

    def __init__(self, folder: Path) -> None:
        self.files = BundleFiles(folder)

    def put(self, data: bytes) -> str:
        return root_of(self.files.add(data)).hex()

    def get(self, address: str) -> bytes | None:
        path = self.path(address)
        return path.read_bytes() if path else None

    def delete(self, address: str) -> bool:
        found = self.path(address) is not None
        self.files.remove(bytes.fromhex(address))
        return found

    def path(self, address: str) -> Path | None:
        path = self.files.path(bytes.fromhex(address))
        return path if path.exists() else None

    def size_bytes(self, address: str) -> int:
        """Size of a bundle that is here; 0 if it is not."""
        path = self.path(address)
        return path.stat().st_size if path else 0
