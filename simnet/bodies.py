"""Which cards that arrive are new: the bulk plane is to carry each to each node once."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Final

from gossip.core import Replica
from gossip.wire import Cards, Delta, Head, Manifest, WireError, decode, decode_sync

# A frame with cards begins as an array of so many fields, the first of them its type.
_TYPES: Final = (b"\xa7delta/1", b"\xaamanifest/1", b"\xa7cards/1")


def count(replica: Replica, frame: bytes, sent: Counter[str]) -> None:
    """Count the cards of a frame, before the replica sees it, as new here or held already.

    One that is on its way twice at once counts as new twice; a pull asks one peer at a time.
    """
    if not frame.startswith(_TYPES, 1) or (told := _cards(frame)) is None:
        return
    origin, cards = told
    held = {(card.leaf, card.version) for card in replica.view(origin).cards}
    duplicates = sum(card in held for card in cards)
    sent["body_duplicate"] += duplicates
    sent["body_first"] += len(cards) - duplicates


@lru_cache(maxsize=1024)
def _cards(frame: bytes) -> tuple[bytes, tuple[tuple[bytes, int], ...]] | None:
    """The origin of a frame's cards, and each card's leaf and version."""
    try:
        match decode_sync(frame):
            case Delta() as message:
                origin, cards = decode(message.head.payload, Head).origin, message.puts
            case Manifest() as message:
                origin, cards = decode(message.head.payload, Head).origin, message.cards
            case Cards() as message:
                origin, cards = message.origin, message.cards
            case _:
                return None
    except WireError:
        return None
    return origin, tuple((card.leaf, card.version) for card in cards)
