"""One hash for a list, as in RFC 6962: leaves and inner nodes are hashed apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash of a list of byte strings (RFC 6962 §2.1).

    The 0x00 and 0x01 prefixes keep a leaf from being read as a node: without them, two lists of
    different length can have one root.
    """
    if not leaves:
        return hashlib.sha256().digest()
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        # Pairing from the left, an odd last node moving up as it is, gives the tree of the RFC,
        # whose left half is the largest power of two below the length.
        paired = [
            hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest()
            for i in range(0, len(level) - 1, 2)
        ]
        level = paired + level[len(level) & ~1 :]
    return level[0]
