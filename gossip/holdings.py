"""All that is held, by origin, and the answers it gives to peers who ask.

Answering changes nothing: a question is answered from what is held at that moment, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from . import frames, origin, reconcile
from .ages import Ages
from .frames import Gift
from .origin import Claims
from .records import Held
from .wire import CardsGet, Compare, Digest, Echo, Summary, TableGet, encode

DELTAS_MAX: Final = 4  # in answer to one question; many are asked for table by table


class Holdings:
    """What is held of each origin, with the items by which it is compared, and its heads' ages."""

    def __init__(self, held: Iterable[Held], ages: Ages) -> None:
        self._held: dict[bytes, Held] = {}
        self._by_slot: dict[bytes, bytes] = {}
        self._items = reconcile.Items()
        self._opening: bytes | None = None
        self.ages = ages
        for one in held:
            self.put(one)

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
        old = self._held.get(name)
        self._held[name] = held
        if old is None:
            self._by_slot[origin.slot_of(name)] = name
        old_head = old.claims.head if old else None
        if old_head is not held.claims.head:
            self.ages.replace(
                name,
                old_head.value if old_head else None,
                held.claims.head.value if held.claims.head else None,
            )
        self._count(old.item if old else None, held.item)

    def drop(self, name: bytes) -> Held:
        """Hold nothing of an origin any more."""
        held = self._held.pop(name)
        del self._by_slot[origin.slot_of(name)]
        if held.claims.head is not None:
            self.ages.replace(name, held.claims.head.value, None)
        self._count(held.item, None)
        return held

    def _count(self, old: bytes | None, new: bytes | None) -> None:
        if old == new:
            return
        if old is not None:
            self._items.remove(old)
        if new is not None:
            self._items.add(new)
        self._opening = None

    # ---- questions -----------------------------------------------------------------------------

    def opening(self) -> bytes:
        """The question whether a peer holds anything else."""
        if self._opening is None:
            self._opening = encode(reconcile.opening(self._items))
        return self._opening

    def compared(self, theirs: Digest) -> Iterator[bytes]:
        """What is held differently, as far as the peer's ranges show it."""
        found = reconcile.answer(self._items, theirs)
        if found.reply is not None:
            yield encode(found.reply)
        yield from frames.compares(map(self._summary, found.slots), answer=True)
        if found.reply is None and not found.slots:
            yield frames.NOTHING_NEW  # or silence would mean both that, and that a frame was lost

    def told(self, names: Iterable[bytes]) -> Iterator[bytes]:
        """What is held of these origins in brief, for who may lack it to ask."""
        summaries = [self._held[name].brief for name in names if name in self._held]
        return frames.compares(summaries, answer=True)

    def is_behind(self, theirs: Summary) -> bool:
        """True if a peer with this summary holds what is lacking here."""
        return origin.is_behind(self._summary(theirs.slot), theirs)

    def given(
        self, theirs: Compare, asks: Callable[[Summary, Held], bool]
    ) -> tuple[list[bytes], Iterator[bytes]]:
        """What is lacking here, if the peer wants to know; and what the peer lacks.

        asks: whether to ask for what is lacking here, for it may be on its way. Who asks for a
        single head or two, as for news, is given the change of the table with it.
        """
        lacking: list[Summary] = []
        gifts: list[tuple[Held, Summary]] = []
        deltas: list[bytes] = []
        few = not theirs.answer and len(theirs.summaries) <= DELTAS_MAX
        for summary in theirs.summaries:
            name = self._by_slot.get(summary.slot)
            held = NOTHING if name is None else self._held[name]
            mine = origin.nothing_of(summary.slot) if name is None else held.brief
            if mine == summary:
                continue
            if few and (delta := frames.news(held, summary)) is not None:
                deltas.append(delta)
            elif name is not None:
                gifts.append((held, summary))
            if theirs.answer and origin.is_behind(mine, summary) and asks(summary, held):
                lacking.append(mine)
        # Made one by one: of a long list only the first frames are sent.
        made = (Gift(origin.lacking(h.claims, s), h.claims, origin.ids(s)) for h, s in gifts)
        return list(frames.compares(lacking, answer=False)), chain(deltas, frames.haves(made))

    def served(self, asked: TableGet | CardsGet) -> Iterator[bytes]:
        """A table or cards, after the retractions for which cards are missing from it."""
        held = self[asked.origin]
        if held.claims.retracts:
            only = Claims(asked.origin, retracts=held.claims.retracts)
            yield from frames.haves([Gift(only, held.claims)])
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
        return origin.nothing_of(slot) if name is None else self._held[name].brief


NOTHING = Held(Claims(b""))
