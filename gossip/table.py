"""A leaf table: the cards that one head commits to, and how two tables differ.

The head signs `root(index)`; the index holds the hash of each card. So a table can arrive in any
pieces, from anyone, and still be applied only when it is whole and exactly the one that was signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from . import merkle
from .wire import (
    BYTES_MAX,
    INDEX_BYTES_MAX,
    TABLE_ROWS_MAX,
    ZERO32,
    Card,
    Ended,
    Head,
    Index,
    Row,
    Usage,
    encode,
)

NO_ROWS = Index((), ())


class TableTooLargeError(ValueError):
    """More than one head, or one card, may carry; the owner must end or merge leaves first."""


@dataclass(frozen=True)
class Table:
    """What one head commits to. `cards` is by card hash and lacks the cards of retracted leaves."""

    index: Index = NO_ROWS
    cards: Mapping[bytes, Card] = field(default_factory=dict)
    usage: tuple[Usage, ...] = ()

    def live(self) -> tuple[Card, ...]:
        """The cards that are here, by leaf."""
        return self._live

    @cached_property
    def _live(self) -> tuple[Card, ...]:
        return tuple(self.cards[row.card] for row in self.index.rows if row.card in self.cards)

    def without(self, leaves: Collection[bytes]) -> Table:
        """Drop the cards of some leaves; the index still commits to them."""
        gone = {row.card for row in self.index.rows if row.leaf in leaves}
        kept = {card: value for card, value in self.cards.items() if card not in gone}
        return Table(self.index, kept, self.usage)


def build(cards: Iterable[Card], ended: Iterable[Ended], usage: Iterable[Usage]) -> Table:
    """Return the table of some leaves, or raise TableTooLargeError.

    Raises ValueError if a leaf is there twice.
    """
    by_leaf = sorted(cards, key=lambda card: card.leaf)
    for card in by_leaf:
        if (size := len(encode(card))) > BYTES_MAX[Card]:
            leaf = card.leaf.hex()
            raise TableTooLargeError(
                f"card of leaf {leaf}: {size} bytes, at most {BYTES_MAX[Card]}"
            )
    rows = tuple(Row(card.leaf, card.version, card_hash(card)) for card in by_leaf)
    over = sorted(ended, key=lambda end: end.leaf)
    if len(rows) + len(over) > TABLE_ROWS_MAX:
        raise TableTooLargeError(
            f"{len(rows)} live and {len(over)} ended leaves, at most {TABLE_ROWS_MAX} together"
        )
    index = Index(rows, tuple(over))
    if (size := len(encode(index))) > INDEX_BYTES_MAX:
        raise TableTooLargeError(f"index of {size} bytes, at most {INDEX_BYTES_MAX}")
    table = {row.card: card for row, card in zip(rows, by_leaf, strict=True)}
    return Table(index, table, tuple(usage))


def card_hash(card: Card) -> bytes:
    return hashlib.sha256(encode(card)).digest()


@lru_cache(maxsize=32)  # one table is checked piece by piece, and in a simulation by every node
def root(index: Index) -> bytes:
    """Return the hash that a head signs: over the live rows, then the ended ones.

    A row is an array of three and an ended leaf one of four, so neither can pass for the other.
    """
    return merkle.root([encode(row) for row in (*index.rows, *index.ended)])


def usage_hash(usage: tuple[Usage, ...]) -> bytes:
    return hashlib.sha256(encode(usage)).digest() if usage else ZERO32


def commits_to(head: Head, index: Index) -> bool:
    """True if this is the index that a head signed."""
    return head.n_live == len(index.rows) and head.table_root == root(index)


def missing(index: Index, have: Collection[bytes], retracted: Collection[bytes]) -> list[bytes]:
    """Return the hashes of the cards still to be had. What is retracted is not asked for."""
    return [row.card for row in index.rows if row.card not in have and row.leaf not in retracted]


def difference(old: Index, new: Table) -> tuple[tuple[Card, ...], tuple[Ended, ...]] | None:
    """Return what to put and what to end to come from `old` to `new`; None if that cannot be said.

    A delta can put cards and end leaves. It cannot make a leaf or an ended row vanish unsaid, nor
    carry a card that was dropped because its leaf is retracted.
    """
    kept, ends = set(old.rows), set(old.ended)
    puts = [new.cards.get(row.card) for row in new.index.rows if row not in kept]
    now = {row.leaf for row in new.index.rows} | {end.leaf for end in new.index.ended}
    before = {row.leaf for row in old.rows} | {end.leaf for end in old.ended}
    if before - now or any(card is None for card in puts):
        return None
    ended = tuple(end for end in new.index.ended if end not in ends)
    return tuple(card for card in puts if card is not None), ended


def patched(old: Index, puts: Iterable[Card], ends: Iterable[Ended]) -> Index | None:
    """Return `old` with a difference applied; None if the result is not an index."""
    rows = {row.leaf: row for row in old.rows}
    over = {end.leaf: end for end in old.ended}
    for card in puts:
        over.pop(card.leaf, None)
        rows[card.leaf] = Row(card.leaf, card.version, card_hash(card))
    for end in ends:
        rows.pop(end.leaf, None)
        over[end.leaf] = end
    try:
        return Index(
            tuple(rows[leaf] for leaf in sorted(rows)), tuple(over[leaf] for leaf in sorted(over))
        )
    except ValueError:
        return None
