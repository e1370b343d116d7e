"""The join of what one origin has said: pure, and the same whatever arrives in whatever order.

`Claims` is a semilattice. Keys, retractions and the proof of a fork only accumulate; of the heads
the one with the highest (epoch, seq) stands. So two replicas that have exchanged what they hold
agree, without clocks or votes, and hearing a thing twice or late changes nothing.

    SOUND ──two heads that exclude each other──► FROZEN ──a key of a higher epoch──► SOUND
      ├──────a key document that revokes the epoch───┘
      └──────two keys for one epoch, or more retractions than may be──► DEAD, for ever

Only the highest epoch counts, so only its head and its fork are kept. A retraction counts for ever,
by whichever of the origin's keys it was signed, a revoked one too: a thief can only make us forget
more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain

from .envelope import Sealed, Signed
from .wire import (
    HOUR_S,
    RETRACTS_MAX,
    Head,
    KeyDoc,
    Retract,
    Standing,
    Summary,
    encode,
)

SEQ_AHEAD_H = 24  # a sequence number may be this far ahead of our clock
CLOCK_AHEAD_H = 1
LIFETIME_H_MAX = 168  # the bound on how long a retracted leaf can be routed by who never hears


@dataclass(frozen=True, slots=True)
class Proof:
    """Two heads of one epoch that one honest key cannot both have signed."""

    a: Signed[Head]
    b: Signed[Head]


@dataclass(frozen=True)
class Claims:
    """All that one origin has said, as far as it is known here. Build it only by `with_…`.

    Without slots, so that what follows from it is worked out once.
    """

    origin: bytes
    keys: Mapping[int, KeyDoc] = field(default_factory=dict)
    burn: tuple[KeyDoc, KeyDoc] | None = None  # two keys for one epoch
    fork: Proof | None = None  # of the highest epoch
    head: Signed[Head] | None = None  # of the highest epoch
    retracts: Mapping[bytes | None, Signed[Retract]] = field(default_factory=dict)

    @cached_property
    def epoch(self) -> int:
        """The highest epoch with a known key, or 0."""
        return max(self.keys, default=0)

    @cached_property
    def standing(self) -> Standing:
        if self.burn is not None or len(self.retracts) > RETRACTS_MAX:
            return Standing.DEAD
        if self.fork is not None or self.is_revoked:
            return Standing.FROZEN
        return Standing.SOUND

    @cached_property
    def is_revoked(self) -> bool:
        """True if a key document revokes the highest epoch: no head of it stands any more."""
        return any(doc.revoked and self.epoch in doc.revoked for doc in self.keys.values())

    def is_retracted(self, leaf: bytes) -> bool:
        return leaf in self.retracts or None in self.retracts or self.standing is Standing.DEAD

    def public_key(self, epoch: int) -> bytes | None:
        """Return the key that signs for an epoch; 0 is the root key. None if it is not known."""
        if epoch:
            return self.keys[epoch].op if epoch in self.keys else None
        return next((doc.root for doc in self.keys.values()), None)

    def with_key(self, doc: KeyDoc) -> Claims:
        """Add a key whose root signature was checked and whose root is this origin."""
        known = self.keys.get(doc.epoch)
        if known == doc or self.standing is Standing.DEAD:
            return self
        if known is not None:
            return Claims(self.origin, self.keys, burn=(known, doc))  # nothing else counts now
        claims = replace(self, keys={**self.keys, doc.epoch: doc})
        if doc.epoch > self.epoch or claims.is_revoked:
            return replace(claims, fork=None, head=None)
        return claims

    def with_head(self, head: Signed[Head]) -> Claims:
        """Add a head. It replaces an older one; one that excludes the head at hand freezes."""
        if head.value.epoch != self.epoch or self.standing is not Standing.SOUND:
            return self
        if self.head is None:
            return replace(self, head=head)
        if conflict(self.head, head):
            return self.with_fork(proof(self.head, head))
        return replace(self, head=head) if head.value.seq > self.head.value.seq else self

    def with_fork(self, proof: Proof) -> Claims:
        """Add a proof whose heads' signatures were checked; one that proves nothing is ignored."""
        if proof.a.value.epoch != self.epoch or not conflict(proof.a, proof.b):
            return self
        if self.standing is not Standing.SOUND:
            return self
        return replace(self, fork=proof, head=None)

    def with_retract(self, retract: Signed[Retract]) -> Claims:
        """Add a retraction. Of two for one leaf the one with the lower hash is kept."""
        known = self.retracts.get(retract.value.leaf)
        if self.standing is Standing.DEAD or (known is not None and known.id <= retract.id):
            return self
        retracts = {**self.retracts, retract.value.leaf: retract}
        claims = replace(self, retracts=retracts)
        if claims.standing is Standing.DEAD:
            return replace(claims, fork=None, head=None)
        return claims


