"""The driver: effects in order, bundles to disk and back, over an in-memory transport."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import trio
from support_transport import Wire

from gossip.bundle_files import BundleFiles, DiskFullError, chunk_list, root_of
from gossip.downloads import FetchError
from gossip.driver import DriverConfig, GossipDriver, StoreFailedError
from gossip.events import (
    Broadcast,
    Effect,
    Event,
    LeafRetracted,
    OriginChanged,
    PeerDown,
    PeerUp,
    Publish,
    Received,
    Refused,
    RetractOwn,
    Save,
    Send,
    SyncDue,
    WakeAfter,
)
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.ports import Channel, PeerId, Record
from gossip.wire import CHUNK_BYTES, ChunkData, decode_bundle

T = TypeVar("T")
ORIGIN = bytes(range(32))
LEAF = bytes(16)


class ScriptedCore:
    """A core that answers each kind of event as a test says, and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.answers: dict[type, list[Effect]] = {}

    def handle(self, event: Event) -> list[Effect]:
        self.seen.append(event)
        return self.answers.get(type(event), [])


class ListStore:
    """A store that notes when it was written to, in the same list as the transport's sends."""

    def __init__(self, notes: list[object]) -> None:
        self.notes = notes
        self.fails = False

    def load(self) -> Sequence[Record]:
        return []

    def write(
        self, puts: Sequence[Record], deletes: Sequence[tuple[str, bytes]], *, durable: bool
    ) -> None:
        if self.fails:
            raise OSError("no room")
        self.notes.append(("saved", durable))


class Node:
    def __init__(self, wire: Wire, name: str, folder: Path, **config: object) -> None:
        self.transport = wire.end(name)
        self.core = ScriptedCore()
        self.store = ListStore(self.transport.sent)  # type: ignore[arg-type]
        self.driver = GossipDriver(
            self.core,
            Exchange(ExchangeConfig(**config), Random(name)),  # type: ignore[arg-type]
            self.transport,
            self.store,
            BundleFiles(folder / name),
            clock=lambda: 1_800_000_000.0 + trio.current_time(),
            config=DriverConfig(refusals_max=3),
        )


@pytest.fixture
def wire() -> Wire:
    return Wire()


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.driver.run)
        yield
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


# ---- the replica's effects -----------------------------------------------------------------------


async def test_what_follows_a_durable_save_is_sent_after_it(wire: Wire, tmp_path: Path) -> None:
    node, peer = Node(wire, "a", tmp_path), wire.end("b")
    wire.connect(node.transport, peer)
    node.core.answers[Publish] = [
        Save((), durable=True),
        Broadcast(b"head"),
        Save((), durable=False),
        Send(peer.name, b"table"),
    ]
    async with running(node):
        await node.driver.publish((), (), (), urgent=True)
    assert node.transport.sent == [
        ("saved", True),
        (None, None, b"head"),
        ("saved", False),
        ("b", Channel.SYNC, b"table"),
    ]


async def test_what_could_not_be_stored_is_told_to_nobody_and_ends_the_driver(
    wire: Wire, tmp_path: Path
) -> None:
    node, peer = Node(wire, "a", tmp_path), wire.end("b")
    wire.connect(node.transport, peer)
    node.core.answers[Publish] = [Save((), durable=True), Broadcast(b"head")]
    node.core.answers[SyncDue] = [Send(peer.name, b"head")]
    node.store.fails = True
    with pytest.raises(BaseExceptionGroup) as raised:
        async with running(node):
            node.transport.sent.clear()
            with pytest.raises(StoreFailedError, match="no room"):
                await node.driver.publish((), (), (), urgent=True)
            with pytest.raises(StoreFailedError, match="no room"):  # in memory it is known by now
                await node.driver.sync()
    assert raised.group_contains(StoreFailedError)
    assert node.transport.sent == []


async def test_events_reach_the_core_with_the_time(wire: Wire, tmp_path: Path) -> None:
    node, peer = Node(wire, "a", tmp_path), wire.end("b")
    async with running(node):
        wire.connect(node.transport, peer)
        await peer.send(PeerId("a"), Channel.SYNC, b"bulk")
        await peer.broadcast(b"urgent")
        await settled()
        wire.kill(peer)
        await settled()
        await node.driver.retract(LEAF)
    now = node.core.seen[0].now_s
    assert now >= 1_800_000_000
    kinds = [type(event) for event in node.core.seen]
    assert kinds == [SyncDue, PeerUp, Received, Received, PeerDown, RetractOwn]
    received = [event for event in node.core.seen if isinstance(event, Received)]
    assert [(r.frame, r.urgent) for r in received] == [(b"bulk", False), (b"urgent", True)]


