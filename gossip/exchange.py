"""Fetching and serving bundles by chunks, without IO.

A bundle is named by the SHA-256 of its chunk list, which stands in a signed card. The list is
fetched first and gives every chunk's hash, so each chunk is checked by itself: it may come from
anyone, a liar costs one chunk and is never asked again, and a fetch that was cut short goes on
from what the disk proves to hold. What a bundle is for, is nobody's business here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import assert_never

from .budget import Budget
from .exchange_events import (
    Abandon,
    BlobArrived,
    CheckPart,
    ChunkRead,
    ExchangeConfig,
    ExchangeEffect,
    ExchangeEvent,
    Failed,
    Fetch,
    FetchBlob,
    Finished,
    FrameIn,
    HolderDown,
    HolderUp,
    HoldFetching,
    HoldServing,
    PartChecked,
    PeerRefused,
    SendFrame,
    Serve,
    StopServing,
    StoreChunk,
    Tick,
    WakeAfter,
)
from .patience import Patience
from .ports import PeerId
from .serving import Serving
from .wire import (
    CHUNK_BYTES,
    ChunkData,
    ChunkGet,
    ChunkList,
    ListData,
    ListGet,
    NotHere,
    WireError,
    decode,
    decode_bundle,
    encode,
)

_LIARS_MAX = 10_000  # remembered; the oldest is forgotten first
NIGHT_SPENT = "the budget of the night is spent"
NO_HOLDER = "no holder left"
TOO_LARGE = "bundle too large"
CONTRADICTS_CARD = "chunk list contradicts the card"
TOO_OFTEN = "asked too often"
_WIDER_MAX = 6  # doublings of how many are asked: more than may be connected


@dataclass(slots=True)
class _Holder:
    """One peer's part in one fetch."""

    owed: dict[int, float] = field(default_factory=dict)  # chunk → when it was asked for
    asked: set[int] = field(default_factory=set)  # ever: what it may send
    heard: float = 0.0  # when it last sent a chunk, or was first asked again
    strikes: int = 0


@dataclass(slots=True)
class _Job:
    """One fetch. A label has no size, and is done when its blob has come."""

    root: bytes
    size_bytes: int | None
    named: frozenset[PeerId] | None
    lonely_since: float
    patience: Patience
    by_hand: bool = False
    met: set[PeerId] = field(default_factory=set)  # were holders at some time
    questions: int = 0  # asked of all
    untried: list[PeerId] = field(default_factory=list)  # may be asked for the blob
    asked_blob: dict[PeerId, float] = field(default_factory=dict)  # when; the latest is the last
    blob: bytes | None = None
    hashes: bytes = b""
    holders: dict[PeerId, _Holder] = field(default_factory=dict)
    out: set[PeerId] = field(default_factory=set)  # does not have it, lied, or stalled too often
    condemned: dict[PeerId, _Holder] = field(default_factory=dict)  # liars that still owe chunks
    pending: list[int] = field(default_factory=list)  # to be asked for, from the end
    missing: set[int] | None = None  # None until the part on disk has been checked
    sources: Counter[PeerId] = field(default_factory=Counter)
    resumed_bytes: int = 0

    def wants(self, peer: PeerId) -> bool:
        return peer not in self.out and (self.named is None or peer in self.named)

    def owing(self) -> Iterator[_Holder]:
        """All that may still send a chunk."""
        yield from self.holders.values()
        yield from self.condemned.values()

    def bytes_of(self, index: int) -> int:
        assert self.size_bytes is not None
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)


