"""All that is held, by origin, and the answers it gives to peers who ask.

Answering changes nothing: a question is answered from what is held at that moment, and forgotten.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from . import frames, origin, reconcile
from .origin import Claims
from .records import Held
from .wire import CardsGet, Compare, Digest, Echo, Summary, TableGet, encode


class Holdings:
    """What is held of each origin, with the items by which it is compared."""

    def __init__(self, held: Iterable[Held]) -> None:
        self._held = {one.claims.origin: one for one in held}
        self._items = sorted(origin.item(one.claims) for one in self._held.values())
        self._by_slot = {origin.slot_of(name): name for name in self._held}

    def __contains__(self, name: bytes) -> bool:
        return name in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, name: bytes) -> Held:
        """What is held of an origin; nothing, of an unknown one."""
        return self._held.get(name) or Held(Claims(name))

    def names(self) -> list[bytes]:
        """All origins heard of, ascending."""
        return sorted(self._held)

    def put(self, held: Held) -> None:
        """Replace what is held of an origin."""
        name = held.claims.origin
        if name in self._held:
            del self._items[bisect_left(self._items, origin.item(self._held[name].claims))]
        self._held[name] = held
        self._by_slot[origin.slot_of(name)] = name
        insort(self._items, origin.item(held.claims))

    # ---- questions -----------------------------------------------------------------------------

    def opening(self) -> bytes:
        """The question whether a peer holds anything else."""
        return encode(reconcile.opening(self._items))

    def compared(self, theirs: Digest) -> Iterator[bytes]:
        """What is held differently, as far as the peer's ranges show it."""
        found = reconcile.answer(self._items, theirs)
        if found.reply is not None:
            yield encode(found.reply)
        yield from frames.compares(map(self._summary, found.slots), answer=True)

    def given(self, theirs: Compare) -> Iterator[bytes]:
        """What the peer lacks; and, if it wants to know, what is lacking here."""
        lacking: list[Summary] = []
        gifts: list[tuple[Claims, Claims]] = []
        for summary in theirs.summaries:
            name = self._by_slot.get(summary.slot)
            claims = Claims(b"") if name is None else self._held[name].claims
            gifts.append((origin.lacking(claims, summary), claims))
            if theirs.answer and origin.lacks(claims, summary):
                lacking.append(self._summary(summary.slot))
        yield from frames.compares(lacking, answer=False)
        yield from frames.haves(gifts)

    def served(self, asked: TableGet | CardsGet) -> Iterator[bytes]:
        """A table or cards, after the retractions for which cards are missing from it."""
        held = self[asked.origin]
        if held.claims.retracts:
            only = Claims(asked.origin, retracts=held.claims.retracts)
            yield from frames.haves([(only, held.claims)])
        if isinstance(asked, TableGet):
            yield frames.table(held, asked)
        else:
            yield frames.cards(held, asked)

    def echo(self, name: bytes) -> bytes:
        """What is held of the peer's own origin."""
        claims = self[name].claims
        head = claims.head.env if claims.head else None
        return encode(Echo(name, claims.keys.get(claims.epoch), head))

    def _summary(self, slot: bytes) -> Summary:
        name = self._by_slot.get(slot)
        return origin.nothing_of(slot) if name is None else origin.summary(self._held[name].claims)