async def test_a_wake_order_comes_back_as_a_sync(
    wire: Wire, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    node = Node(wire, "a", tmp_path)
    node.core.answers[SyncDue] = [WakeAfter(60.0)]
    async with running(node):
        await trio.sleep(150)
    times = [event.now_s for event in node.core.seen]
    assert [t - times[0] for t in times] == [0, 60, 120]


async def test_each_subscriber_hears_of_each_change_once_until_it_takes_it(
    wire: Wire, tmp_path: Path
) -> None:
    node = Node(wire, "a", tmp_path)
    changes = node.driver.changes()
    node.core.answers[Publish] = [OriginChanged(ORIGIN), LeafRetracted(ORIGIN, LEAF)]
    async with running(node):
        await node.driver.publish((), (), ())
        await node.driver.publish((), (), ())
        assert await anext(changes) == OriginChanged(ORIGIN)
        assert await anext(changes) == LeafRetracted(ORIGIN, LEAF)
        with trio.move_on_after(0.01) as scope:
            await anext(changes)
        assert scope.cancelled_caught


async def test_a_peer_that_is_refused_too_often_is_disconnected(wire: Wire, tmp_path: Path) -> None:
    node, peer = Node(wire, "a", tmp_path), wire.end("b")
    wire.connect(node.transport, peer)
    node.core.answers[Received] = [Refused(peer.name, "bad signature")]
    async with running(node):
        for refused in (1, 2):
            await peer.send(PeerId("a"), Channel.SYNC, b"junk")
            await settled()
            [stats] = node.driver.peers()
            assert stats.refused["bad signature"] == refused
        await peer.send(PeerId("a"), Channel.SYNC, b"junk")
        await settled()
        assert node.driver.peers() == ()
    assert node.driver.refused["bad signature"] == 3


# ---- bundles -------------------------------------------------------------------------------------


def bundle_of(chunks: float, seed: int = 0) -> bytes:
    return Random(seed).randbytes(int(chunks * CHUNK_BYTES))


async def test_a_bundle_is_fetched_from_several_holders_and_served_on(
    wire: Wire, tmp_path: Path
) -> None:
    a, b, c, d = (Node(wire, name, tmp_path) for name in "abcd")
    data = bundle_of(20.5)
    seen: list[tuple[int, int]] = []
    async with running(a, b, c, d):
        root = await a.driver.add_bundle(data)
        assert await b.driver.add_bundle(data) == root
        wire.connect(a.transport, c.transport)
        wire.connect(b.transport, c.transport)
        wire.connect(c.transport, d.transport)
        await settled()
        result = await c.driver.fetch(root, len(data), None, lambda *at: seen.append(at))
        assert result.path.read_bytes() == data
        assert result.path.name == f"{root.hex()}.bundle"
        assert set(result.sources) == {"a", "b"} and sum(result.sources.values()) == len(data)
        assert seen[-1] == (len(data), len(data)) and seen == sorted(seen)
        # Not served before its owner says so.
        with pytest.raises(FetchError, match="no holder left"):
            await d.driver.fetch(root, len(data))
        assert await c.driver.serve_bundle(root)
        again = await d.driver.fetch(root, len(data))
        assert again.path.read_bytes() == data
        stats = {s.peer: s for s in c.driver.peers()}
        assert stats[PeerId("d")].bytes_out["bundle"] > len(data)
    assert not list((tmp_path / "c").glob("*.part"))
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    assert result.path.stat().st_mode & 0o777 == 0o600


async def test_a_fetch_that_was_cut_short_goes_on_from_the_disk(wire: Wire, tmp_path: Path) -> None:
    a = Node(wire, "a", tmp_path)
    data = bundle_of(30)
    come: list[int] = []
    async with running(a):
        root = await a.driver.add_bundle(data)
        first = Node(wire, "c", tmp_path)
        async with trio.open_nursery() as nursery:  # ends like a crash: no goodbye to the fetch
            await nursery.start(first.driver.run)
            wire.connect(a.transport, first.transport)

            def crash(here: int, size: int) -> None:
                come.append(here)
                if here >= 10 * CHUNK_BYTES:
                    nursery.cancel_scope.cancel()

            with trio.move_on_after(60):
                await first.driver.fetch(root, len(data), None, crash)
        wire.kill(first.transport)
        part = tmp_path / "c" / f"{root.hex()}.part"
        damaged = bytearray(part.read_bytes())
        index = next(i for i in range(30) if any(damaged[i * CHUNK_BYTES : i * CHUNK_BYTES + 9]))
        damaged[index * CHUNK_BYTES] ^= 1
        part.write_bytes(damaged)

        second = Node(wire, "c", tmp_path)
        async with running(second):
            wire.connect(a.transport, second.transport)
            result = await second.driver.fetch(root, len(data))
    assert result.path.read_bytes() == data
    assert 9 * CHUNK_BYTES <= result.resumed_bytes < 30 * CHUNK_BYTES
    assert result.resumed_bytes + sum(result.sources.values()) == len(data)


async def test_two_who_want_the_same_bundle_share_one_fetch(wire: Wire, tmp_path: Path) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    data = bundle_of(5)
    async with running(a, c):
        root = await a.driver.add_bundle(data)
        wire.connect(a.transport, c.transport)
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.driver.fetch, root, len(data))
            nursery.start_soon(c.driver.fetch, root, len(data))
    chunks = [
        frame
        for _, channel, frame in a.transport.sent
        if channel is Channel.BUNDLE and isinstance(decode_bundle(frame), ChunkData)
    ]
    assert len(chunks) == 5


