"""Frames on a stream, what waits for a peer that does not read, and bundles that are held back."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support_libp2p import attacker, connect, running, transport
from test_libp2p_transport import driver_of, wait_until

from gossip.bundle_files import BundleFiles, root_of
from gossip.framing import FrameError, FrameReader, length_of
from gossip.libp2p_streams import _write_frame
from gossip.outbox import Budget, Outbox
from gossip.wire import CHUNK_BYTES, ChunkGet, encode


class Wire:
    """A stream that keeps what is written, and gives it back in pieces of its own."""

    def __init__(self, cuts: list[int] | None = None) -> None:
        self.data = b""
        self.writes: list[int] = []
        self._cuts = cuts or [7]
        self._turn = 0

    async def write(self, data: bytes) -> None:
        self.writes.append(len(data))
        self.data += bytes(data)

    async def read(self, n: int) -> bytes:
        self._turn += 1
        cut = min(n, self._cuts[self._turn % len(self._cuts)])
        out, self.data = self.data[:cut], self.data[cut:]
        return out


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=6),
    st.lists(st.integers(2_000, 300_000), min_size=1, max_size=4),
    st.integers(0, 63),
)
def test_frames_are_read_as_they_were_written_whatever_the_pieces(
    sizes: list[int], cuts: list[int], waiting: int
) -> None:
    frames = [Random(size).randbytes(size) for size in sizes]

    async def through() -> None:
        wire, held = Wire(cuts), b""
        for number, frame in enumerate(frames):
            more = number + 1 < len(frames) and bool(waiting >> number & 1)
            held = await _write_frame(wire, held, frame, more=more)
            assert more or not held
        reader = FrameReader(wire)
        for frame in frames:
            assert await reader.next(idle_s=9, frame_s=9) == frame
        assert await reader.next(idle_s=9, frame_s=9) is None

    trio.run(through)


def test_a_chunk_goes_out_in_pieces_that_fill_a_message_of_noise() -> None:
    async def written() -> list[int]:
        wire, held = Wire(), b""
        for number in range(8):
            held = await _write_frame(wire, held, bytes(CHUNK_BYTES + 50), more=number < 7)
        return wire.writes

    writes = trio.run(written)
    assert max(writes) == 65_507 and sum(size < 60_000 for size in writes) <= 1


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x09half", b"\0"])
def test_what_is_no_frame_is_an_error_of_the_peer(junk: bytes) -> None:
    async def read() -> None:
        wire = Wire()
        wire.data = length_of(b"good") + b"good" + junk
        reader = FrameReader(wire)
        assert await reader.next(idle_s=9, frame_s=9) == b"good"
        with pytest.raises(FrameError):
            await reader.next(idle_s=9, frame_s=9)

    trio.run(read)


async def test_a_silent_stream_ends_and_one_that_stops_within_a_frame_is_a_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()

    class Source:
        async def read(self, n: int) -> bytes:
            return bytes(await far.receive_some(n))

    reader = FrameReader(Source())
    await near.send_all(length_of(b"good") + b"good")
    assert await reader.next(idle_s=900, frame_s=60) == b"good"
    assert await reader.next(idle_s=900, frame_s=60) is None
    assert trio.current_time() == pytest.approx(900)
    await near.send_all(length_of(b"good") + b"go")
    with pytest.raises(FrameError, match="frame too slow"):
        await reader.next(idle_s=900, frame_s=60)


# ---- what waits for a peer -----------------------------------------------------------------------


def test_peers_that_do_not_read_do_not_keep_small_messages_from_others() -> None:
    budget = Budget(1000_000)
    hoarders = [Outbox(400_000, budget) for _ in range(4)]
    while sum(outbox.put(bytes(100_000)) for outbox in hoarders):
        pass
    assert budget.bytes_held == 1000_000
    reader = Outbox(400_000, budget)
    assert not reader.put(bytes(100_000))
    assert reader.put(bytes(60_000)) and not reader.put(b"one more")
    reader.drop_first()
    assert reader.put(b"the next")
    assert sum(outbox.clear() for outbox in [*hoarders, reader]) == 11 and not budget.bytes_held


@pytest.mark.network
async def test_a_peer_that_asks_for_chunks_and_does_not_read_costs_its_own_queue_alone(
    tmp_path: Path,
) -> None:
    data = Random(5).randbytes(16 * CHUNK_BYTES)
    victim, guest = transport(queue_bytes_max=1 << 20), transport()
    async with running(victim, guest) as nursery, attacker() as host:
        holder = driver_of(victim, tmp_path / "victim")
        await nursery.start(holder.run)
        root = await holder.add_bundle(data)
        peer = await connect(host, victim)
        taken: list[Any] = []

        async def keep(stream: Any) -> None:
            taken.append(stream)  # and never read it
            await trio.sleep_forever()

        host.set_stream_handler("/groove/bundle/1", keep)
        asking = await host.new_stream(peer, ["/groove/bundle/1"])
        for start in (0, 4, 8, 12, 0, 4, 8, 12):
            frame = encode(ChunkGet(root, tuple(range(start, start + 4))))
            await asking.write(length_of(frame) + frame)
        await wait_until(lambda: bool(taken) and victim.counts["outbox full"] > 0)
        driver = driver_of(guest, tmp_path / "guest")
        await nursery.start(driver.run)
        await guest.dial(victim.addresses()[0])
        with trio.fail_after(60):
            result = await driver.fetch(root, len(data))
        assert result.path.read_bytes() == data


@pytest.mark.network
async def test_bundles_that_are_held_come_once_they_are_let_go(tmp_path: Path) -> None:
    data = Random(6).randbytes(12 * CHUNK_BYTES)
    a, b = transport(), transport()
    async with running(a, b) as nursery:
        holder, fetcher = driver_of(a, tmp_path / "a"), driver_of(b, tmp_path / "b")
        await nursery.start(holder.run)
        await nursery.start(fetcher.run)
        root = await holder.add_bundle(data)
        await b.dial(a.addresses()[0])
        come: list[int] = []
        done = trio.Event()

        def progress(here: int, size: int) -> None:
            come.append(here)
            if len(come) == 1:
                fetcher.hold_bundles(True)

        async def fetch() -> None:
            await fetcher.fetch(root, len(data), None, progress)
            done.set()

        nursery.start_soon(fetch)
        await wait_until(lambda: bool(come))
        with trio.fail_after(60):
            await trio.testing.wait_all_tasks_blocked(0.3)
            assert not done.is_set() and come[-1] < len(data)
            fetcher.hold_bundles(False)
            await done.wait()
    assert BundleFiles(tmp_path / "b").path(root).read_bytes() == data


def test_only_what_needs_no_disk_is_read_on_the_loop(tmp_path: Path) -> None:
    files = BundleFiles(tmp_path)
    data = Random(9).randbytes(CHUNK_BYTES + 10)
    root = root_of(files.add(data))
    for index in (0, 1):
        cached = files.cached_chunk(root, index)
        assert cached in (None, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    assert files.cached_chunk(root, 2) is None and files.cached_chunk(bytes(32), 0) is None
