"""The bundle exchange under liars, stalls, loss and restarts, in simulated time."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.bundle_files import chunk_list, root_of
from gossip.exchange import Exchange
from gossip.exchange_events import (
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
    ReadChunk,
    SendFrame,
    Serve,
    StopServing,
    StoreChunk,
    Tick,
    WakeAfter,
)
from gossip.ports import PeerId
from gossip.wire import (
    CHUNK_BYTES,
    ChunkData,
    ChunkGet,
    ListData,
    ListGet,
    NotHere,
    decode_bundle,
    encode,
)

A, B, C, D, E = (PeerId(name) for name in "ABCDE")
ME = PeerId("me")


def bundle_of(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


@dataclass
class World:
    """One fetcher and holders, each an `Exchange`, over links with latency and bandwidth."""

    seed: int
    data: bytes
    liars: frozenset[PeerId] = frozenset()
    mute: dict[PeerId, int] = field(default_factory=dict)  # sends so many chunks, then none
    dead_after: dict[PeerId, int] = field(default_factory=dict)  # chunks, then it disconnects
    chunk_s: float = 0.05
    disk: dict[int, bytes] = field(default_factory=dict)
    stop_after: int | None = None  # chunks stored, then the fetcher is killed

    def __post_init__(self) -> None:
        self.now = 0.0
        self.rng = Random(f"world/{self.seed}")
        self.queue: list[tuple[float, int, PeerId, ExchangeEvent]] = []
        self.ties = count()
        self.chunks = chunk_list(self.data)
        self.root = root_of(self.chunks)
        self.nodes: dict[PeerId, Exchange] = {}
        self.busy: Counter[PeerId] = Counter()  # until when a peer's uplink is in use
        self.sent: Counter[PeerId] = Counter()  # chunks sent by each
        self.refused: list[tuple[PeerId, str]] = []
        self.asked_after_refusal: list[PeerId] = []
        self.lies = 0
        self.bytes_in = 0
        self.outcome: Finished | Failed | BlobArrived | None = None
        self.killed = False

    def run(self, holders: list[PeerId], for_s: float = 600.0) -> None:
        self.nodes[ME] = Exchange(ExchangeConfig(), Random(f"{self.seed}/me"))
        for peer in holders:
            self.nodes[peer] = Exchange(ExchangeConfig(), Random(f"{self.seed}/{peer}"))
            serve = Serve(self.root, encode(self.chunks), len(self.chunks.hashes) // 32)
            self.post(peer, 0.0, serve)
            self.post(ME, 0.0, HolderUp(peer, 0.0))
        self.post(ME, 0.0, Fetch(self.root, len(self.data), None, 0.0))
        while self.queue and self.now < for_s and self.outcome is None and not self.killed:
            self.now, _, node, event = heapq.heappop(self.queue)
            if node not in self.nodes:
                continue
            if hasattr(event, "now"):
                event = type(event)(*(getattr(event, n) for n in event.__slots__[:-1]), self.now)
            for effect in self.nodes[node].handle(event):
                self.perform(node, effect)

    def post(self, node: PeerId, delay_s: float, event: ExchangeEvent) -> None:
        heapq.heappush(self.queue, (self.now + delay_s, next(self.ties), node, event))

    def perform(self, node: PeerId, effect: ExchangeEffect) -> None:
        match effect:
            case SendFrame(to, frame):
                self.send(node, to, frame)
            case CheckPart(root, _, hashes):
                assert hashes == self.chunks.hashes
                self.post(node, 0.01, PartChecked(root, frozenset(self.disk), 0.0))
            case StoreChunk(_, index, data):
                assert index not in self.disk, "a chunk is stored once"
                self.disk[index] = data
                if self.stop_after is not None and len(self.disk) >= self.stop_after:
                    self.killed = True
            case ReadChunk(peer, root, index):
                data = self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                self.post(node, 0.001, ChunkRead(peer, root, index, data))
            case PeerRefused(peer, reason):
                self.refused.append((peer, reason))
            case Finished() | Failed() | BlobArrived():
                self.outcome = effect
            case WakeAfter(delay_s):
                self.post(node, delay_s, Tick(0.0))

    def send(self, sender: PeerId, to: PeerId, frame: bytes) -> None:
        message = decode_bundle(frame)
        delay_s = self.rng.uniform(0.005, 0.02)
        if sender == ME and to in {peer for peer, _ in self.refused}:
            self.asked_after_refusal.append(to)
        if isinstance(message, ChunkData):
            if sender in self.mute and self.sent[sender] >= self.mute[sender]:
                return
            self.sent[sender] += 1
            if self.sent[sender] > self.dead_after.get(sender, 1 << 30):
                self.nodes.pop(sender, None)
                self.post(ME, 0.0, HolderDown(sender, 0.0))
                return
            start = max(self.now, self.busy[sender])
            self.busy[sender] = start + self.chunk_s * self.rng.uniform(0.5, 1.5)
            delay_s += self.busy[sender] - self.now
            if sender in self.liars and self.rng.random() < 0.2:
                wrong = bytes([message.data[0] ^ 1]) + message.data[1:]
                frame = encode(ChunkData(message.root, message.index, wrong))
                self.lies += 1
            self.bytes_in += len(message.data)
        self.post(to, delay_s, FrameIn(sender, frame, 0.0))

    def fetched(self) -> bytes:
        return b"".join(self.disk[index] for index in sorted(self.disk))


@pytest.mark.parametrize("seed", range(10))
def test_a_bundle_comes_whole_from_four_holders_one_lying_and_one_stalling(seed: int) -> None:
    world = World(seed, bundle_of(50 * CHUNK_BYTES + 7), frozenset({A}), {B: 3})
    world.run([A, B, C, D])
    assert isinstance(world.outcome, Finished), f"seed {seed}: {world.outcome}"
    assert world.fetched() == world.data, f"seed {seed}"
    assert sum(world.outcome.sources.values()) == len(world.data)
    assert {C, D} <= set(world.outcome.sources)
    # A few late chunks are asked for twice.
    assert world.bytes_in <= 1.06 * len(world.data) + CHUNK_BYTES * world.lies, f"seed {seed}"


@pytest.mark.parametrize("seed", range(10))
def test_a_lie_costs_one_chunk_and_a_liar_is_never_asked_again(seed: int) -> None:
    world = World(seed, bundle_of(60 * CHUNK_BYTES), frozenset({A, B}))
    world.run([A, B, C])
    assert isinstance(world.outcome, Finished)
    assert world.fetched() == world.data
    assert {reason for _, reason in world.refused} == {"chunk does not match its hash"}
    assert {peer for peer, _ in world.refused} <= {A, B}, f"seed {seed}"
    assert not world.asked_after_refusal, f"seed {seed}: {world.asked_after_refusal}"
    # What the liar owed besides is taken, for it proves itself; so nothing else comes twice.
    assert world.bytes_in <= len(world.data) + CHUNK_BYTES * world.lies, f"seed {seed}"


@pytest.mark.parametrize("seed", range(5))
def test_holders_that_vanish_are_replaced(seed: int) -> None:
    world = World(seed, bundle_of(40 * CHUNK_BYTES), dead_after={A: 5, B: 9})
    world.run([A, B, C])
    assert isinstance(world.outcome, Finished)
    assert world.fetched() == world.data


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_fetch_goes_on_from_what_is_on_disk(seed: int) -> None:
    data = bundle_of(40 * CHUNK_BYTES)
    disk: dict[int, bytes] = {}
    for kill in (7, 19, 33):
        killed = World(seed, data, disk=disk, stop_after=kill)
        killed.run([A, B])
        assert killed.killed
    last = World(seed, data, disk=disk)
    last.run([A, B])
    assert isinstance(last.outcome, Finished)
    assert last.outcome.resumed_bytes == 33 * CHUNK_BYTES
    assert sum(last.outcome.sources.values()) == 7 * CHUNK_BYTES
    assert last.fetched() == data


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 12 * CHUNK_BYTES),
    liars=st.sets(st.sampled_from([A, B, C])),
    mute=st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 4)),
    dead=st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 4)),
)
@settings(max_examples=40, deadline=None)
def test_one_honest_holder_suffices_whatever_the_others_do(
    seed: int, size: int, liars: set[PeerId], mute: dict[PeerId, int], dead: dict[PeerId, int]
) -> None:
    world = World(seed, bundle_of(size), frozenset(liars), mute, dead)
    world.run([A, B, C, D])
    assert isinstance(world.outcome, Finished)
    assert world.fetched() == world.data


def test_the_same_seed_gives_the_same_requests() -> None:
    def trace() -> list[tuple[PeerId, int]]:
        world = World(3, bundle_of(20 * CHUNK_BYTES), frozenset({A}), {B: 2})
        world.run([A, B, C])
        return [*world.sent.items(), (ME, world.bytes_in)]

    assert trace() == trace()


# ---- one fetcher, by hand ------------------------------------------------------------------------


class Desk:
    """A fetcher driven event by event."""

    def __init__(self, peers: list[PeerId], config: ExchangeConfig | None = None) -> None:
        self.exchange = Exchange(config or ExchangeConfig(), Random(1))
        for peer in peers:
            self.exchange.handle(HolderUp(peer, 0.0))

    def hear(self, peer: PeerId, message: object, now: float = 0.0) -> list[ExchangeEffect]:
        return self.exchange.handle(FrameIn(peer, encode(message), now))  # type: ignore[arg-type]

    def fetch(self, root: bytes, size: int, *named: PeerId) -> list[ExchangeEffect]:
        return self.exchange.handle(Fetch(root, size, frozenset(named) or None, 0.0))


def sends(effects: list[ExchangeEffect]) -> list[tuple[PeerId, object]]:
    return [(e.peer, decode_bundle(e.frame)) for e in effects if isinstance(e, SendFrame)]


DATA = bundle_of(2 * CHUNK_BYTES + 1)
LIST = chunk_list(DATA)
ROOT = root_of(LIST)


def test_a_bundle_above_the_limit_is_not_asked_for() -> None:
    desk = Desk([A], ExchangeConfig(bundle_bytes_max=1000))
    assert desk.fetch(ROOT, 1001) == [Failed(ROOT, "bundle too large")]
    assert desk.fetch(ROOT, 0) == [Failed(ROOT, "bundle too large")]


def test_a_false_chunk_list_condemns_its_sender_and_another_is_asked() -> None:
    desk = Desk([A, B])
    [(first, _)] = sends(desk.fetch(ROOT, len(DATA)))
    other = B if first == A else A
    effects = desk.hear(first, ListData(ROOT, encode(chunk_list(b"other"))))
    assert PeerRefused(first, "list does not match its hash") in effects
    assert sends(effects) == [(other, ListGet(ROOT))]


def test_a_chunk_list_that_contradicts_the_card_ends_the_fetch() -> None:
    desk = Desk([A])
    desk.fetch(ROOT, len(DATA) + 1)
    effects = desk.hear(A, ListData(ROOT, encode(LIST)))
    assert Failed(ROOT, "chunk list contradicts the card") in effects


def test_a_signed_root_that_names_no_chunk_list_ends_the_fetch() -> None:
    import hashlib

    root = hashlib.sha256(b"not a list").digest()
    desk = Desk([A])
    desk.fetch(root, 10)
    effects = desk.hear(A, ListData(root, b"not a list"))
    assert Failed(root, "chunk list contradicts the card") in effects


def test_chunks_that_were_not_asked_for_are_refused_unhashed() -> None:
    desk = Desk([A, B])
    desk.fetch(ROOT, len(DATA), A)
    desk.hear(A, ListData(ROOT, encode(LIST)))
    desk.exchange.handle(PartChecked(ROOT, frozenset({0, 1}), 0.0))
    assert desk.hear(A, ChunkData(ROOT, 0, DATA[:CHUNK_BYTES])) == [
        PeerRefused(A, "chunk not asked for")
    ]
    refused = [PeerRefused(B, "chunk not asked for")]  # B is no holder in this fetch
    assert desk.hear(B, ChunkData(ROOT, 2, b"x")) == refused


def test_chunks_that_nobody_asked_for_do_not_use_up_what_may_be_fetched() -> None:
    data = bundle_of(2 * CHUNK_BYTES)
    desk = Desk([A], ExchangeConfig(bytes_night_max=2 * CHUNK_BYTES))
    pushed = ChunkData(bytes(32), 0, bytes(CHUNK_BYTES))
    for _ in range(10):
        assert desk.hear(B, pushed) == [PeerRefused(B, "chunk not asked for")]
    assert len(fetching(desk, data)) == 2


def test_each_chunk_that_was_asked_for_may_come_late_once_after_the_fetch_is_over() -> None:
    data = bundle_of(8 * CHUNK_BYTES)
    desk = Desk([A])
    owed = fetching(desk, data)
    desk.exchange.handle(Abandon(root_of(chunk_list(data)), "test", 1.0))
    assert arrive(desk, data, owed, 2.0) == []
    assert [type(e) for e in arrive(desk, data, owed[:1], 3.0)] == [PeerRefused]


def test_no_peer_is_sent_more_than_its_share_of_a_night() -> None:
    data = bundle_of(8 * CHUNK_BYTES)
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk = Desk([A, B], ExchangeConfig(bytes_night_max=40 * CHUNK_BYTES, night_share=4))
    desk.exchange.handle(Serve(root, encode(chunks), 8))

    def took(peer: PeerId, now: float) -> int:
        """Chunks that a peer is sent, which asks for the same again and again."""
        for sent in range(100):
            index = sent % 8
            effects = desk.hear(peer, ChunkGet(root, (index,)), now)
            if ReadChunk(peer, root, index) not in effects:
                assert sends(effects) == [(peer, NotHere(root))]
                assert sends(desk.hear(peer, ListGet(root), now)) == [(peer, NotHere(root))]
                return sent
            desk.exchange.handle(ChunkRead(peer, root, index, data[:CHUNK_BYTES]))
        pytest.fail("one peer was sent everything")

    assert (took(A, 0.0), took(B, 1.0)) == (10, 7)
    assert took(A, 24 * 3600 + 1.0) == 10


def test_who_was_not_asked_cannot_say_that_a_bundle_is_not_here() -> None:
    desk = Desk([])
    desk.exchange.handle(Fetch(ROOT, len(DATA), None, 0.0))
    assert desk.hear(A, NotHere(ROOT)) == []


def test_a_fetch_fails_at_once_when_everyone_has_said_no() -> None:
    desk = Desk([A, B])
    [(first, _)] = sends(desk.fetch(ROOT, len(DATA)))
    [(second, _)] = sends(desk.hear(first, NotHere(ROOT)))
    assert Failed(ROOT, "no holder left") in desk.hear(second, NotHere(ROOT))


def test_a_fetch_waits_for_a_named_holder_that_is_away_but_not_for_ever() -> None:
    desk = Desk([])
    assert sends(desk.fetch(ROOT, len(DATA), A)) == []
    assert sends(desk.exchange.handle(HolderUp(B, 1.0))) == []
    assert sends(desk.exchange.handle(HolderUp(A, 2.0))) == [(A, ListGet(ROOT))]
    desk.exchange.handle(HolderDown(A, 3.0))
    assert Failed(ROOT, "no holder left") not in desk.exchange.handle(Tick(32.0))
    assert Failed(ROOT, "no holder left") in desk.exchange.handle(Tick(33.0))


def test_no_peer_owes_more_than_four_chunks_and_no_more_than_four_peers_are_asked() -> None:
    data = bundle_of(60 * CHUNK_BYTES)
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk = Desk([A, B, C, D, E])
    [(first, _)] = sends(desk.fetch(root, len(data)))
    desk.hear(first, ListData(root, encode(chunks)))
    asked = sends(desk.exchange.handle(PartChecked(root, frozenset(), 0.0)))
    assert len({peer for peer, _ in asked}) == 4
    gets = [message for _, message in asked if isinstance(message, ChunkGet)]
    assert [len(get.indices) for get in gets] == [4] * 4
    indices = [index for get in gets for index in get.indices]
    assert len(set(indices)) == 16 and indices != sorted(indices)


def test_a_blob_is_checked_by_its_hash() -> None:
    import hashlib

    label = b"{}"
    root = hashlib.sha256(label).digest()
    desk = Desk([A])
    desk.exchange.handle(FetchBlob(root, None, 0.0))
    assert BlobArrived(root, label, A) in desk.hear(A, ListData(root, label))


def test_an_abandoned_fetch_fails_with_its_reason() -> None:
    desk = Desk([A])
    desk.fetch(ROOT, len(DATA))
    assert desk.exchange.handle(Abandon(ROOT, "cancelled", 0.0)) == [Failed(ROOT, "cancelled")]
    assert desk.hear(A, ListData(ROOT, encode(LIST))) == []


# ---- serving -------------------------------------------------------------------------------------


def server() -> Desk:
    desk = Desk([A, B])
    desk.exchange.handle(Serve(ROOT, encode(LIST), 3))
    return desk


def test_only_what_is_served_is_answered_for() -> None:
    desk = server()
    other = bytes(32)
    assert sends(desk.hear(A, ListGet(other))) == [(A, NotHere(other))]
    assert sends(desk.hear(A, ChunkGet(other, (0,)))) == [(A, NotHere(other))]
    assert sends(desk.hear(A, ListGet(ROOT))) == [(A, ListData(ROOT, encode(LIST)))]
    desk.exchange.handle(StopServing(ROOT))
    assert sends(desk.hear(A, ListGet(ROOT))) == [(A, NotHere(ROOT))]


def test_a_chunk_read_after_the_permission_has_gone_is_not_sent() -> None:
    desk = server()
    assert desk.hear(A, ChunkGet(ROOT, (0,))) == [ReadChunk(A, ROOT, 0)]
    desk.exchange.handle(StopServing(ROOT))
    effects = desk.exchange.handle(ChunkRead(A, ROOT, 0, DATA[:CHUNK_BYTES]))
    assert sends(effects) == [(A, NotHere(ROOT))]


def test_peers_take_turns_in_the_upload_slots() -> None:
    data = bundle_of(8 * CHUNK_BYTES)
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk = Desk([A, B])
    desk.exchange.handle(Serve(root, encode(chunks), 8))
    reads = desk.hear(A, ChunkGet(root, tuple(range(8))))
    assert reads == [ReadChunk(A, root, index) for index in range(4)]
    assert desk.hear(B, ChunkGet(root, (0, 1))) == []
    first = desk.exchange.handle(ChunkRead(A, root, 0, b"x"))
    second = desk.exchange.handle(ChunkRead(A, root, 1, b"x"))
    assert [e for e in first + second if isinstance(e, ReadChunk)] == [
        ReadChunk(A, root, 4),
        ReadChunk(B, root, 0),
    ]


def test_a_peer_that_asks_for_too_much_is_refused() -> None:
    data = bundle_of(20 * CHUNK_BYTES)
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk = Desk([A])
    desk.exchange.handle(Serve(root, encode(chunks), 20))
    desk.hear(A, ChunkGet(root, tuple(range(8))))
    assert desk.hear(A, ChunkGet(root, tuple(range(8, 16)))) == [
        PeerRefused(A, "too many chunks asked")
    ]
    assert desk.hear(A, ChunkGet(root, (20 - 1 + 1,))) == [PeerRefused(A, "no such chunk")]


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_raises(frame: bytes) -> None:
    effects = server().exchange.handle(FrameIn(A, frame, 0.0))
    assert all(isinstance(effect, PeerRefused) for effect in effects)


# ---- any order, doubles, what nobody asked for, lies ---------------------------------------------


@given(
    chance=st.randoms(use_true_random=False),
    size=st.integers(1, 9 * CHUNK_BYTES),
    here=st.sets(st.integers(0, 8)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_arrives_in_whatever_order_only_true_chunks_are_stored_and_each_once(
    chance: Random, size: int, here: set[int]
) -> None:
    data = bundle_of(size)
    chunks = chunk_list(data)
    root, number = root_of(chunks), len(chunks.hashes) // 32
    good = frozenset(index for index in here if index < number)
    desk = Desk([A, B, C])
    stored: dict[int, bytes] = {}
    finished: list[Finished] = []
    asked: dict[tuple[PeerId, int], None] = {}

    def took(effects: list[ExchangeEffect]) -> None:
        for effect in effects:
            match effect:
                case StoreChunk(_, index, came):
                    assert index not in stored and index not in good
                    assert came == data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    stored[index] = came
                case Finished():
                    finished.append(effect)
                case PeerRefused(peer, reason):
                    assert peer != A or reason == "chunk not asked for"
        for peer, message in sends(effects):
            if isinstance(message, ChunkGet):
                asked.update({(peer, index): None for index in message.indices})

    desk.fetch(root, size)
    for peer in (A, B, C):
        took(desk.hear(peer, ListData(root, encode(chunks))))
    took(desk.exchange.handle(PartChecked(root, good, 0.0)))
    for _ in range(chance.randrange(60)):
        peer = chance.choice([A, B, C])
        index = chance.choice([i for p, i in asked if p == peer] + [chance.randrange(number)])
        true = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        lies = peer != A and chance.random() < 0.3
        sent = bytes([true[0] ^ 1]) + true[1:] if lies else true
        took(desk.hear(peer, ChunkData(root, index, sent), 1.0))
    for peer in (B, C):  # whatever they did, the honest one suffices
        took(desk.exchange.handle(HolderDown(peer, 2.0)))
    while not finished:
        owed = [i for p, i in asked if p == A and i not in stored]
        assert owed, "nothing is asked of the one who would answer"
        took(arrive(desk, data, owed[:1], 3.0))
    assert len(finished) == 1
    assert set(stored) | good == set(range(number))
    assert sum(finished[0].sources.values()) + finished[0].resumed_bytes == size
    late = desk.hear(A, ChunkData(root, 0, data[:CHUNK_BYTES]), 4.0)
    assert all(isinstance(effect, PeerRefused) for effect in late)


def condemned() -> tuple[Desk, bytes, list[int]]:
    """A fetcher whose only peer A has told one lie and owes three more chunks."""
    data = bundle_of(10 * CHUNK_BYTES)
    desk = Desk([A])
    first, *owed = fetching(desk, data)
    root = root_of(chunk_list(data))
    refused = desk.hear(A, ChunkData(root, first, b"false"))
    assert refused == [PeerRefused(A, "chunk does not match its hash")]
    return desk, root, owed


def test_what_a_liar_owes_is_asked_of_others_when_it_goes() -> None:
    desk, root, owed = condemned()
    data = bundle_of(10 * CHUNK_BYTES)
    waiting = indices(desk.exchange.handle(HolderUp(B, 1.0)))
    assert not set(waiting) & set(owed)  # they may still come
    waiting += indices(desk.exchange.handle(HolderDown(A, 2.0)))
    asked = set(waiting)
    while waiting:
        index = waiting.pop()
        chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        more = indices(desk.hear(B, ChunkData(root, index, chunk), 3.0))
        waiting += more
        asked |= set(more)
    assert asked == set(range(10))


def test_a_fetch_whose_last_peer_lied_and_then_fell_silent_fails() -> None:
    desk, root, _ = condemned()
    failed = Failed(root, "no holder left")
    assert failed not in desk.exchange.handle(Tick(14.0))
    assert failed in desk.exchange.handle(Tick(15.0))


def test_a_liar_that_lies_with_all_it_owes_ends_the_fetch_at_its_last_lie() -> None:
    desk, root, owed = condemned()
    for index in owed[:-1]:
        desk.hear(A, ChunkData(root, index, b"false"))
    last = desk.hear(A, ChunkData(root, owed[-1], b"false"))
    assert Failed(root, "no holder left") in last


def test_a_fetch_that_runs_is_joined_and_may_become_one_by_hand() -> None:
    data = bundle_of(10 * CHUNK_BYTES)
    root = root_of(chunk_list(data))
    desk = Desk([A], slow())
    assert len(fetching(desk, data)) == 2
    joined = desk.exchange.handle(Fetch(root, len(data), None, 0.1, by_hand=True))
    assert len(indices(joined)) == 2  # what the budget had held back


def test_a_fetch_that_is_held_asks_for_no_more_until_it_is_let_go() -> None:
    data = bundle_of(10 * CHUNK_BYTES)
    root = root_of(chunk_list(data))
    desk = Desk([A])
    owed = fetching(desk, data)
    assert desk.exchange.handle(HoldFetching(True, 0.1)) == []
    for index in owed:  # what was asked for may come
        piece = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        effects = desk.hear(A, ChunkData(root, index, piece), 0.2)
        assert [type(effect) for effect in effects] == [StoreChunk]
    # Nobody is blamed, and no patience runs out, however long it lasts.
    assert sends(desk.exchange.handle(Tick(1000.0))) == []
    desk.exchange.handle(HolderDown(A, 1001.0))
    assert not any(isinstance(e, Failed) for e in desk.exchange.handle(Tick(2000.0)))
    desk.exchange.handle(HolderUp(A, 2001.0))
    let_go = desk.exchange.handle(HoldFetching(False, 2002.0))
    assert len(indices(let_go)) == 4
    assert not any(isinstance(e, Failed) for e in desk.exchange.handle(Tick(2003.0)))


def test_a_fetch_by_hand_is_not_held_and_one_that_becomes_so_goes_on() -> None:
    data = bundle_of(10 * CHUNK_BYTES)
    root = root_of(chunk_list(data))
    desk = Desk([A])
    desk.exchange.handle(HoldFetching(True, 0.0))
    assert sends(desk.fetch(root, len(data))) == []
    joined = desk.exchange.handle(Fetch(root, len(data), None, 0.1, by_hand=True))
    assert sends(joined) == [(A, ListGet(root))]


def test_who_serves_nothing_for_now_says_so_also_to_those_that_wait() -> None:
    desk = server()
    desk.exchange.handle(Serve(ROOT, encode(LIST), 8))
    desk.hear(A, ChunkGet(ROOT, tuple(range(8))))
    assert sends(desk.exchange.handle(HoldServing(True, 1.0))) == [(A, NotHere(ROOT))]
    assert sends(desk.hear(B, ListGet(ROOT), 1.1)) == [(B, NotHere(ROOT))]
    assert sends(desk.hear(B, ChunkGet(ROOT, (0,)), 1.1)) == [(B, NotHere(ROOT))]
    desk.exchange.handle(HoldServing(False, 2.0))
    assert sends(desk.hear(B, ListGet(ROOT), 2.1)) == [(B, ListData(ROOT, encode(LIST)))]


def test_uploads_of_what_is_served_no_more_are_forgotten() -> None:
    desk = server()
    desk.exchange.handle(Serve(ROOT, encode(LIST), 8))
    desk.hear(A, ChunkGet(ROOT, tuple(range(6))))
    desk.exchange.handle(StopServing(ROOT))
    after = desk.exchange.handle(ChunkRead(A, ROOT, 0, DATA[:CHUNK_BYTES]))
    assert not any(isinstance(effect, ReadChunk) for effect in after)


# ---- the budget ----------------------------------------------------------------------------------


def slow(**changes: int) -> ExchangeConfig:
    limits = {"bytes_s_max": CHUNK_BYTES, "burst_bytes": 2 * CHUNK_BYTES}
    return ExchangeConfig(**limits, **changes)  # type: ignore[arg-type]


def fetching(desk: Desk, data: bytes, *, by_hand: bool = False) -> list[int]:
    """Begin a fetch; return which chunks are asked for at once."""
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk.exchange.handle(Fetch(root, len(data), None, 0.0, by_hand))
    desk.hear(A, ListData(root, encode(chunks)))
    return indices(desk.exchange.handle(PartChecked(root, frozenset(), 0.0)))


def indices(effects: list[ExchangeEffect]) -> list[int]:
    gets = [message for _, message in sends(effects) if isinstance(message, ChunkGet)]
    return [index for get in gets for index in get.indices]


def arrive(desk: Desk, data: bytes, wanted: list[int], now: float) -> list[ExchangeEffect]:
    root = root_of(chunk_list(data))
    effects: list[ExchangeEffect] = []
    for index in wanted:
        chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        effects += desk.hear(A, ChunkData(root, index, chunk), now)
    return effects


def test_no_more_is_asked_for_than_the_budget_allows() -> None:
    data = bundle_of(10 * CHUNK_BYTES)
    desk = Desk([A], slow())
    first = fetching(desk, data)
    assert len(first) == 2  # the burst
    assert indices(arrive(desk, data, first, 0.5)) == []
    assert len(indices(desk.exchange.handle(Tick(1.5)))) == 1
    assert indices(desk.exchange.handle(Tick(1.9))) == []  # one is on its way


def test_what_the_owner_asks_for_by_hand_is_held_to_no_budget() -> None:
    data = bundle_of(10 * CHUNK_BYTES)
    desk = Desk([A], slow(bytes_night_max=CHUNK_BYTES))
    first = fetching(desk, data, by_hand=True)
    assert len(first) == 4
    assert len(indices(arrive(desk, data, first, 0.0))) == 4


def test_a_fetch_ends_when_the_night_is_spent_and_goes_on_the_next() -> None:
    data = bundle_of(5 * CHUNK_BYTES)
    root = root_of(chunk_list(data))
    desk = Desk([A], ExchangeConfig(bytes_night_max=2 * CHUNK_BYTES))
    first = fetching(desk, data)
    assert len(first) == 2
    arrive(desk, data, first, 1.0)
    spent = Failed(root, "the budget of the night is spent")
    assert spent in desk.exchange.handle(Tick(2.0))
    assert desk.exchange.handle(Fetch(root, len(data), None, 3.0)) == [spent]
    later = 1.0 + 24 * 3600
    desk.exchange.handle(Fetch(root, len(data), None, later))
    desk.hear(A, ListData(root, encode(chunk_list(data))), later)
    asked = indices(desk.exchange.handle(PartChecked(root, frozenset(first), later)))
    assert len(asked) == 2 and not set(asked) & set(first)


def test_uploads_wait_for_the_budget_and_are_refused_once_the_night_is_spent() -> None:
    data = bundle_of(8 * CHUNK_BYTES)
    chunks = chunk_list(data)
    root = root_of(chunks)
    desk = Desk([A, B], slow(bytes_night_max=3 * CHUNK_BYTES, night_share=1))
    desk.exchange.handle(Serve(root, encode(chunks), 8))
    reads = desk.hear(A, ChunkGet(root, (0, 1, 2, 3)))
    assert [e for e in reads if isinstance(e, ReadChunk)] == [
        ReadChunk(A, root, 0),
        ReadChunk(A, root, 1),
    ]
    assert any(isinstance(e, WakeAfter) for e in reads)
    for index in (0, 1):
        desk.exchange.handle(ChunkRead(A, root, index, data[:CHUNK_BYTES]))
    assert ReadChunk(A, root, 2) in desk.exchange.handle(Tick(1.0))
    sent = desk.exchange.handle(ChunkRead(A, root, 2, data[:CHUNK_BYTES]))
    assert (A, NotHere(root)) in sends(sent)  # of the fourth
    assert sends(desk.hear(B, ChunkGet(root, (5,)), 2.0)) == [(B, NotHere(root))]
    later = 24 * 3600 + 1.0
    assert ReadChunk(B, root, 5) in desk.hear(B, ChunkGet(root, (5,)), later)
