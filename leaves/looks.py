"""Which judged look at a leaf is which: each is a chance to win by luck, and counts once.

A training by hand shows its verdict before anything is adopted, so it counts when it is shown. A
look at the same adapter on the same split is the same look, whoever takes it: by hand once more, a
round that comes to the same training, or `--adopt`. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from .model import Leaf, Look, Looking

LOOKS_MAX = 64  # by hand between two trainings; one before them counts again if it is repeated


def seal(*parts: str) -> str:
    """Names what a look is at: what was judged, and on what."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def number(leaf: Leaf, what: Looking, chassis: str, seal: str) -> int:
    """Which look comes now, from 1; one that was taken by hand keeps its number."""
    for look in _by_hand(leaf, what, chassis):
        if look.seal == seal:
            return look.number
    return _before(leaf, what, chassis) + 1


def taken(leaf: Leaf, look: Look) -> Leaf:
    """The leaf after a look by hand; the same one if that was counted."""
    if any(other.seal == look.seal for other in _by_hand(leaf, look.what, look.chassis)):
        return leaf
    after = replace(leaf, looked=(*leaf.looked, look)[-LOOKS_MAX:])
    if moved(leaf, look.chassis):
        return after  # its count is of another chassis, until a training is recorded on this one
    if look.what is Looking.ADAPTER:
        return replace(after, attempts=max(leaf.attempts, look.number))
    return replace(after, preference_looks=max(leaf.preference_looks, look.number))


def after(leaf: Leaf, what: Looking, chassis: str, number: int, *, judged: bool) -> int:
    """The count once a training is recorded whose look had this number. judged: it was a look."""
    counted = any(look.number == number for look in _by_hand(leaf, what, chassis))
    return _before(leaf, what, chassis) + int(judged and not counted)


def moved(leaf: Leaf, chassis: str) -> bool:
    """True if its adapter is of another chassis: looks at it were of weights nobody loads now."""
    return leaf.adapter is not None and leaf.adapter.chassis != chassis


def _before(leaf: Leaf, what: Looking, chassis: str) -> int:
    if moved(leaf, chassis):
        return max((look.number for look in _by_hand(leaf, what, chassis)), default=0)
    return leaf.attempts if what is Looking.ADAPTER else leaf.preference_looks


def _by_hand(leaf: Leaf, what: Looking, chassis: str) -> list[Look]:
    return [look for look in leaf.looked if look.what is what and look.chassis == chassis]
