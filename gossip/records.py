"""What is held of one origin, and the same as rows of the store.

What changed is found by comparing rows, so that no path through the core can forget to save. The
store is believed no more than a peer: what it gives back is decoded and verified like any frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from . import canonical, hearing, origin
from .envelope import Signed, read
from .events import Save
from .origin import Claims
from .ports import Record
from .table import Table, card_hash, commits_to, missing, usage_hash
from .wire import (
    BYTES_MAX,
    Card,
    Env,
    Fork,
    Head,
    Index,
    KeyDoc,
    Retract,
    Summary,
    Usage,
    UsageRows,
    Wire,
    WireError,
    decode,
    encode,
)

ORIGIN_BYTES = 32
BURN = b"\0"  # in the place of an epoch, of which 0 is none: the second key of a burnt origin
LAST = ("own", b"last")  # the newest own head that anyone is known to hold
HIGH = ("own", b"high")  # the highest hour that was vouched for, 4 bytes
RETRACT_BYTES = 800  # about what one costs in memory
NO_TABLE = Table()
Rows = dict[bytes, Wire | tuple[Usage, ...]]


class RecordError(Exception):
    """A store gave back of this node's own what it never wrote. Peers hold what is needed to start
    anew."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store gave back."""

    held: Mapping[bytes, Held]
    unread: Mapping[bytes, str]  # origins of which something made no sense, and what of it
    mend: Save | None  # takes that out of the store


@dataclass(frozen=True)
class Held:
    """What is held of one origin: its claims, and the table under the head among them.

    before: the head that was replaced and its index, from which a delta can be made; not stored.
    light: the head is held without its table, which is of no interest, or has long expired.

    Without slots, so that what it is in brief is worked out once, and shared by all who share it.
    """

    claims: Claims
    table: Table = NO_TABLE
    before: tuple[Signed[Head], Index] | None = None
    light: bool = False

    @cached_property
    def brief(self) -> Summary:
        return origin.summary(self.claims)

    @cached_property
    def item(self) -> bytes:
        return origin.item_of(self.brief)

    @cached_property
    def leaves(self) -> frozenset[bytes]:
        """Those that the table names, live or ended."""
        index = self.table.index
        return frozenset(row.leaf for row in index.rows) | {end.leaf for end in index.ended}

    def with_claims(self, claims: Claims) -> Held:
        """Take in claims. Without a head there is no table; a retracted leaf has no card."""
        if claims is self.claims:
            return self
        if claims.head is None:
            return Held(claims)
        if claims.retracts is self.claims.retracts:
            return replace(self, claims=claims)
        return replace(self, claims=claims, table=allowed(self.table, claims))


def key_bytes(doc: KeyDoc) -> int:
    """About what a key document costs in memory."""
    return 512 + 8 * len(doc.revoked)


def beyond(held: Held) -> int:
    """About what the keys and retractions cost that no table here asks for."""
    claims, leaves = held.claims, held.leaves
    if not claims.retracts and len(claims.keys) < 2:
        return 0
    size = RETRACT_BYTES * sum(leaf is not None and leaf not in leaves for leaf in claims.retracts)
    if not leaves and len(claims.keys) > 1:
        size += sum(map(key_bytes, claims.keys.values()))
    return size


def allowed(table: Table, claims: Claims) -> Table:
    """Return a table without the cards of leaves that are retracted."""
    if not claims.retracts:
        return table
    gone = [row.leaf for row in table.index.rows if claims.is_retracted(row.leaf)]
    return table.without(gone) if gone else table


def changes(old: Held, new: Held, *, durable: bool) -> Save | None:
    """Return the order that turns the rows of `old` into those of `new`; None if they are equal."""
    puts: list[Record] = []
    deletes: list[tuple[str, bytes]] = []
    a, b, name = old.claims, new.claims, new.claims.origin
    if a.keys is not b.keys or a.burn is not b.burn:
        _differ("key", name, _keys(a), _keys(b), puts, deletes)
    if a.retracts is not b.retracts:
        _differ("retract", name, _retracts(a), _retracts(b), puts, deletes)
    if a.fork is not b.fork:
        _differ("fork", name, _fork(a), _fork(b), puts, deletes)
    if a.head is not b.head:
        _differ("head", name, _head(a), _head(b), puts, deletes)
    if old.table is not new.table or _has_table(old) != _has_table(new):
        _differ("index", name, _index(old), _index(new), puts, deletes)
        _differ("usage", name, _usage(old), _usage(new), puts, deletes)
        _differ_in_cards(old, new, puts, deletes)
    return Save(tuple(puts), tuple(deletes), durable) if puts or deletes else None


def load(records: Iterable[Record], own: bytes) -> Loaded:
    """Return what is held of each origin. Raises RecordError if the node's own makes no sense.

    Of another origin what cannot be read is left out, and its keys, retractions and fork are kept
    as far as they can be read: nothing that a peer once said may keep a node from starting.
    """
    by_origin: dict[bytes, dict[str, list[Record]]] = {}
    for record in records:
        if record.table != "own":
            name = record.key[:ORIGIN_BYTES]
            by_origin.setdefault(name, {}).setdefault(record.table, []).append(record)
    held, unread = {}, {}
    puts: list[Record] = []
    deletes: list[tuple[str, bytes]] = []
    for name, tables in by_origin.items():
        try:
            held[name] = _held(name, tables)
        except (WireError, KeyError) as error:
            if name == own:
                raise RecordError(f"records of origin {name.hex()}: {error}") from error
            unread[name] = str(error)
            held[name] = Held(_readable(name, tables))
            kept = changes(Held(Claims(name)), held[name], durable=False)
            puts += kept.puts if kept else ()
            deletes += [(r.table, r.key) for rows in tables.values() for r in rows]
            if not kept:
                del held[name]
    kept_rows = {(record.table, record.key) for record in puts}
    gone = tuple(row for row in deletes if row not in kept_rows)
    return Loaded(held, unread, Save(tuple(puts), gone) if unread else None)


