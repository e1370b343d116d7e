"""What is held of one origin, and the same as rows of the store.

What changed is found by comparing rows, so that no path through the core can forget to save. The
store is believed no more than a peer: what it gives back is decoded and verified like any frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from . import canonical, hearing
from .envelope import Signed, read
from .events import Save
from .origin import Claims
from .ports import Record
from .table import Table, commits_to, missing, usage_hash
from .wire import (
    BYTES_MAX,
    Card,
    Env,
    Fork,
    Head,
    Index,
    KeyDoc,
    Retract,
    Usage,
    Wire,
    WireError,
    decode,
    encode,
)

ORIGIN_BYTES = 32
BURN = b"\0"  # in the place of an epoch, of which 0 is none: the second key of a burnt origin
LAST = ("own", b"last")  # the newest own head that anyone is known to hold
Rows = dict[tuple[str, bytes], Wire | tuple[Usage, ...]]


class RecordError(Exception):
    """A store gave back what this program never wrote. Peers hold what is needed to start anew."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of one origin: its claims, and the table under the head among them.

    before: the head that was replaced and its index, from which a delta can be made; not stored.
    """

    claims: Claims
    table: Table = field(default_factory=Table)
    before: tuple[Signed[Head], Index] | None = None

    def with_claims(self, claims: Claims) -> Held:
        """Take in claims. Without a head there is no table; a retracted leaf has no card."""
        if claims.head is None:
            return Held(claims)
        gone = [row.leaf for row in self.table.index.rows if claims.is_retracted(row.leaf)]
        table = self.table.without(gone) if gone else self.table
        return replace(self, claims=claims, table=table)


def changes(old: Held, new: Held, *, durable: bool) -> Save | None:
    """Return the order that turns the rows of `old` into those of `new`; None if they are equal."""
    before, after = _rows(old), _rows(new)
    puts = tuple(
        Record(table, key, encode(value))
        for (table, key), value in after.items()
        if before.get((table, key)) != value
    )
    deletes = tuple(row for row in before if row not in after)
    return Save(puts, deletes, durable) if puts or deletes else None


def load(records: Iterable[Record]) -> dict[bytes, Held]:
    """Return what is held of each origin. Raises RecordError."""
    by_origin: dict[bytes, dict[str, list[Record]]] = {}
    for record in records:
        if record.table != "own":
            origin = record.key[:ORIGIN_BYTES]
            by_origin.setdefault(origin, {}).setdefault(record.table, []).append(record)
    held = {}
    for origin, tables in by_origin.items():
        try:
            held[origin] = _held(origin, tables)
        except (WireError, KeyError) as error:
            raise RecordError(f"records of origin {origin.hex()}: {error}") from error
    return held


def load_last(records: Iterable[Record], own: Claims) -> Signed[Head] | None:
    """Return the own head that was noted because others hold it. Raises RecordError."""
    for record in records:
        if (record.table, record.key) == LAST:
            try:
                return hearing.open_head(read(decode(record.value, Env), Head), own)
            except WireError as error:
                raise RecordError(f"record of the last own head: {error}") from error
    return None


def _rows(held: Held) -> Rows:
    claims, origin = held.claims, held.claims.origin
    rows: Rows = {("key", origin + bytes([epoch])): doc for epoch, doc in claims.keys.items()}
    if claims.burn is not None:
        rows["key", origin + BURN] = claims.burn[1]
    if claims.fork is not None:
        rows["fork", origin] = Fork(claims.fork.a.env, claims.fork.b.env)
    for leaf, retract in claims.retracts.items():
        rows["retract", origin + (leaf or b"")] = retract.env
    if claims.head is not None:
        rows["head", origin] = claims.head.env
        rows["index", origin] = held.table.index
        rows["usage", origin] = held.table.usage
        rows |= {("card", origin + card.leaf): card for card in held.table.live()}
    return rows


def _held(origin: bytes, tables: Mapping[str, list[Record]]) -> Held:
    claims = Claims(origin)
    for record in tables.get("key", ()):  # the row of a burnt origin's second key sorts first
        claims = claims.with_key(hearing.open_key(decode(record.value, KeyDoc), origin))
    for record in tables.get("retract", ()):
        claims = claims.with_retract(_retract(record.value, claims))
    for record in tables.get("fork", ()):
        claims = claims.with_fork(hearing.open_fork(decode(record.value, Fork), claims))
    if "head" not in tables:
        return Held(claims)
    head = hearing.open_head(read(decode(tables["head"][0].value, Env), Head), claims)
    cards = tuple(decode(record.value, Card) for record in tables.get("card", ()))
    index = decode(tables["index"][0].value, Index)
    usage = _decode_usage(tables["usage"][0].value)
    by_leaf = {card.leaf: card for card in cards}
    table = Table(
        index, {row.card: by_leaf[row.leaf] for row in index.rows if row.leaf in by_leaf}, usage
    )
    gone = [row.leaf for row in index.rows if claims.is_retracted(row.leaf)]
    whole = commits_to(head.value, index) and usage_hash(usage) == head.value.usage
    if not whole or missing(index, table.cards, gone):
        raise WireError("table is not the head's")
    return Held(claims.with_head(head), table)


def _retract(data: bytes, claims: Claims) -> Signed[Retract]:
    return hearing.open_retract(read(decode(data, Env), Retract), claims)


def _decode_usage(data: bytes) -> tuple[Usage, ...]:
    if len(data) > BYTES_MAX[Index]:
        raise WireError("too large")
    return canonical.decode(data, tuple[Usage, ...])