def join(a: Claims, b: Claims) -> Claims:
    """Return what follows from both. Commutative, associative and idempotent, up to `summary`."""
    for doc in chain(b.keys.values(), b.burn or ()):
        a = a.with_key(doc)
    for retract in b.retracts.values():
        a = a.with_retract(retract)
    if b.fork is not None:
        a = a.with_fork(b.fork)
    return a if b.head is None else a.with_head(b.head)


def conflict(a: Sealed[Head] | Signed[Head], b: Sealed[Head] | Signed[Head]) -> bool:
    """True if one honest key cannot have signed both: two histories of one epoch.

    It is proof only once both signatures are checked; before, it says whether to check them.

    A gap is no conflict: each head names the one before it, so a chain with heads missing is seen
    to be a chain. Two branches that never come within one link of each other are not detected.
    """
    if a.id == b.id or (a.value.origin, a.value.epoch) != (b.value.origin, b.value.epoch):
        return False
    if a.value.seq == b.value.seq:
        return True
    low, high = (a, b) if a.value.seq < b.value.seq else (b, a)
    if high.value.prev_seq == low.value.seq:
        return high.value.prev != low.id
    return high.value.prev_seq < low.value.seq


def proof(a: Signed[Head], b: Signed[Head]) -> Proof:
    """Return the proof in one order, so that all who find it out have the same bytes to tell."""
    return Proof(a, b) if a.id < b.id else Proof(b, a)


def out_of_bounds(head: Head, key: KeyDoc) -> str | None:
    """Return why a head can never be accepted, or None."""
    if not head.ts_h <= head.exp_h <= head.ts_h + LIFETIME_H_MAX:
        return "head lives too long"
    if head.prev_seq >= head.seq:
        return "head before itself"
    if not key.not_before_h <= head.ts_h <= key.not_after_h:
        return "head outside its key's time"
    return None


def too_early(head: Head, now_s: int) -> str | None:
    """Return why a head cannot be accepted yet, or None. It may be our clock that is wrong."""
    now_h = now_s // HOUR_S
    if head.seq >> 16 > now_h + SEQ_AHEAD_H:
        return "sequence number from the future"
    if head.ts_h > now_h + CLOCK_AHEAD_H:
        return "head from the future"
    return None


def is_stale(head: Head, now_s: int) -> bool:
    """True once a head has expired: its leaves are kept, and not routed to."""
    return head.exp_h < now_s // HOUR_S


def same_table(a: Head, b: Head) -> bool:
    """True if two heads stand for the same leaves: one is the other, renewed."""
    return (a.table_root, a.n_live, a.usage) == (b.table_root, b.n_live, b.usage)


def newest_h(claims: Claims) -> int:
    """Return the hour of the latest claim; what is proven against an origin is always new."""
    revokes = any(doc.revoked for doc in claims.keys.values())
    if claims.burn is not None or claims.fork is not None or revokes:
        return 0xFFFF_FFFF
    hours = [retract.value.ts_h for retract in claims.retracts.values()]
    return max(hours + ([claims.head.value.ts_h] if claims.head else []), default=0)


