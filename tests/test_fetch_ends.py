"""A fetch ends whatever peers do: new names, silence, a trickle; and one honest one suffices."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.bundle_files import chunk_list, root_of
from gossip.exchange import NO_HOLDER, TOO_OFTEN, Exchange
from gossip.exchange_events import (
    BlobArrived,
    CheckPart,
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
    PartChecked,
    SendFrame,
    StoreChunk,
    Tick,
)
from gossip.patience import NO_PROGRESS, TOO_SLOW
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
from simnet.bundles import fetch_under_fire
from simnet.sharing import HONEST, Conduct

CONFIG = ExchangeConfig()
MUTE = Conduct(crawls_bytes_s=1e-3)  # its list takes a year
LISTS = Conduct(stalls_after=0)  # and gives no chunk
TEASES = Conduct(stalls_after=1)
CRAWLS = Conduct(crawls_bytes_s=CHUNK_BYTES / 14)


def longest_s(size_bytes: int) -> float:
    return CONFIG.spare_s + size_bytes / CONFIG.bytes_s_least


@dataclass
class Siege:
    """One fetch, a second at a time, and what was asked in it."""

    size_bytes: int
    config: ExchangeConfig = CONFIG
    by_hand: bool = True
    now: float = 0.0
    stored: int = 0
    questions: int = 0
    asked: dict[PeerId, list[ListGet | ChunkGet]] = field(default_factory=dict)
    outcome: Finished | Failed | BlobArrived | None = None

    def __post_init__(self) -> None:
        self.data = Random(self.size_bytes).randbytes(self.size_bytes)
        self.chunks = chunk_list(self.data)
        self.root = root_of(self.chunks)
        self.exchange = Exchange(self.config, Random(1))
        self.peers: list[PeerId] = []

    def begin(self) -> None:
        self.give(Fetch(self.root, self.size_bytes, None, self.now, self.by_hand))

    def give(self, event: ExchangeEvent) -> None:
        for effect in self.exchange.handle(event):
            self.perform(effect)

    def perform(self, effect: ExchangeEffect) -> None:
        match effect:
            case SendFrame(peer, frame):
                self.questions += 1
                message = decode_bundle(frame)
                assert isinstance(message, ListGet | ChunkGet)
                self.asked.setdefault(peer, []).append(message)
            case CheckPart(root):
                self.give(PartChecked(root, frozenset(), self.now))
            case StoreChunk():
                self.stored += 1
            case Finished() | Failed() | BlobArrived():
                self.outcome = effect

    def come(self, name: str) -> PeerId:
        peer = PeerId(name)
        self.peers.append(peer)
        self.give(HolderUp(peer, self.now))
        return peer

    def go(self, peer: PeerId) -> None:
        self.peers.remove(peer)
        self.asked.pop(peer, None)
        self.give(HolderDown(peer, self.now))

    def answer(self, peer: PeerId, chunks: int = 1) -> None:
        """Have a peer give the list, or so many chunks, if it was asked."""
        for question in self.asked.pop(peer, []):
            match question:
                case ListGet():
                    self.hear(peer, ListData(self.root, encode(self.chunks)))
                case ChunkGet(_, indices):
                    if later := indices[chunks:]:
                        self.asked.setdefault(peer, []).append(ChunkGet(self.root, later))
                    for index in indices[:chunks]:
                        data = self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                        self.hear(peer, ChunkData(self.root, index, data))
                    chunks = 0

    def hear(self, peer: PeerId, message: ListData | ChunkData | NotHere) -> None:
        self.give(FrameIn(peer, encode(message), self.now))

    def wait(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.give(Tick(self.now))

    @property
    def reason(self) -> str:
        assert isinstance(self.outcome, Failed)
        return self.outcome.reason


def test_names_that_answer_nothing_keep_no_fetch_however_many_come() -> None:
    siege = Siege(10_000_000)
    siege.begin()
    while siege.outcome is None and siege.now < 3600:
        siege.wait()
        if siege.now % 9 == 0:  # ten seconds is what one is waited for
            siege.come(f"sybil {siege.now}")
            if len(siege.peers) > 3:
                siege.go(siege.peers[0])
    assert siege.reason == NO_PROGRESS
    assert siege.now <= CONFIG.idle_s_max + 1


def test_a_label_that_never_comes_is_given_up_too() -> None:
    siege = Siege(CHUNK_BYTES)
    siege.give(FetchBlob(siege.root, None, 0.0))
    while siege.outcome is None and siege.now < 3600:
        siege.wait()
        if siege.now % 9 == 0:
            siege.come(f"sybil {siege.now}")
    assert siege.reason == NO_PROGRESS


def test_a_trickle_of_chunks_ends_once_it_is_too_slow_in_all() -> None:
    siege = Siege(100 * CHUNK_BYTES)
    siege.begin()
    while siege.outcome is None and siege.now < 10 * 3600:
        siege.wait()
        if siege.now % 25 == 1:
            sybil = siege.come(f"sybil {siege.now}")
            siege.answer(sybil)
            if siege.now % 100 == 1:
                siege.answer(sybil)
        elif siege.now % 25 == 20:
            siege.go(siege.peers[0])
    assert siege.reason == TOO_SLOW
    assert 0 < siege.stored < 100
    assert siege.now <= longest_s(siege.size_bytes) + 1


def test_peers_that_come_and_go_get_no_more_than_so_many_questions() -> None:
    siege = Siege(8 * CHUNK_BYTES)
    siege.begin()
    siege.answer(siege.come("flapping"))
    siege.go(siege.peers[0])
    while siege.outcome is None and siege.now < 3600:
        siege.wait(0.02)
        siege.go(siege.come("flapping"))
    assert siege.reason == TOO_OFTEN
    assert siege.questions <= CONFIG.questions_max + 4 * 8


def test_time_in_which_a_fetch_is_held_is_not_its_peers() -> None:
    siege = Siege(4 * CHUNK_BYTES, by_hand=False)
    peer = siege.come("honest")
    siege.begin()
    siege.answer(peer)
    siege.give(HoldFetching(True, siege.now))
    siege.answer(peer, 3)
    for _ in range(3600):
        siege.wait(10.0)
    siege.give(HoldFetching(False, siege.now))
    siege.wait()
    assert siege.outcome is None
    siege.answer(peer, 4)
    assert isinstance(siege.outcome, Finished)


def test_time_in_which_a_fetch_waits_for_the_budget_is_not_its_peers() -> None:
    """A line so thin that its own budget alone takes longer than a fetch may."""
    config = ExchangeConfig(
        bytes_s_max=CHUNK_BYTES, burst_bytes=CHUNK_BYTES, idle_s_max=3.0, spare_s=10.0,
        bytes_s_least=1e9,
    )  # fmt: skip
    siege = Siege(30 * CHUNK_BYTES, config, by_hand=False)
    peer = siege.come("honest")
    siege.begin()
    while siege.outcome is None and siege.now < 600:
        siege.wait(0.25)
        siege.answer(peer, 4)
    assert isinstance(siege.outcome, Finished)
    assert siege.now > 25


def test_what_was_slow_unattended_begins_anew_when_the_owner_asks() -> None:
    siege = Siege(4 * CHUNK_BYTES, by_hand=False)
    peer = siege.come("honest")
    siege.begin()
    siege.answer(peer)
    siege.wait(14.0)
    for second in range(10):
        siege.come(f"mute {second}")
        siege.wait(10.0)
    siege.give(Fetch(siege.root, siege.size_bytes, None, siege.now, by_hand=True))
    siege.wait(10.0)
    assert siege.outcome is None


@pytest.mark.parametrize("silent", [1, 30, 100])
def test_a_list_is_asked_of_everyone_before_patience_ends(silent: int) -> None:
    siege = Siege(2 * CHUNK_BYTES)
    for number in range(silent):
        siege.come(f"mute {number}")
    siege.come("honest")
    siege.begin()
    while siege.outcome is None and siege.now < 3600:
        siege.wait(0.5)
        siege.answer(PeerId("honest"), 4)
    assert isinstance(siege.outcome, Finished)


DOES = ("mute", "lists", "gives", "crawls", "refuses", "leaves")


@given(
    size=st.integers(1, 12 * CHUNK_BYTES),
    seed=st.integers(0, 2**32),
    by_hand=st.booleans(),
    crowd=st.integers(0, 120),
    does=st.lists(st.sampled_from(DOES), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_whatever_peers_do_a_fetch_ends_in_its_time_with_a_bounded_number_of_questions(
    size: int, seed: int, by_hand: bool, crowd: int, does: list[str]
) -> None:
    chance = Random(seed)
    siege = Siege(size, by_hand=by_hand)
    for number in range(crowd):
        siege.come(f"{chance.choice(does)} {number}")
    siege.begin()
    while siege.outcome is None:
        assert siege.now <= longest_s(size) + 1, "it goes on for ever"
        siege.wait()
        if chance.random() < 0.2:
            siege.come(f"{chance.choice(does)} {crowd + siege.now}")
        for peer in chance.sample(siege.peers, min(len(siege.peers), 8)):
            match peer.split()[0]:
                case "lists" if any(isinstance(q, ListGet) for q in siege.asked.get(peer, [])):
                    siege.answer(peer, 0)
                case "gives":
                    siege.answer(peer)
                case "crawls" if chance.random() < 0.05:
                    siege.answer(peer)
                case "refuses" if peer in siege.asked:
                    siege.hear(peer, NotHere(siege.root))
                case "leaves" if chance.random() < 0.2:
                    siege.go(peer)
                    siege.come(peer)
            if siege.outcome is not None:
                break
    if isinstance(siege.outcome, Failed):
        assert siege.reason in (NO_HOLDER, NO_PROGRESS, TOO_SLOW, TOO_OFTEN)
    assert siege.questions <= CONFIG.questions_max + 4 * len(siege.chunks.hashes) // 32


@pytest.mark.parametrize("size_bytes", [1_000, 3_000_000])
@pytest.mark.parametrize("conduct", [MUTE, LISTS, TEASES, CRAWLS])
def test_one_honest_holder_among_a_hundred_sybils_suffices_at_the_first_try(
    conduct: Conduct, size_bytes: int
) -> None:
    for seed in range(3):
        holders = {f"sybil {number}": conduct for number in range(100)}
        fetched = fetch_under_fire(
            seed, size_bytes=size_bytes, holders={**holders, "honest": HONEST}, kills=0
        )
        assert fetched.exact and not fetched.failures, f"seed {seed}: {fetched}"
        assert fetched.took_s <= longest_s(size_bytes)


@pytest.mark.parametrize("seed", range(6))
def test_one_honest_holder_among_a_hundred_sybils_of_all_sorts_suffices(seed: int) -> None:
    chance = Random(f"{seed}/sybils")
    sorts = [MUTE, LISTS, TEASES, CRAWLS, Conduct(lies=1.0), Conduct(false_lists=1.0)]
    holders = {f"sybil {number}": chance.choice(sorts) for number in range(100)}
    fetched = fetch_under_fire(
        seed, size_bytes=5_000_000, holders={**holders, "honest": HONEST}, kills=0
    )
    assert fetched.exact and not fetched.failures, f"seed {seed}: {fetched}"
