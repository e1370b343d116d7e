"""Tables on their way: a verified head is followed by its table, in pieces, from who announced it.

    wanted ──TableGet──► Delta, or Manifest ──CardsGet──► Cards ──…──► whole

A head changes nothing until its table is whole, so "who announces can serve" holds for everyone
down the line, and a head over a table that nobody has spreads no further. A peer that sends a table
that is not the head's is left; one that does not answer in time is, too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from .config import GossipConfig
from .envelope import Signed
from .events import Effect, Send
from .holdings import Holdings
from .ports import PeerId
from .table import Table, commits_to, missing, patched, usage_hash
from .wire import (
    BYTES_MAX,
    INDEX_BYTES_MAX,
    SYNC_FRAME_BYTES_MAX,
    ZERO32,
    Card,
    Cards,
    CardsGet,
    Delta,
    Gone,
    Head,
    Index,
    Manifest,
    TableGet,
    Usage,
    WireError,
    encode,
)

TIMEOUTS_MAX = 5  # answers that a source may owe, before it is asked no more
PATIENCE = 20  # timeouts for which a peer that still sends other tables is waited for
PATIENCE_CHOICE = 5  # the same where another, not yet found slow, could be asked
CARD_BYTES = 560  # of a table's first answer, for each leaf: a card and its row
FRAME_BYTES = 1024  # and besides
Piece = Delta | Manifest | Cards | Gone


def table_bytes(head: Head) -> int:
    """About how many bytes the table under a head has."""
    return FRAME_BYTES + CARD_BYTES * head.n_live


@dataclass(slots=True)
class _Pull:
    """One table on its way. `asked` is the peer whose answer is awaited, since `asked_s`."""

    head: Signed[Head]
    sources: dict[PeerId, int] = field(default_factory=dict)  # how often each was too slow
    # Those who do not hold it, as the others count; a relay of a broadcast will before long.
    gone: dict[PeerId, int] = field(default_factory=dict)
    spent: dict[PeerId, None] = field(default_factory=dict)
    asked: PeerId | None = None
    asked_s: int = 0
    turn_s: int = 0  # since when it was this peer's turn: one that drips is not waited for longer
    queued: PeerId | None = None  # in whose line it is, while nobody is asked
    index: Index | None = None
    cards: dict[bytes, Card] = field(default_factory=dict)
    usage: tuple[Usage, ...] = ()
    delta_failed: bool = False

    @property
    def bytes(self) -> int:
        """How much of an answer is awaited, about."""
        return min(SYNC_FRAME_BYTES_MAX, table_bytes(self.head.value))

    @property
    def progress(self) -> tuple[bool, bool, int, bool]:
        """Changes with every piece that brought something."""
        return self.index is not None, self.delta_failed, len(self.cards), self.lacks_usage

    @property
    def lacks_usage(self) -> bool:
        return usage_hash(self.usage) != self.head.value.usage


class Pulls:
    """At most one table for each origin is wanted, and few enough asked for at once that the
    answers fit into a peer's queue."""

    def __init__(self, config: GossipConfig, held: Holdings) -> None:
        self._config = config
        self._held = held  # the replica's own, read here only
        self._pulls: dict[bytes, _Pull] = {}
        # Of these nobody was asked yet, by whom to ask; peers take turns.
        self._idle: dict[PeerId, dict[bytes, None]] = {}
        self._asked = 0  # pulls that await an answer
        self._awaited: Counter[PeerId] = Counter()  # the same, by who is asked
        self._bytes = 0  # that they await
        self._sent_s: dict[PeerId, int] = {}  # when a peer last sent something of use

    def head(self, origin: bytes) -> Signed[Head] | None:
        """The head whose table is wanted, if any."""
        return self._pulls[origin].head if origin in self._pulls else None

    def leaves(self, origin: bytes) -> frozenset[bytes]:
        """Those that the table on its way names, as far as that is known."""
        pull = self._pulls.get(origin)
        index = pull.index if pull is not None else None
        return frozenset(row.leaf for row in index.rows) if index else frozenset()

    def want(
        self, head: Signed[Head], source: PeerId | None, now_s: int, *, brought: bool = False
    ) -> list[Effect]:
        """Fetch the table under a head, in place of an older head's; or note one more source.

        brought: the source has sent a piece of it along, so it counts as asked.
        """
        origin = head.value.origin
        pull = self._pulls.get(origin)
        if pull is None or pull.head.id != head.id:
            queued = pull.queued if pull is not None and pull.queued == source else None
            if queued is None:  # else the newer head takes the place of the older in the line
                self.forget(origin)
            pull = self._pulls[origin] = _Pull(head, queued=queued)
        if source is not None:
            self._add_source(pull, source)
        if pull.asked is None and source is not None and brought:
            self._await(pull, source, now_s)
        elif pull.asked is None:
            self._queue(pull)
        return self.ask(now_s)

    def _add_source(self, pull: _Pull, source: PeerId) -> None:
        """Note a holder. Where there is no room, one that was too slow makes it, for good."""
        if source in pull.sources or source in pull.spent:
            return
        if len(pull.sources) >= self._config.sources_max:
            slow = max(pull.sources, key=lambda peer: (peer != pull.asked, pull.sources[peer]))
            if slow == pull.asked or not pull.sources[slow]:
                return
            del pull.sources[slow]
            pull.spent[slow] = None
        pull.sources[source] = pull.gone.pop(source, 0)

    def source(self, origin: bytes, head: bytes, peer: PeerId, now_s: int) -> list[Effect] | None:
        """Note one more holder of a table that is on its way; None if it is not.

        head: the first half of the head's hash.
        """
        pull = self._pulls.get(origin)
        if pull is None or pull.head.id[:16] != head:
            return None
        return self.want(pull.head, peer, now_s)

    def forget(self, origin: bytes) -> None:
        """Want the table of this origin no more."""
        if (pull := self._pulls.pop(origin, None)) is not None:
            self._unqueue(pull)
            if pull.asked is not None:
                self._await_no_more(pull)

    def review(self, origin: bytes) -> None:
        """What is held of an origin is new: forget its table if the head can stand no more."""
        if (wanted := self.head(origin)) is not None:
            claims = self._held[origin].claims
            if claims.with_head(wanted).head is not wanted:
                self.forget(origin)

    def lose(self, peer: PeerId, now_s: int) -> list[Effect]:
        """A peer is gone: expect nothing more of it."""
        self._sent_s.pop(peer, None)
        for pull in self._pulls.values():
            pull.gone.pop(peer, None)
            pull.spent.pop(peer, None)
            self._leave_source(pull, peer)
        return self.ask(now_s)

    def expire(self, now_s: int) -> list[Effect]:
        """Give up on peers that did not answer in time, and on tables that nobody has."""
        for origin, pull in list(self._pulls.items()):
            if pull.asked is not None and self._is_late(pull, pull.asked, now_s):
                slow, times = pull.asked, pull.sources.get(pull.asked, 0) + 1
                self._leave(pull)
                if times < TIMEOUTS_MAX:
                    pull.sources[slow] = times  # it comes last now
                else:
                    pull.spent[slow] = None
            pull.sources |= pull.gone
            pull.gone.clear()
            if not pull.sources:
                self.forget(origin)
            elif pull.asked is None:
                self._queue(pull)
        return self.ask(now_s)

    def _is_late(self, pull: _Pull, peer: PeerId, now_s: int) -> bool:
        """True if an answer is overdue. A peer that was asked for much answers in turn.

        But who announces first must not hold a table back: where another could be asked, who keeps
        sending other things is waited for less long. What was asked before the clock was set back
        is overdue, or it would be waited for for ever.
        """
        timeout_s = self._config.pull_timeout_s
        heard_s = max(pull.asked_s, self._sent_s.get(peer, 0))
        in_time = 0 <= now_s - heard_s < timeout_s
        fresh = any(not times for other, times in pull.sources.items() if other != peer)
        patience = PATIENCE_CHOICE if fresh else PATIENCE
        return not in_time or not 0 <= now_s - pull.turn_s < patience * timeout_s

    @property
    def wanted(self) -> int:
        """How many tables are on their way."""
        return len(self._pulls)

    @property
    def waits(self) -> bool:
        """True if a table is on its way."""
        return bool(self._pulls)

    def heard(self, peer: PeerId, now_s: int) -> None:
        """A peer has sent something: it lives, and answers in turn."""
        if self._asked:
            self._sent_s[peer] = now_s

    def ask(self, now_s: int) -> list[Effect]:
        """Ask for tables that nobody was asked for, as far as the limits allow."""
        sends: list[Effect] = []
        passed = 0  # peers in a row of whom nothing may be asked now
        while passed < len(self._idle):
            peer = next(iter(self._idle))
            line = self._idle[peer] = self._idle.pop(peer)  # at the end: the next one's turn
            origin = next(iter(line))
            pull = self._pulls[origin]
            if self._may_ask(peer, pull):
                passed = 0
                sends.append(self._request(origin, pull, peer, now_s))
            else:
                passed += 1
        return sends

    def _may_ask(self, peer: PeerId, pull: _Pull) -> bool:
        """True if the limits allow it; one table is asked of everyone, whoever else fills them."""
        if not self._awaited[peer]:
            return True
        fits = self._bytes + pull.bytes <= self._config.pull_bytes_max
        return fits and self._asked < self._config.pulls_max

    def received(
        self, peer: PeerId, origin: bytes, head: bytes, piece: Piece, now_s: int
    ) -> list[Effect]:
        """Take in a piece and ask for the next. Raises WireError if the piece is not the head's.

        head: the hash of the head that the piece came with. What was not asked for, or came late,
        is ignored.
        """
        pull = self._pulls.get(origin)
        if pull is None or pull.head.id != head:
            return []
        if pull.asked != peer and not pull.sources.get(peer):  # it may come late, but was asked for
            return []
        before = pull.progress
        try:
            self._take(origin, pull, piece)
        except WireError:
            self._leave_source(pull, peer)
            raise
        if pull.progress == before:
            times = pull.sources.get(peer, 0) + 1
            self._leave_source(pull, peer)
            if isinstance(piece, Gone) and times < TIMEOUTS_MAX:
                pull.gone[peer] = times
            return self.ask(now_s)
        return [] if self._is_whole(origin, pull) else [self._request(origin, pull, peer, now_s)]

    def whole(self, origin: bytes) -> tuple[Signed[Head], Table] | None:
        """Hand over the table of an origin if all of it is here, and forget it."""
        pull = self._pulls.get(origin)
        if pull is None or pull.index is None or not self._is_whole(origin, pull):
            return None
        self.forget(origin)
        cards = {
            row.card: pull.cards[row.card] for row in pull.index.rows if row.card in pull.cards
        }
        return pull.head, Table(pull.index, cards, pull.usage)

    def _leave_source(self, pull: _Pull, peer: PeerId) -> None:
        """Expect nothing more of a peer, which may have answered late, while another is asked."""
        pull.sources.pop(peer, None)
        if pull.asked == peer:
            self._leave(pull)
        elif pull.asked is None:
            self._queue(pull)

    def _leave(self, pull: _Pull) -> None:
        """Expect nothing more of the peer that was asked; another's turn comes."""
        if pull.asked is not None:
            pull.sources.pop(pull.asked, None)
            self._await_no_more(pull)
        self._queue(pull)

    def _queue(self, pull: _Pull) -> None:
        """Put a table into the line of the peer that is to be asked next, unless it is there."""
        source = next(iter(pull.sources), None)
        if source == pull.queued:
            return
        self._unqueue(pull)
        if source is not None:
            self._idle.setdefault(source, {})[pull.head.value.origin] = None
            pull.queued = source

    def _unqueue(self, pull: _Pull) -> None:
        if pull.queued is not None:
            line = self._idle[pull.queued]
            del line[pull.head.value.origin]
            if not line:
                del self._idle[pull.queued]
            pull.queued = None

    def _await_no_more(self, pull: _Pull) -> None:
        if pull.asked is not None:
            self._count(pull.asked, -1)
            self._bytes -= pull.bytes
            pull.asked = None

    def _await(self, pull: _Pull, peer: PeerId, now_s: int) -> None:
        self._unqueue(pull)
        if pull.asked != peer:
            self._await_no_more(pull)
            self._count(peer, 1)
            self._bytes += pull.bytes
            pull.turn_s = now_s
        pull.asked, pull.asked_s = peer, now_s

    def _count(self, peer: PeerId, change: int) -> None:
        self._asked += change
        self._awaited[peer] += change
        if not self._awaited[peer]:
            del self._awaited[peer]

    def _request(self, origin: bytes, pull: _Pull, peer: PeerId, now_s: int) -> Send:
        self._await(pull, peer, now_s)
        if pull.index is None:
            held = self._held[origin]
            head = None if held.light or pull.delta_failed else held.claims.head
            base = ZERO32 if head is None else head.id
            return Send(peer, encode(TableGet(origin, pull.head.id, base)))
        wanted = b"".join(self._missing(origin, pull.index, pull))
        return Send(peer, encode(CardsGet(origin, pull.head.id, wanted, int(pull.lacks_usage))))

    def _missing(self, origin: bytes, index: Index, pull: _Pull) -> list[bytes]:
        claims = self._held[origin].claims
        retracted: list[bytes] = []
        if claims.retracts:
            retracted = [row.leaf for row in index.rows if claims.is_retracted(row.leaf)]
        return missing(index, pull.cards, retracted)

    def _is_whole(self, origin: bytes, pull: _Pull) -> bool:
        if pull.index is None or pull.lacks_usage:
            return False
        return not self._missing(origin, pull.index, pull)

    def _take(self, origin: bytes, pull: _Pull, piece: Piece) -> None:
        """Add a piece. Raises WireError if it is a lie."""
        held = self._held[origin]
        match piece:
            case Gone():
                return
            case Delta():
                pull.delta_failed = True  # or it was the last answer that was needed
                head = held.claims.head
                if head is None or held.light or head.value.table_root != piece.base_root:
                    return  # our table moved on meanwhile: the whole will be asked for
                index = patched(held.table.index, piece.puts, piece.ends)
                if index is None or not commits_to(pull.head.value, index):
                    raise WireError("delta is not the head's")
                _check(index)
                pull.index, cards = index, piece.puts
            case Manifest():
                if not commits_to(pull.head.value, piece.index):
                    raise WireError("table is not the head's")
                _check(piece.index)
                pull.index, cards = piece.index, piece.cards
            case Cards():
                cards = piece.cards
        if pull.index is not None:
            _add(pull, pull.index, cards, piece.usage, held.table)


def _check(index: Index) -> None:
    if len(encode(index)) > INDEX_BYTES_MAX:
        raise WireError("too large")
    if len({row.card for row in index.rows}) != len(index.rows):
        raise WireError("one card in two rows")


def _add(
    pull: _Pull, index: Index, cards: tuple[Card, ...], usage: tuple[Usage, ...], held: Table
) -> None:
    """Add cards and usage rows, and what an older table has of them."""
    rows = {row.card: row for row in index.rows}
    pull.cards |= {card: held.cards[card] for card in rows if card in held.cards}
    for value in cards:
        if len(data := encode(value)) > BYTES_MAX[Card]:
            raise WireError("too large")
        row = rows.get(card := hashlib.sha256(data).digest())
        if row is None:
            raise WireError("card not asked for")
        if (value.leaf, value.version) != (row.leaf, row.version):
            raise WireError("card contradicts its row")
        pull.cards[card] = value
    if usage_hash(usage) == pull.head.value.usage:
        pull.usage = usage
