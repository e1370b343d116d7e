"""Which leaves of simulated origins are one domain: what nodes must agree on without telling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gossip.wire import CENTROID_SCALE, Card
from leaves.families import Candidate, families
from leaves.model import LeafId, Vector

Partition = tuple[tuple[tuple[bytes, bytes], ...], ...]


def partition(cards: Iterable[tuple[bytes, Card]]) -> Partition:
    """Return the families of some leaves, as (origin, leaf), members and families in order."""
    candidates = (
        Candidate(
            origin=origin,
            leaf=LeafId(card.leaf.hex()),
            enc8=card.enc,
            centroid=_vector(card),
        )
        for origin, card in cards
    )
    return tuple(
        tuple((one.origin, bytes.fromhex(one.leaf)) for one in family.members)
        for family in families(candidates)
    )


def _vector(card: Card) -> Vector:
    return np.frombuffer(card.centroid, np.int8).astype(np.float32) / np.float32(CENTROID_SCALE)
