"""How much of one peer and of one origin is taken in: token buckets, and who must make room.

An origin costs nothing to make, so what counts is who brings it. Nobody is blamed for being over a
quota: an honest peer may pass on in one hour what others said in a week. What is put off is not
lost, for the next round of reconciliation offers it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Final

from .config import GossipConfig
from .hearing import Said
from .origin import Claims
from .ports import PeerId
from .records import RETRACT_BYTES, Held, beyond, key_bytes
from .wire import HOUR_S, Head, Standing

DAY_S: Final = 24 * HOUR_S
BUCKETS_MAX: Final = 32_768  # remembered; above the number of origins that may be held
STRANGERS: Final = PeerId("")  # all who are not connected share one name: they cost nothing either


class PutOff(Exception):  # noqa: N818  # no error: it comes later
    """More than may be taken in now; the reason is a fixed phrase."""


class Buckets:
    """A token bucket for each key. One that was not touched for long is full, and is forgotten."""

    def __init__(self, rate_s: float, capacity: float) -> None:
        self._rate_s = rate_s
        self._capacity = capacity
        self._left: dict[bytes | str, tuple[float, int]] = {}  # tokens, and at what second

    def has(self, key: bytes | str, now_s: int, tokens: float = 1) -> bool:
        return self._tokens(key, now_s) >= tokens

    def left(self, key: bytes | str, now_s: int) -> float:
        return self._tokens(key, now_s)

    def take(self, key: bytes | str, now_s: int, tokens: float = 1) -> bool:
        """Take tokens if they are there; False if not."""
        left = self._tokens(key, now_s)
        if left < tokens:
            return False
        self._left.pop(key, None)
        self._left[key] = left - tokens, now_s
        if len(self._left) > BUCKETS_MAX:
            del self._left[next(iter(self._left))]
        return True

    def _tokens(self, key: bytes | str, now_s: int) -> float:
        left, at_s = self._left.get(key, (self._capacity, now_s))
        if now_s < at_s:  # a clock that was set back takes nothing away, and refills from now on
            self._left[key] = left, now_s
            return left
        return min(self._capacity, left + (now_s - at_s) * self._rate_s)


class Admission:
    """The quotas of one replica."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._signatures = Buckets(config.signatures_s_max, config.signatures_burst)
        self._day = Buckets(config.heads_day_max / DAY_S, config.heads_day_max)
        self._burst = Buckets(1 / config.heads_burst_s, config.heads_burst)
        self._counted: dict[bytes, bytes] = {}  # origin -> the head counted last, in brief
        self._waiting: dict[bytes, tuple[int, int]] = {}  # epoch and seq of heads put off
        self._new = Buckets(config.introductions_h_max / HOUR_S, config.introductions_h_max)
        of_all = config.introductions_all_h_max
        self._new_of_all = Buckets(of_all / HOUR_S, of_all)
        self._stood: dict[bytes, None] = {}  # origins of which a table was held
        self._bare: dict[bytes, None] = {}  # those never given up of which none ever was
        rate_s = config.new_tables_bytes_h / HOUR_S
        self._tables = Buckets(rate_s, config.new_tables_bytes_max)
        self._tables_of_one = Buckets(0.75 * rate_s, 0.75 * config.new_tables_bytes_max)
        self._tabled: dict[bytes, int] = {}  # bytes counted of each origin
        rate_s = config.records_bytes_h / HOUR_S
        self._records = Buckets(rate_s, config.records_bytes_max / 4)
        self._records_of_one = Buckets(0.75 * rate_s, 0.75 * config.records_bytes_max / 4)
        self._epochs = Buckets(config.epochs_day_max / DAY_S, config.epochs_burst)
        self._recorded: dict[bytes, int] = {}  # bytes held of each origin, as `take_record` counts
        self._recorded_bytes = 0
        # By who brought them, in order. What a restart has made anonymous counts as strangers'.
        self._brought: dict[PeerId, dict[bytes, None]] = {}
        self._bringer: dict[bytes, PeerId] = {}
        self.protected: frozenset[bytes] = frozenset()

    def verify(self, peer: PeerId, now_s: int) -> None:
        """Count one verification for a peer. Raises PutOff."""
        if not self._signatures.take(peer, now_s):
            raise PutOff("too many signatures at once")

    def has_room_for_head(self, origin: bytes, head: bytes, now_s: int) -> bool:
        """True if a head may be taken in, or was counted already."""
        if self._counted.get(origin) == head[:16]:
            return True
        return self._burst.has(origin, now_s) and self._day.has(origin, now_s)

    def put_off(self, head: Head) -> None:
        """Remember the newest head of an origin for which there was no room; it is verified."""
        if not self.is_overtaken(head):
            self._waiting[head.origin] = head.epoch, head.seq
            if len(self._waiting) > BUCKETS_MAX:
                del self._waiting[next(iter(self._waiting))]

    def is_overtaken(self, head: Head) -> bool:
        """True if a newer head of its origin waits for room."""
        return (head.epoch, head.seq) < self._waiting.get(head.origin, (0, 0))

    def take_head(self, origin: bytes, head: bytes, now_s: int) -> None:
        """Count a head, by its hash, once: its table may have to be asked for many times."""
        if self._counted.pop(origin, None) != head[:16]:
            self._burst.take(origin, now_s)
            self._day.take(origin, now_s)
        self._counted[origin] = head[:16]
        self._waiting.pop(origin, None)
        if len(self._counted) > BUCKETS_MAX:
            del self._counted[next(iter(self._counted))]

    def take_table(self, origin: bytes, by: PeerId, size: int, now_s: int, had: int = 0) -> bool:
        """Count the table of an origin, as far as it is larger than any before.

        False if there is no room for it now. A card costs three times its size in memory, so a
        flood of origins is a flood of tables; and of what there is room for, no single peer gets
        all. had: the bytes of the table that is here.
        """
        had = max(had, self._tabled.get(origin, 0))
        more = size - had
        if more <= 0:
            return True
        if not (self._tables.has("", now_s, more) and self._tables_of_one.has(by, now_s, more)):
            return False
        self._tables.take("", now_s, more)
        self._tables_of_one.take(by, now_s, more)
        self._tabled[origin] = size
        if len(self._tabled) > BUCKETS_MAX:
            del self._tabled[next(iter(self._tabled))]
        return True

    def epochs_left(self, origin: bytes, now_s: int) -> int:
        """How many further keys of an origin may be taken in; honest ones come by the quarter."""
        return int(self._epochs.left(origin, now_s))

    def record_bytes_left(self, by: PeerId, now_s: int) -> int:
        """How much may be taken in that nothing here asks for and nobody can take back.

        That is a retraction of a leaf in no table that is here, or a further key of an origin of
        which no table is. A leaf that is in no table is routed to by nobody.
        """
        room = self._config.records_bytes_max - self._recorded_bytes
        at_once = min(self._records.left("", now_s), self._records_of_one.left(by, now_s))
        return min(room, int(at_once))

    def part(
        self, claims: Claims, said: Said, asked: Collection[bytes], by: PeerId, now_s: int
    ) -> Said | None:
        """Return what is left of a peer's words if not all of them may be taken in, else None.

        asked: the leaves of the origin's table, as far as that is here or on its way.
        """
        if claims.standing is Standing.DEAD:
            return None
        room: int | None = None  # worked out when it is first needed: it seldom is
        epochs = self.epochs_left(claims.origin, now_s) if asked else 0

        def fits(size: int) -> bool:
            nonlocal room
            if room is None:
                room = self.record_bytes_left(by, now_s)
            room -= size
            return room >= 0

        keys, retracts = [], []
        first = not claims.keys
        for doc in said.keys:
            if first or doc.epoch in claims.keys:  # at most two of an epoch are ever kept
                first = False
                keys.append(doc)
            elif asked and epochs > 0:
                epochs -= 1
                keys.append(doc)
            elif not asked and fits(key_bytes(doc)):
                keys.append(doc)
        for sealed in said.retracts:
            leaf = sealed.value.leaf
            free = leaf is None or leaf in asked or leaf in claims.retracts
            if free or fits(RETRACT_BYTES):
                retracts.append(sealed)
        if len(keys) == len(said.keys) and len(retracts) == len(said.retracts):
            return None
        return Said(keys, retracts, said.forks, said.heads)

    def take_records(self, held: Held, claims: Claims, by: PeerId, now_s: int) -> None:
        """Count what was taken in of these."""
        epochs = len(claims.keys) - max(1, len(held.claims.keys)) if held.leaves else 0
        if epochs > 0:
            self._epochs.take(claims.origin, now_s, epochs)
        if (size := beyond(replace(held, claims=claims)) - beyond(held)) > 0:
            self._records.take("", now_s, size)
            self._records_of_one.take(by, now_s, size)

    def recorded(self, origin: bytes, size: int) -> None:
        """Note how much of that is held of an origin."""
        self._recorded_bytes += size - self._recorded.pop(origin, 0)
        if size:
            self._recorded[origin] = size

    def may_introduce(self, by: PeerId, held: int, now_s: int) -> bool:
        if 2 * held < self._config.origins_max:
            return True
        return self._new.has(by, now_s) and self._new_of_all.has("", now_s)

    def introduce(self, by: PeerId, held: int, now_s: int) -> None:
        """Count an unknown origin for who brings it, before it is looked for room: that costs.

        Raises PutOff.
        """
        if not self.may_introduce(by, held, now_s):
            raise PutOff("too many unknown origins")
        if 2 * held >= self._config.origins_max:
            self._new.take(by, now_s)
            self._new_of_all.take("", now_s)

    def note(self, origin: bytes, *, has_table: bool, may_go: bool) -> None:
        """Note whether something is held of an origin that is never given up, and its table."""
        if has_table:
            self._stood[origin] = None
        if has_table or may_go:
            self._bare.pop(origin, None)
        elif origin not in self._stood:
            self._bare[origin] = None

    def loaded(self, origins: Iterable[bytes], by: PeerId = STRANGERS) -> None:
        for origin in origins:
            self._brought.setdefault(by, {})[origin] = None
            self._bringer[origin] = by

    def forget(self, origin: bytes) -> None:
        self._waiting.pop(origin, None)
        self._tabled.pop(origin, None)
        self._stood.pop(origin, None)
        self._bare.pop(origin, None)
        self._recorded_bytes -= self._recorded.pop(origin, 0)
        by = self._bringer.pop(origin)
        del self._brought[by][origin]
        if not self._brought[by]:
            del self._brought[by]

    def to_evict(self, by: PeerId, may_go: Callable[[bytes], bool]) -> bytes | None:
        """Return the origin that makes room for one that `by` brings; None if none does.

        It is the last of those whom the peer with the most has brought, so that who brings many
        crowds out his own. may_go: what has been proven or retracted is never given up, unless it
        is of origins without a table and takes more than a quarter of the room: they harm nobody.
        """
        if 4 * len(self._bare) > self._config.origins_max:
            last = next((o for o in reversed(self._bare) if o not in self.protected), None)
            if last is not None:
                return last
        if not self._brought:
            return None
        most = max(self._brought, key=lambda peer: (len(self._brought[peer]), peer))
        if most != by and len(self._brought.get(by, ())) >= len(self._brought[most]):
            return None
        newest = reversed(self._brought[most])
        return next((o for o in newest if o not in self.protected and may_go(o)), None)
