"""What one origin stands for, as those see it who act on it."""

from __future__ import annotations

from dataclasses import dataclass

from .origin import is_stale
from .records import Held
from .wire import HOUR_S, Card, Ended, Head, Standing, Usage


@dataclass(frozen=True, slots=True)
class OriginView:
    """What one origin stands for, as of the last event."""

    origin: bytes
    standing: Standing
    stale: bool  # its head has expired
    head: Head | None  # None too where its table is not kept: of no interest, or long expired
    cards: tuple[Card, ...]  # of all that is live and not retracted, by leaf
    ended: tuple[Ended, ...]
    usage: tuple[Usage, ...]
    retracted: tuple[bytes | None, ...]  # None: all of its leaves

    @property
    def usable(self) -> tuple[Card, ...]:
        """The cards that may be acted on now."""
        return self.cards if self.standing is Standing.SOUND and not self.stale else ()


def view_of(held: Held, now_h: int) -> OriginView:
    """Return what is held as it is shown in a certain hour."""
    head = held.claims.head.value if held.claims.head else None
    return OriginView(
        origin=held.claims.origin,
        standing=held.claims.standing,
        stale=head is not None and is_stale(head, now_h * HOUR_S),
        head=None if held.light else head,
        cards=held.table.live(),
        ended=held.table.index.ended,
        usage=held.table.usage,
        retracted=tuple(sorted(held.claims.retracts, key=lambda leaf: leaf or b"")),
    )