def next_seq(last: int, now_s: int) -> int:
    """Return the sequence number after `last`.

    It is a counter that starts anew above each hour, so that a store restored from an old backup
    jumps ahead of what it has published and forgotten.
    """
    return max(last + 1, now_s // HOUR_S << 16)


# What is held, in brief ---------------------------------------------------------------------------


def slot_of(origin: bytes) -> bytes:
    """Return the half of an origin by which it is compared: nobody can find a second with it."""
    return origin[:16]


def summary(claims: Claims) -> Summary:
    """Return what is held, such that two replicas hold the same exactly if it is equal.

    Which proof of a fork or of a burnt root is held does not matter, so it does not enter.
    """
    slot, standing = slot_of(claims.origin), claims.standing
    if standing is Standing.DEAD:
        return Summary(slot, 0, standing, 0, bytes(16), b"")
    seq, head = (claims.head.value.seq, claims.head.id[:16]) if claims.head else (0, bytes(16))
    names = sorted(short for short, _ in _identified(claims))
    return Summary(slot, claims.epoch, standing, seq, head, b"".join(names))


def nothing_of(slot: bytes) -> Summary:
    """Return the summary of an origin of which nothing is held."""
    return Summary(slot, 0, Standing.SOUND, 0, bytes(16), b"")


def item(claims: Claims) -> bytes:
    """Return the 32 bytes that stand for an origin in reconciliation: its slot, a hash of all."""
    return item_of(summary(claims))


def item_of(brief: Summary) -> bytes:
    return brief.slot + hashlib.sha256(encode(brief)).digest()[:16]


def lacking(claims: Claims, theirs: Summary) -> Claims:
    """Return the part of one's claims that a peer with this summary does not hold."""
    if theirs.standing is Standing.DEAD:
        return Claims(claims.origin)
    if claims.standing is Standing.DEAD:
        return claims
    known = ids(theirs)
    fresh = [value for short, value in _identified(claims) if short not in known]
    keys = {doc.epoch: doc for doc in fresh if isinstance(doc, KeyDoc)}
    retracts = {r.value.leaf: r for r in fresh if isinstance(r, Signed)}
    same_epoch = theirs.epoch == claims.epoch
    fork = None if same_epoch and theirs.standing is Standing.FROZEN else claims.fork
    head = claims.head
    if head is not None and (theirs.epoch > claims.epoch or _has_head(theirs, head)):
        head = None
    return Claims(claims.origin, keys, None, fork, head, retracts)


def lacks(claims: Claims, theirs: Summary) -> bool:
    """True if a peer with this summary holds something that is not held here."""
    return is_behind(summary(claims), theirs)


def is_behind(mine: Summary, theirs: Summary) -> bool:
    """The same, of what is held here in brief."""
    if Standing.DEAD in (mine.standing, theirs.standing):
        return mine.standing is not Standing.DEAD
    if theirs.ids != mine.ids and not ids(theirs) <= ids(mine):
        return True
    if theirs.epoch != mine.epoch or mine.standing is Standing.FROZEN:
        return False
    ahead = theirs.seq > mine.seq or (theirs.seq == mine.seq and theirs.head != mine.head)
    return theirs.standing is Standing.FROZEN or ahead


def _has_head(theirs: Summary, head: Signed[Head]) -> bool:
    """True if a peer holds this head, or one after it, or knows that its epoch is frozen."""
    if theirs.epoch != head.value.epoch:
        return False
    if theirs.standing is Standing.FROZEN or theirs.seq > head.value.seq:
        return True
    return theirs.seq == head.value.seq and theirs.head == head.id[:16]


def _identified(claims: Claims) -> Iterator[tuple[bytes, KeyDoc | Signed[Retract]]]:
    """All keys and retractions, each with the 16 bytes by which two replicas name it."""
    for doc in claims.keys.values():
        yield key_id(doc), doc
    for retract in claims.retracts.values():
        yield retract.id[:16], retract


@lru_cache(maxsize=4096)
def key_id(doc: KeyDoc) -> bytes:
    """Return the 16 bytes by which two replicas name a key document."""
    return hashlib.sha256(encode(doc)).digest()[:16]


def ids(brief: Summary) -> set[bytes]:
    """The names of the keys and retractions that are held."""
    names = brief.ids
    if len(names) == 16:  # one key, as most have
        return {names}
    return {names[i : i + 16] for i in range(0, len(names), 16)}