async def test_a_cancelled_fetch_asks_for_nothing_more(wire: Wire, tmp_path: Path) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    data = bundle_of(40)
    async with running(a, c):
        root = await a.driver.add_bundle(data)
        wire.connect(a.transport, c.transport)
        await settled()
        with trio.CancelScope() as scope:
            await c.driver.fetch(root, len(data), None, lambda here, size: scope.cancel())
        assert scope.cancelled_caught
        await settled()
        asked = len(c.transport.sent)
        await settled()
        assert len(c.transport.sent) == asked
        result = await c.driver.fetch(root, len(data))
    assert result.path.read_bytes() == data and result.resumed_bytes > 0


async def test_a_full_disk_fails_the_fetch_and_nothing_else(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    data = bundle_of(9)

    def full(self: BundleFiles, root: bytes, index: int, chunk: bytes) -> None:
        raise DiskFullError(28, "No space left on device")

    async with running(a, c):
        root = await a.driver.add_bundle(data)
        wire.connect(a.transport, c.transport)
        await settled()
        with monkeypatch.context() as patch:
            patch.setattr(BundleFiles, "write_chunk", full)
            with pytest.raises(FetchError, match="No space left"):
                await c.driver.fetch(root, len(data))
        await settled()
        assert (await c.driver.fetch(root, len(data))).path.read_bytes() == data


async def test_a_removed_bundle_is_gone_from_disk_and_no_longer_served(
    wire: Wire, tmp_path: Path
) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    data = bundle_of(3)
    async with running(a, c):
        root = await a.driver.add_bundle(data)
        wire.connect(a.transport, c.transport)
        await settled()
        await a.driver.remove_bundle(root)
        assert not list((tmp_path / "a").iterdir())
        with pytest.raises(FetchError):
            await c.driver.fetch(root, len(data))
        assert not await a.driver.serve_bundle(root)


async def test_a_bundle_that_changed_on_disk_is_fetched_again(wire: Wire, tmp_path: Path) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    data = bundle_of(3)
    async with running(a, c):
        root = await a.driver.add_bundle(data)
        wire.connect(a.transport, c.transport)
        await settled()
        path = (await c.driver.fetch(root, len(data))).path
        path.write_bytes(data[:-1] + b"\0")
        assert not await c.driver.serve_bundle(root)
        assert (await c.driver.fetch(root, len(data))).path.read_bytes() == data
        there = await c.driver.fetch(root, len(data))
    assert there.sources == {} and there.resumed_bytes == len(data)


async def test_a_label_is_fetched_by_its_hash(wire: Wire, tmp_path: Path) -> None:
    a, c = Node(wire, "a", tmp_path), Node(wire, "c", tmp_path)
    label = b'{"rank": 8}'
    root = hashlib.sha256(label).digest()
    async with running(a, c):
        await a.driver.serve_blob(root, label)
        wire.connect(a.transport, c.transport)
        await settled()
        assert await c.driver.fetch_blob(root, [PeerId("a")]) == label


def test_a_bundle_keeps_its_root_whoever_adds_it(tmp_path: Path) -> None:
    data = bundle_of(2.5)
    files = BundleFiles(tmp_path)
    chunks = files.add(data)
    assert chunks == chunk_list(data) == files.whole(root_of(chunks))
    assert files.read_chunk(root_of(chunks), 2) == data[2 * CHUNK_BYTES :]
    assert files.read_chunk(root_of(chunks), 3) is None