def _readable(name: bytes, tables: Mapping[str, list[Record]]) -> Claims:
    """Return what counts for ever, of an origin whose rows do not all make sense."""
    claims = Claims(name)
    for kind, take in (("key", _with_key), ("retract", _with_retract), ("fork", _with_fork)):
        for record in tables.get(kind, ()):
            with suppress(WireError):
                claims = take(claims, record.value)
    return claims


def load_high(records: Iterable[Record]) -> int:
    """Return the highest hour that was vouched for. Raises RecordError."""
    for record in records:
        if (record.table, record.key) == HIGH:
            if len(record.value) != 4:
                raise RecordError("record of the highest hour: not 4 bytes")
            return int.from_bytes(record.value, "big")
    return 0


def save_high(high_h: int) -> Save:
    return Save((Record(*HIGH, high_h.to_bytes(4, "big")),))


def load_last(records: Iterable[Record], own: Claims) -> Signed[Head] | None:
    """Return the own head that was noted because others hold it. Raises RecordError."""
    for record in records:
        if (record.table, record.key) == LAST:
            try:
                return hearing.open_head(read(decode(record.value, Env), Head), own)
            except WireError as error:
                raise RecordError(f"record of the last own head: {error}") from error
    return None


# The rows of each table, by what follows the origin in their keys.


def _keys(claims: Claims) -> Rows:
    rows: Rows = {bytes([epoch]): doc for epoch, doc in claims.keys.items()}
    if claims.burn is not None:
        rows[BURN] = claims.burn[1]
    return rows


def _retracts(claims: Claims) -> Rows:
    return {leaf or b"": retract.env for leaf, retract in claims.retracts.items()}


def _fork(claims: Claims) -> Rows:
    return {} if claims.fork is None else {b"": Fork(claims.fork.a.env, claims.fork.b.env)}


def _head(claims: Claims) -> Rows:
    return {} if claims.head is None else {b"": claims.head.env}


def _has_table(held: Held) -> bool:
    return held.claims.head is not None and not held.light


def _index(held: Held) -> Rows:
    return {b"": held.table.index} if _has_table(held) else {}


def _usage(held: Held) -> Rows:
    return {b"": held.table.usage} if _has_table(held) else {}


def _differ(
    table: str,
    origin: bytes,
    before: Rows,
    after: Rows,
    puts: list[Record],
    deletes: list[tuple[str, bytes]],
) -> None:
    for key, value in after.items():
        if before.get(key) != value:
            puts.append(Record(table, origin + key, encode(value)))
    deletes += [(table, origin + key) for key in before if key not in after]


def _differ_in_cards(
    old: Held, new: Held, puts: list[Record], deletes: list[tuple[str, bytes]]
) -> None:
    """Compare cards by their hashes, which the indices have."""
    name = new.claims.origin
    before, after = _card_hashes(old), _card_hashes(new)
    for leaf, card in after.items():
        if before.get(leaf) != card:
            puts.append(Record("card", name + leaf, encode(new.table.cards[card])))
    deletes += [("card", name + leaf) for leaf in before if leaf not in after]


def _card_hashes(held: Held) -> dict[bytes, bytes]:
    cards = held.table.cards
    return {row.leaf: row.card for row in held.table.index.rows if row.card in cards}


def _held(name: bytes, tables: Mapping[str, list[Record]]) -> Held:
    claims = Claims(name)
    for record in tables.get("key", ()):  # the row of a burnt origin's second key sorts first
        claims = _with_key(claims, record.value)
    for record in tables.get("retract", ()):
        claims = _with_retract(claims, record.value)
    for record in tables.get("fork", ()):
        claims = _with_fork(claims, record.value)
    if "head" not in tables:
        return Held(claims)
    head = hearing.open_head(read(decode(tables["head"][0].value, Env), Head), claims)
    if not any(tables.get(kind) for kind in ("index", "usage", "card")):
        return Held(claims.with_head(head), light=True)
    cards = tuple(decode(record.value, Card) for record in tables.get("card", ()))
    index = decode(tables["index"][0].value, Index)
    usage = _decode_usage(tables["usage"][0].value)
    by_hash = {card_hash(card): card for card in cards}
    table = Table(
        index, {row.card: by_hash[row.card] for row in index.rows if row.card in by_hash}, usage
    )
    gone = [row.leaf for row in index.rows if claims.is_retracted(row.leaf)]
    whole = commits_to(head.value, index) and usage_hash(usage) == head.value.usage
    if not whole or missing(index, table.cards, gone):
        raise WireError("table is not the head's")
    return Held(claims.with_head(head), table)


def _with_key(claims: Claims, data: bytes) -> Claims:
    return claims.with_key(hearing.open_key(decode(data, KeyDoc), claims.origin))


def _with_retract(claims: Claims, data: bytes) -> Claims:
    return claims.with_retract(hearing.open_retract(read(decode(data, Env), Retract), claims))


def _with_fork(claims: Claims, data: bytes) -> Claims:
    return claims.with_fork(hearing.open_fork(decode(data, Fork), claims))


def _decode_usage(data: bytes) -> tuple[Usage, ...]:
    if len(data) > BYTES_MAX[Index]:
        raise WireError("too large")
    return canonical.decode(data, UsageRows)