class Exchange:
    """All fetches of this node, and what it serves. rng: decides whom to ask for what."""

    def __init__(self, config: ExchangeConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._serving = Serving(config)
        self._budget = Budget(config)
        self._peers: dict[PeerId, None] = {}
        self._jobs: dict[bytes, _Job] = {}
        self._liars: dict[PeerId, None] = {}
        self._late: Counter[PeerId] = Counter()  # chunks that may come of fetches that are over
        self._waking = False
        self._held = False  # no fetch asks for anything but those by hand

    def handle(self, event: ExchangeEvent) -> list[ExchangeEffect]:
        """Advance by one event; never raises on anything a peer can send."""
        effects = list(self._handle(event))
        if (self._jobs or self._serving.waits) and not self._waking:
            self._waking = True
            effects.append(WakeAfter(self._config.tick_s))
        return effects

    def _handle(self, event: ExchangeEvent) -> Iterator[ExchangeEffect]:
        match event:
            case FrameIn(peer, frame, now):
                yield from self._frame(peer, frame, now)
            case HolderUp(peer, now):
                self._peers[peer] = None
                for job in list(self._jobs.values()):
                    if peer not in self._liars and job.wants(peer):
                        self._admit(job, peer)
                        yield from self._ask(job, now)
            case HolderDown(peer, now):
                self._peers.pop(peer, None)
                self._serving.forget(peer)
                for job in list(self._jobs.values()):
                    yield from self._lose(job, peer, now)
                self._late.pop(peer, None)
            case Fetch(root, size_bytes, holders, now, by_hand):
                yield from self._start(root, size_bytes, holders, now, by_hand=by_hand)
            case FetchBlob(root, holders, now):
                yield from self._start(root, None, holders, now, by_hand=True)
            case PartChecked(root, good, now):
                yield from self._part_checked(root, good, now)
            case Abandon(root, reason, _):
                if root in self._jobs:
                    self._end(root)
                    yield Failed(root, reason)
            case HoldFetching(on, now):
                for job in self._jobs.values():
                    self._pass_time(job, now)
                self._held = on
                for job in list(self._jobs.values()):
                    job.lonely_since = now
                    yield from self._ask(job, now)
            case HoldServing(on, now):
                yield from self._serving.hold(now, on=on)
            case Serve(root, data, chunks):
                self._serving.serve(root, data, chunks)
            case StopServing(root):
                self._serving.stop(root)
            case ChunkRead(peer, root, index, data):
                yield from self._serving.chunk_read(peer, root, index, data)
            case Tick(now):
                self._waking = False
                yield from self._serving.tick(now)
                for job in list(self._jobs.values()):
                    yield from self._tick(job, now)
            case _:
                assert_never(event)

    def _frame(self, peer: PeerId, frame: bytes, now: float) -> Iterator[ExchangeEffect]:
        try:
            message = decode_bundle(frame)
        except WireError as error:
            yield PeerRefused(peer, str(error))
            return
        match message:
            case ListGet():
                yield from self._serving.list_wanted(peer, message, now)
            case ChunkGet():
                yield from self._serving.chunks_wanted(peer, message, now)
            case ListData(root, data):
                yield from self._blob_arrived(peer, root, data, now)
            case ChunkData(root, index, data):
                yield from self._chunk_arrived(peer, root, index, data, now)
            case NotHere(root):
                job = self._jobs.get(root)
                if job and (peer in job.holders or peer in job.condemned):
                    job.out.add(peer)
                    yield from self._lose(job, peer, now)
            case _:
                assert_never(message)

    # ---- the blob: a label, or the chunk list --------------------------------------------------

    def _start(
        self,
        root: bytes,
        size_bytes: int | None,
        named: frozenset[PeerId] | None,
        now: float,
        *,
        by_hand: bool,
    ) -> Iterator[ExchangeEffect]:
        if job := self._jobs.get(root):
            if by_hand and not job.by_hand:
                job.by_hand = True
                job.patience = Patience(now)
                yield from self._ask(job, now)
            return
        if size_bytes is not None and not 0 < size_bytes <= self._config.bundle_bytes_max:
            yield Failed(root, TOO_LARGE)
            return
        if not by_hand and self._budget.is_spent(now):
            yield Failed(root, NIGHT_SPENT)
            return
        job = _Job(root, size_bytes, named, now, Patience(now), by_hand)
        self._jobs[root] = job
        present = [p for p in self._peers if p not in self._liars and job.wants(p)]
        self._rng.shuffle(present)
        for peer in present:
            self._admit(job, peer)
        yield from self._ask(job, now)

    def _admit(self, job: _Job, peer: PeerId) -> None:
        full = len(job.met) >= self._config.holders_max
        if peer in job.holders or (full and peer not in job.sources):
            return  # names cost nothing: of ever new ones no more than so many
        job.met.add(peer)
        job.holders[peer] = _Holder()
        job.untried.append(peer)

    def _ask(self, job: _Job, now: float) -> Iterator[ExchangeEffect]:
        """Ask for whatever can be asked for now."""
        if self._waits(job):
            return
        if job.blob is None:
            asked_at = next(reversed(job.asked_blob.values()), None)
            waits = asked_at is not None and now - asked_at < self._config.blob_next_s
            if job.untried and not waits and not self._has_asked_enough(job):
                peer = job.untried.pop(0)
                job.asked_blob[peer] = now
                job.questions += 1
                yield SendFrame(peer, encode(ListGet(job.root)))
        elif job.missing:
            yield from self._ask_chunks(job, now)

    def _blob_arrived(
        self, peer: PeerId, root: bytes, data: bytes, now: float
    ) -> Iterator[ExchangeEffect]:
        job = self._jobs.get(root)
        if job is None or job.blob is not None or peer not in job.holders:
            return  # late: another peer was quicker
        if hashlib.sha256(data).digest() != root:
            yield from self._condemn(peer, "list does not match its hash", now)
            return
        if job.size_bytes is None:
            self._end(root)
            yield BlobArrived(root, data, peer)
            return
        try:
            chunks = decode(data, ChunkList)
        except WireError:
            chunks = None
        # The hash is right, so this is what the card's signer meant: no other peer can mend it.
        if chunks is None or chunks.size_bytes != job.size_bytes:
            self._end(root)
            yield Failed(root, CONTRADICTS_CARD)
            return
        job.blob, job.hashes = data, chunks.hashes
        job.asked_blob.clear()
        job.patience.came()
        for holder in job.holders.values():
            holder.strikes = 0
        yield CheckPart(root, job.size_bytes, chunks.hashes)

    # ---- the chunks ----------------------------------------------------------------------------

    def _part_checked(
        self, root: bytes, good: frozenset[int], now: float
    ) -> Iterator[ExchangeEffect]:
        job = self._jobs.get(root)
        if job is None or job.blob is None or job.missing is not None:
            return
        job.pending = [i for i in range(len(job.hashes) // 32) if i not in good]
        self._rng.shuffle(job.pending)
        job.missing = set(job.pending)
        job.resumed_bytes = sum(job.bytes_of(i) for i in good)
        yield from self._ask(job, now) if job.missing else self._finish(job)

    def _ask_chunks(self, job: _Job, now: float) -> Iterator[ExchangeEffect]:
        for peer, holder in self._active(job):
            if not holder.owed:
                holder.heard = now
            # A peer that has stalled gets one chunk at a time.
            room = 1 if holder.strikes or self._wider(job) > 1 else self._config.in_flight_max
            if len(holder.owed) > room // 2:
                continue  # one question for several chunks, and enough under way meanwhile
            if self._has_asked_enough(job):
                return
            wanted = []
            while len(holder.owed) < room:
                index = self._next_chunk(job, holder, now) if self._may_ask(job, now) else None
                if index is None:
                    break
                holder.owed[index] = now
                holder.asked.add(index)
                wanted.append(index)
            if wanted:
                job.questions += 1
                yield SendFrame(peer, encode(ChunkGet(job.root, tuple(wanted))))

    def _waits(self, job: _Job) -> bool:
        return self._held and not job.by_hand

    def _may_ask(self, job: _Job, now: float) -> bool:
        owed = sum(len(h.owed) for j in self._jobs.values() if not j.by_hand for h in j.owing())
        return job.by_hand or self._budget.allows(owed * CHUNK_BYTES, now)

    def _active(self, job: _Job) -> list[tuple[PeerId, _Holder]]:
        """The holders to ask now: those that owe chunks, then those that have stalled least."""
        ranked = sorted(job.holders.items(), key=lambda item: (not item[1].owed, item[1].strikes))
        return ranked[: self._config.peers_max * self._wider(job)]

    def _wider(self, job: _Job) -> int:
        """How many times as many as usual are asked: the more, the longer nothing has come, for
        those who give nothing must not keep out the one that would."""
        return 1 << min(_WIDER_MAX, int(job.patience.idle_s / self._config.stall_s))

    def _has_asked_enough(self, job: _Job) -> bool:
        return job.questions >= self._config.questions_max + 4 * (len(job.hashes) // 32)

    def _next_chunk(self, job: _Job, holder: _Holder, now: float) -> int | None:
        if job.pending:
            return job.pending.pop()
        assert job.missing is not None
        if holder.owed or len(job.missing) > self._config.endgame_chunks:
            return None
        late = []
        for index in sorted(job.missing):
            asked = [h.owed[index] for h in job.owing() if index in h.owed]
            if 0 < len(asked) < 2 * self._wider(job) and index not in holder.owed:
                late.append((len(asked), min(asked), index))
        count, asked_at, index = min(late, default=(0, 0.0, 0))
        if not count or now - asked_at < self._config.endgame_after_s:
            return None
        return index

    def _chunk_arrived(
        self, peer: PeerId, root: bytes, index: int, data: bytes, now: float
    ) -> Iterator[ExchangeEffect]:
        job = self._jobs.get(root)
        holder = (job.holders.get(peer) or job.condemned.get(peer)) if job else None
        if job is None or holder is None or index not in holder.asked or job.missing is None:
            yield from self._unexpected(peer, len(data), now)
            return
        if not job.by_hand:
            self._budget.spend(len(data), now)
        holder.asked.discard(index)
        asked = holder.owed.pop(index, None) is not None
        if not holder.owed and peer in job.condemned:
            del job.condemned[peer]
            self._late[peer] += len(holder.asked)
        expected = job.hashes[32 * index : 32 * index + 32]
        if hashlib.sha256(data).digest() != expected:
            if asked and index in job.missing and not any(index in h.owed for h in job.owing()):
                job.pending.append(index)
            yield from self._condemn(peer, "chunk does not match its hash", now)
            return
        holder.heard = now
        holder.strikes = 0
        if index in job.missing:
            job.patience.came()
            job.missing.discard(index)
            if index in job.pending:
                job.pending.remove(index)  # came after all from a peer that had stalled
            for other in job.owing():
                other.owed.pop(index, None)
            job.sources[peer] += len(data)
            yield StoreChunk(root, index, data)
        yield from self._ask(job, now) if job.missing else self._finish(job)

    def _unexpected(self, peer: PeerId, size_bytes: int, now: float) -> Iterator[ExchangeEffect]:
        """A chunk that no fetch waits for: late, or pushed to use up what may be fetched."""
        if self._late[peer]:
            self._late[peer] -= 1
            self._budget.spend(size_bytes, now)
        else:
            yield PeerRefused(peer, "chunk not asked for")
        if not self._late[peer]:
            del self._late[peer]

    def _end(self, root: bytes) -> None:
        """Forget a fetch, but not what peers were asked for in it."""
        job = self._jobs.pop(root)
        for peer, holder in [*job.holders.items(), *job.condemned.items()]:
            self._late[peer] += len(holder.asked)

    def _finish(self, job: _Job) -> Iterator[ExchangeEffect]:
        assert job.blob is not None
        self._end(job.root)
        yield Finished(job.root, job.blob, dict(job.sources), job.resumed_bytes)

    # ---- peers that fail -----------------------------------------------------------------------

    def _condemn(self, peer: PeerId, reason: str, now: float) -> Iterator[ExchangeEffect]:
        """Never ask this peer for anything again: the link excludes errors, so it lies.

        What it owes may still come. A chunk proves itself, so a lie costs that one chunk.
        """
        self._liars[peer] = None
        if len(self._liars) > _LIARS_MAX:
            del self._liars[next(iter(self._liars))]
        yield PeerRefused(peer, reason)
        for job in list(self._jobs.values()):
            job.out.add(peer)
            if (holder := job.holders.get(peer)) and holder.owed:
                job.condemned[peer] = job.holders.pop(peer)
            if peer in job.condemned:
                yield from self._ask(job, now)
            else:
                yield from self._lose(job, peer, now)

    def _lose(self, job: _Job, peer: PeerId, now: float) -> Iterator[ExchangeEffect]:
        """Go on without a peer."""
        gone = [job.holders.pop(peer, None), job.condemned.pop(peer, None)]
        for holder in filter(None, gone):
            self._late[peer] += len(holder.asked)
            self._take_back(job, holder)
            if not job.holders:
                job.lonely_since = now
        if peer in job.untried:
            job.untried.remove(peer)
        job.asked_blob.pop(peer, None)
        yield from self._ask(job, now)
        yield from self._fail_if_hopeless(job, now)

    def _take_back(self, job: _Job, holder: _Holder) -> None:
        owed_elsewhere = {i for h in job.owing() if h is not holder for i in h.owed}
        job.pending += [i for i in holder.owed if i not in owed_elsewhere]
        holder.owed.clear()

    def _tick(self, job: _Job, now: float) -> Iterator[ExchangeEffect]:
        self._pass_time(job, now)
        for peer, asked_at in list(job.asked_blob.items()):
            if now - asked_at >= self._config.blob_s:
                del job.asked_blob[peer]
                job.untried.append(peer)  # may only be slow: its turn comes again
                yield from self._strike(job, peer, now)
        for peer, holder in list(job.holders.items()):
            if holder.owed and now - holder.heard >= self._config.stall_s:
                self._take_back(job, holder)
                yield from self._strike(job, peer, now)
        for peer, liar in list(job.condemned.items()):
            if now - liar.heard >= self._config.stall_s:
                yield from self._lose(job, peer, now)
        if self._jobs.get(job.root) is not job:
            return
        yield from self._ask(job, now)
        yield from self._fail_if_hopeless(job, now)
        reason = self._end_of(job, now)
        if reason and self._jobs.get(job.root) is job:
            self._end(job.root)
            yield Failed(job.root, reason)

    def _pass_time(self, job: _Job, now: float) -> None:
        job.patience.pass_to(now, counts=self._is_up_to_peers(job, now))

    def _is_up_to_peers(self, job: _Job, now: float) -> bool:
        """False while a fetch is held, waits for the budget, or its part on disk is looked at."""
        if self._waits(job) or (job.blob is not None and job.missing is None):
            return False
        owed = any(holder.owed for holder in job.owing())
        return job.blob is None or owed or self._may_ask(job, now)

    def _end_of(self, job: _Job, now: float) -> str | None:
        """Why a fetch ends though there are peers that might give more."""
        if self._has_no_more(job, now):
            return NIGHT_SPENT
        if self._has_asked_enough(job) and not any(holder.owed for holder in job.owing()):
            return TOO_OFTEN
        return job.patience.at_end(job.size_bytes or 0, self._config)

    def _has_no_more(self, job: _Job, now: float) -> bool:
        """True if nothing can be asked for tonight, and nothing is on its way."""
        asking = self._jobs.get(job.root) is job and bool(job.missing)
        waits = not any(holder.owed for holder in job.owing())
        if job.by_hand or self._held:
            return False
        return asking and waits and self._budget.is_spent(now)

    def _strike(self, job: _Job, peer: PeerId, now: float) -> Iterator[ExchangeEffect]:
        job.holders[peer].strikes += 1
        if job.holders[peer].strikes >= self._config.strikes_max:
            job.out.add(peer)
            yield from self._lose(job, peer, now)

    def _fail_if_hopeless(self, job: _Job, now: float) -> Iterator[ExchangeEffect]:
        """Fail once every peer that could be asked has been, or none has been there for long."""
        if job.holders or job.condemned or self._jobs.get(job.root) is not job:
            return
        if self._waits(job):
            return
        absent = job.named is None or any(p not in job.out for p in job.named)
        everyone_out = not absent or (job.named is None and bool(job.out))
        if everyone_out or now - job.lonely_since >= self._config.patience_s:
            self._end(job.root)
            yield Failed(job.root, NO_HOLDER)
