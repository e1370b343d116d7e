"""The menu of what can go wrong between two nodes and to one, drawn from the seed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from gossip.table import card_hash
from gossip.wire import (
    Card,
    Cards,
    Delta,
    Env,
    Have,
    Head,
    Manifest,
    WireError,
    decode,
    decode_sync,
    encode,
)


@dataclass(frozen=True, slots=True)
class Links:
    """How frames travel. Shares are of frames; frames may overtake each other."""

    latency_s: tuple[float, float] = (0.02, 0.2)
    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    delay_s_max: float = 60.0
    flip: float = 0.0  # one bit is turned
    forge: float = 0.0  # a relay writes something better than what was signed

    def deliveries(
        self, frame: bytes, rng: Random, count: Counter[str], *, urgent: bool
    ) -> Iterator[tuple[float, bytes]]:
        """Yield (delay, frame) for each copy that arrives, and count the faults.

        What is urgent arrives as it was sent or not at all, for gossipsub signs its messages.
        """
        if rng.random() < self.loss:
            count["F1 loss"] += 1
            return
        copies = 1
        if rng.random() < self.duplicate:
            count["F2 duplicate"] += 1
            copies = 2
        for _ in range(copies):
            after = rng.uniform(*self.latency_s)
            if rng.random() < self.delay:
                count["F4 delay"] += 1
                after += rng.uniform(0, self.delay_s_max)
            if not urgent and rng.random() < self.flip:
                count["F5 flip"] += 1
                frame = flipped(frame, rng)
            if not urgent and rng.random() < self.forge:
                count["F22 forge"] += 1
                frame = tampered(frame, rng) or frame
            yield after, frame

    def but(self, without: Sequence[str]) -> Links:
        """The same, but for some of the shares, which are nought."""
        off: dict[str, Any] = {name: 0.0 for name in without if name in SHARES}
        return dataclasses.replace(self, **off) if off else self

    @property
    def honest(self) -> bool:
        """True if what arrives is what was sent."""
        return self.flip == 0 and self.forge == 0


RELIABLE = Links()
SHARES: Final = ("loss", "duplicate", "delay", "flip", "forge")


def flipped(frame: bytes, rng: Random) -> bytes:
    """Turn one bit, if there is one."""
    if not frame:
        return frame
    at = rng.randrange(len(frame) * 8)
    turned = bytearray(frame)
    turned[at // 8] ^= 1 << at % 8
    return bytes(turned)


def tampered(frame: bytes, rng: Random) -> bytes | None:
    """Return a well-formed lie in place of a head or a table; None if the frame has neither."""
    try:
        message = decode_sync(frame)
        match message:
            case Have() if message.heads:
                return encode(replace(message, heads=(_raised(message.heads[0], rng),)))
            case Manifest() if message.cards and rng.random() < 0.5:
                return encode(_rewritten(message))
            case Manifest() | Cards() if message.cards:
                return encode(replace(message, cards=(_praised(message.cards[0]),)))
            case Delta() if message.puts:
                return encode(replace(message, puts=(_praised(message.puts[0]),)))
            case _:
                return None
    except WireError:
        return None  # a bit was turned before


def _raised(env: Env, rng: Random) -> Env:
    head = decode(env.payload, Head)
    newer = replace(head, seq=head.seq + rng.randint(1, 1000), prev_seq=head.seq)
    return replace(env, payload=encode(newer))


def _rewritten(table: Manifest) -> Manifest:
    """A table that is whole in itself: its index says what the praised card is."""
    card = _praised(table.cards[0])
    rows = tuple(
        replace(row, card=card_hash(card)) if row.leaf == card.leaf else row
        for row in table.index.rows
    )
    index = replace(table.index, rows=rows)
    return replace(table, index=index, cards=(card, *table.cards[1:]))


def _praised(card: Card) -> Card:
    return replace(card, sessions_log2=63)
