"""Cuts what is to be said into frames of at most 64 KiB, each of which can be understood alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from .canonical import ITEMS_MAX
from .origin import Claims, key_id
from .records import Held
from .table import difference
from .wire import (
    SYNC_FRAME_BYTES_MAX,
    ZERO32,
    Card,
    Cards,
    CardsGet,
    Compare,
    Delta,
    Env,
    Fork,
    Gone,
    Have,
    KeyDoc,
    Manifest,
    Summary,
    TableGet,
    encode,
)

NOTHING_NEW = encode(Compare((), 0))
HEADER_BYTES = 64  # type, array headers, an answer flag: more than any message needs


@dataclass(frozen=True, slots=True)
class Gift:
    """Claims to be told to a peer."""

    part: Claims
    whole: Claims  # all that is held of the origin, from which comes the key that a record needs
    known: Collection[bytes] = ()  # names of keys that the peer has said it holds


def haves(news: Iterable[Gift]) -> Iterator[bytes]:
    """Yield frames that tell claims, each record with the key that opens it, unless it is known."""
    page = _Page()
    for gift in news:
        for needed, record in _records(gift.part, gift.whole):
            keys = tuple(doc for doc in needed if key_id(doc) not in gift.known)
            if not page.add(keys, record):
                yield page.frame()
                page = _Page()
                page.add(keys, record)
    if not page.empty:
        yield page.frame()


def compares(summaries: Iterable[Summary], *, answer: bool) -> Iterator[bytes]:
    """Yield frames that compare origins."""
    page: list[Summary] = []
    room = SYNC_FRAME_BYTES_MAX - HEADER_BYTES
    for summary in summaries:
        size = len(encode(summary))
        if size > room or len(page) == ITEMS_MAX:
            yield encode(Compare(tuple(page), int(answer)))
            page, room = [], SYNC_FRAME_BYTES_MAX - HEADER_BYTES
        page.append(summary)
        room -= size
    if page:
        yield encode(Compare(tuple(page), int(answer)))


def table(held: Held, asked: TableGet) -> bytes:
    """Return the best single frame that answers: a delta, a manifest, or the like of `Gone`."""
    head = held.claims.head
    if head is None or head.id != asked.head or held.light:
        return encode(Gone(asked.origin, asked.head))
    is_next = held.before is not None and held.before[0].id == asked.base
    if is_next and (frame := _delta(held)) is not None:
        return frame
    usage, index = held.table.usage, held.table.index
    if len(encode(Manifest(head.env, index, (), usage))) > SYNC_FRAME_BYTES_MAX:
        usage = ()
    room = SYNC_FRAME_BYTES_MAX - len(encode(Manifest(head.env, index, (), usage)))
    # Who holds an older table lacks few of the cards, and will say which.
    cards = _fitting(held.table.live(), room) if asked.base == ZERO32 else ()
    return encode(Manifest(head.env, index, cards, usage))


def news(held: Held, theirs: Summary) -> bytes | None:
    """Return what has changed since the head that a peer holds, if it lacks nothing else."""
    mine = held.brief
    if held.before is None or held.before[0].id[:16] != theirs.head:
        return None
    if (theirs.epoch, theirs.standing, theirs.ids) != (mine.epoch, mine.standing, mine.ids):
        return None
    return _delta(held)


def _delta(held: Held) -> bytes | None:
    """What has changed since the head before, if that can be said in one frame."""
    if held.claims.head is None or held.before is None or held.light:
        return None
    old, index = held.before
    if (changed := difference(index, held.table)) is None:
        return None
    base = old.value
    delta = Delta(held.claims.head.env, base.seq, base.table_root, *changed, held.table.usage)
    return frame if len(frame := encode(delta)) <= SYNC_FRAME_BYTES_MAX else None


def cards(held: Held, asked: CardsGet) -> bytes:
    """Return one frame with as many of the cards asked for as fit, or `Gone`."""
    head = held.claims.head
    if head is None or head.id != asked.head or held.light:
        return encode(Gone(asked.origin, asked.head))
    usage = held.table.usage if asked.usage else ()
    room = SYNC_FRAME_BYTES_MAX - len(encode(Cards(asked.origin, asked.head, (), usage)))
    hashes = (asked.cards[i : i + 32] for i in range(0, len(asked.cards), 32))
    found = (held.table.cards[card] for card in hashes if card in held.table.cards)
    return encode(Cards(asked.origin, asked.head, _fitting(found, room), usage))


class _Page:
    """One `Have` in the making. A key that several records need is in it once."""

    def __init__(self) -> None:
        self._keys: dict[KeyDoc, None] = {}
        self._records: list[Env | Fork] = []
        self._room = SYNC_FRAME_BYTES_MAX - HEADER_BYTES

    @property
    def empty(self) -> bool:
        return not self._keys and not self._records

    def add(self, keys: tuple[KeyDoc, ...], record: Env | Fork | None) -> bool:
        """Add a record and the keys that it needs; False if the page is full."""
        fresh = [key for key in keys if key not in self._keys]
        size = sum(len(encode(key)) for key in fresh) + (len(encode(record)) if record else 0)
        longest = max(len(self._keys) + len(fresh), len(self._records) + 1)
        if size > self._room or longest > ITEMS_MAX:
            return False
        self._room -= size
        self._keys |= dict.fromkeys(fresh)
        if record is not None:
            self._records.append(record)
        return True

    def frame(self) -> bytes:
        envs = [record for record in self._records if isinstance(record, Env)]
        return encode(
            Have(
                tuple(self._keys),
                tuple(env for env in envs if env.type == "head/1"),
                tuple(env for env in envs if env.type == "retract/1"),
                tuple(record for record in self._records if isinstance(record, Fork)),
            )
        )


def _records(part: Claims, whole: Claims) -> Iterator[tuple[tuple[KeyDoc, ...], Env | Fork | None]]:
    """Yield the records of `part`, each after the keys without which it cannot be opened."""
    if part.burn is not None:
        yield part.burn, None
    for doc in part.keys.values():
        yield (doc,), None
    for retract in part.retracts.values():
        # One that the root key signed, of epoch 0, needs any document: each names the root key.
        yield (whole.keys[retract.value.epoch or whole.epoch],), retract.env
    if part.fork is not None:
        fork = Fork(part.fork.a.env, part.fork.b.env)
        yield (whole.keys[part.fork.a.value.epoch],), fork
    if part.head is not None:
        yield (whole.keys[part.head.value.epoch],), part.head.env


def _fitting(cards: Iterable[Card], room: int) -> tuple[Card, ...]:
    """Return as many of the first cards as fit."""
    fit: list[Card] = []
    room -= HEADER_BYTES
    for card in cards:
        room -= len(encode(card))
        if room < 0:
            break
        fit.append(card)
    return tuple(fit)
