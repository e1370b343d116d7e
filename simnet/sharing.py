"""Bundles over simulated lines: the cores of `gossip.exchange`, and everyone who makes it hard.

A liar sends chunks that are not what their hashes say, or a false list; a stalling peer answers no
more; a slow one sends a byte a second; one vanishes. The fetcher itself is killed between any two
effects, and its disk keeps what was written, or after a loss of power only what was synced. A
bundle's bytes exist once, however many machines hold it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from random import Random
from typing import Literal, Protocol, assert_never

from gossip.bundle_files import chunk_list, root_of
from gossip.exchange import Exchange
from gossip.exchange_events import (
    BlobArrived,
    CheckPart,
    ChunkRead,
    ExchangeConfig,
    ExchangeEffect,
    ExchangeEvent,
    Failed,
    Fetch,
    Finished,
    FrameIn,
    HolderDown,
    HolderUp,
    PartChecked,
    PeerRefused,
    ReadChunk,
    SendFrame,
    Serve,
    StoreChunk,
    Tick,
    WakeAfter,
)
from gossip.ports import PeerId
from gossip.wire import CHUNK_BYTES, ChunkData, ChunkList, ListData, decode_bundle, encode

LATENCY_S = (0.02, 0.2)
LINE_BYTES_S = 1_250_000  # 10 Mbit/s
HASHED_BYTES_S = 500e6  # of a part, on resume
READ_S = 0.002  # a chunk
RETRY_S = (2.0, 10.0)  # after a fetch that failed
RESTART_S = (1.0, 20.0)  # after a kill

Death = Literal["killed", "power lost"]


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a machine behaves towards those that fetch from it. Shares are of what it sends."""

    lies: float = 0.0  # wrong chunks
    false_lists: float = 0.0
    stalls_after: int | None = None  # chunks
    vanishes_after: int | None = None
    crawls_bytes_s: float | None = None  # what it serves comes no faster; what it asks does
    line_bytes_s: float = LINE_BYTES_S


HONEST = Conduct()


class Content:
    """One bundle: its bytes and its frames, once for all who hold it."""

    def __init__(self, size_bytes: int, seed: str) -> None:
        data = Random(seed).randbytes(size_bytes)
        self.size_bytes = size_bytes
        self.list: ChunkList = chunk_list(data)
        self.list_bytes = encode(self.list)
        self.root = root_of(self.list)
        self.chunks = [data[at : at + CHUNK_BYTES] for at in range(0, size_bytes, CHUNK_BYTES)]


class Part:
    """A bundle on a simulated disk: what was written, and what of it a loss of power spares."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self._unsynced: dict[int, None] = {}

    def write(self, index: int, data: bytes) -> None:
        self.chunks[index] = data
        self._unsynced[index] = None

    def sync(self) -> None:
        self._unsynced.clear()

    def die(self, death: Death, rng: Random) -> int:
        """Lose of what is not synced what such a death may take; return how many bytes."""
        lost = 0
        for index in list(self._unsynced) if death == "power lost" else ():
            match rng.randrange(3):
                case 0:
                    lost += len(self.chunks.pop(index))
                case 1:  # torn: the rest of the chunk is what the disk held before
                    whole = self.chunks[index]
                    self.chunks[index] = whole[: rng.randrange(len(whole))].ljust(len(whole), b"\0")
                    lost += len(whole)
        self._unsynced.clear()
        return lost

    def good(self, hashes: bytes) -> frozenset[int]:
        """The chunks that prove themselves, as `BundleFiles.check_part` finds them."""
        return frozenset(
            index
            for index, data in self.chunks.items()
            if hashlib.sha256(data).digest() == hashes[32 * index : 32 * index + 32]
        )


class Time(Protocol):
    """What of a `Network` this needs: its time, and things to come."""

    @property
    def now(self) -> float: ...

    def at(self, delay_s: float, name: str, do: Callable[[], None]) -> None: ...


class Clockwork:
    """Simulated time for machines without a network of replicas."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, str, Callable[[], None]]] = []
        self._trace = hashlib.sha256()
        self._posted = 0

    def at(self, delay_s: float, name: str, do: Callable[[], None]) -> None:
        self._posted += 1
        heappush(self._heap, (self.now + delay_s, self._posted, name, do))

    def run_until(self, done: Callable[[], bool], within_s: float) -> bool:
        """Let time pass until it is done; False if it is not within that time."""
        while not done():
            if not self._heap or self._heap[0][0] > within_s:
                return False
            self.now, _, name, do = heappop(self._heap)
            self._trace.update(f"{self.now:.6f} {name}\n".encode())
            do()
        return True

    def trace_hash(self) -> str:
        return self._trace.hexdigest()


@dataclass(slots=True)
class Machine:
    """One peer: its part of the bundle, its line, and while it is up an exchange."""

    name: PeerId
    conduct: Conduct
    rng: Random
    part: Part = field(default_factory=Part)
    exchange: Exchange | None = None
    life: int = 0
    wants: bool = False
    whole: bool = False
    finished_at: float | None = None
    busy_until: float = 0.0  # its line, on the way out
    sent_chunks: int = 0
    effects: int = 0  # performed in all its lives
    dies_at: int | None = None  # effects
    # What came of it.
    chunk_bytes_in: int = 0
    chunk_bytes_out: int = 0
    false_chunks_in: int = 0
    false_bytes_in: int = 0
    kills: int = 0
    lost_bytes: int = 0  # that had come, and went with a death
    failures: int = 0


class Sharing:
    """Machines that fetch one bundle from each other, in the time of `time`."""

    def __init__(
        self,
        time: Time,
        content: Content,
        machines: Sequence[Machine],
        neighbours: Mapping[PeerId, Sequence[PeerId]],
        seed: str,
        config: ExchangeConfig | None = None,
        death: Death = "killed",
    ) -> None:
        """config: for those that fetch and serve. death: what ends a machine that dies."""
        self._time = time
        self._content = content
        self._config = config or ExchangeConfig()
        self._death: Death = death
        self._rng = Random(f"{seed}/lines")
        self._seed = seed
        self.machines = {machine.name: machine for machine in machines}
        self._neighbours = neighbours

    # ---- what scenarios do ---------------------------------------------------------------------

    def start(self, name: PeerId) -> None:
        """Start a machine: it serves what it holds whole, and goes on with what it wants."""
        machine = self.machines[name]
        if machine.exchange is not None:
            return
        machine.life += 1
        machine.exchange = Exchange(self._config, Random(f"{self._seed}/{name}/{machine.life}"))
        if machine.whole:
            self._give(machine, self._serve())
        for peer in self._peers(name):
            self._later(machine, self._latency(), f"{name} hears of {peer.name}", self._up(peer))
            self._later(peer, self._latency(), f"{peer.name} hears of {name}", self._up(machine))
        if machine.wants and not machine.whole:
            self.want(name)

    def stop(self, name: PeerId, death: Death | None = None) -> None:
        """End a machine between two effects."""
        machine = self.machines[name]
        if machine.exchange is None:
            return
        machine.exchange = None
        machine.life += 1  # what was on its way to it or from it is gone
        machine.kills += 1
        machine.busy_until = 0.0
        machine.lost_bytes += machine.part.die(death or self._death, machine.rng)
        for peer in self._peers(name):
            self._later(
                peer,
                self._latency(),
                f"{peer.name} loses {name}",
                lambda: HolderDown(name, self._time.now),
            )

    def hold(self, name: PeerId) -> None:
        """Put the whole bundle on a machine's disk."""
        machine = self.machines[name]
        machine.part.chunks = dict(enumerate(self._content.chunks))
        machine.part.sync()
        machine.whole = True
        self._give(machine, self._serve())

    def want(self, name: PeerId) -> None:
        """Have a machine fetch the bundle, and again if that fails."""
        machine = self.machines[name]
        machine.wants = True
        content = self._content
        self._give(machine, Fetch(content.root, content.size_bytes, None, self._time.now))

    # ---- what happens --------------------------------------------------------------------------

    def _serve(self) -> Serve:
        content = self._content
        return Serve(content.root, content.list_bytes, len(content.chunks))

    def _peers(self, name: PeerId) -> list[Machine]:
        peers = [self.machines[peer] for peer in self._neighbours[name]]
        return [peer for peer in peers if peer.exchange is not None]

    def _up(self, peer: Machine) -> Callable[[], ExchangeEvent | None]:
        return lambda: HolderUp(peer.name, self._time.now) if peer.exchange else None

    def _latency(self) -> float:
        return self._rng.uniform(*LATENCY_S)

    def _later(
        self,
        machine: Machine,
        delay_s: float,
        name: str,
        event: Callable[[], ExchangeEvent | None],
    ) -> None:
        """Give a machine an event after a while, if it still lives the same life then."""
        life = machine.life

        def happen() -> None:
            if machine.life == life and (happened := event()) is not None:
                self._give(machine, happened)

        self._time.at(delay_s, name, happen)

    def _give(self, machine: Machine, event: ExchangeEvent) -> None:
        if machine.exchange is None:
            return
        for effect in machine.exchange.handle(event):
            if machine.dies_at is not None and machine.effects >= machine.dies_at:
                machine.dies_at = None
                if isinstance(effect, StoreChunk):
                    machine.lost_bytes += len(effect.data)
                self.stop(machine.name)
                wait_s = self._rng.uniform(*RESTART_S)
                self._time.at(wait_s, f"{machine.name} starts", lambda: self.start(machine.name))
                return
            machine.effects += 1
            self._perform(machine, effect)

    def _perform(self, machine: Machine, effect: ExchangeEffect) -> None:
        now = self._time.now
        match effect:
            case SendFrame(peer, frame):
                self._send(machine, self.machines[peer], frame)
            case CheckPart(root, size_bytes, hashes):
                self._later(
                    machine,
                    size_bytes / HASHED_BYTES_S,
                    f"{machine.name} looks at its part",
                    lambda: PartChecked(root, machine.part.good(hashes), self._time.now),
                )
            case StoreChunk(_, index, data):
                same = data == self._content.chunks[index]
                machine.part.write(index, self._content.chunks[index] if same else data)
            case ReadChunk(peer, root, index):
                chunk = machine.part.chunks.get(index)
                self._later(
                    machine,
                    READ_S,
                    f"{machine.name} reads {index}",
                    lambda: ChunkRead(peer, root, index, chunk),
                )
            case Finished():
                machine.part.sync()
                machine.whole, machine.finished_at = self.exact(machine), now
                if machine.whole:
                    self._give(machine, self._serve())
            case Failed():
                machine.failures += 1
                name, life = machine.name, machine.life
                wait_s = self._rng.uniform(*RETRY_S)
                again = f"{name} tries again"
                self._time.at(
                    wait_s, again, lambda: self.want(name) if machine.life == life else None
                )
            case WakeAfter(delay_s):
                self._later(machine, delay_s, f"{machine.name} wakes", lambda: Tick(self._time.now))
            case PeerRefused() | BlobArrived():
                pass  # no label is asked for here; lies are counted where they arrive
            case _:
                assert_never(effect)

    def exact(self, machine: Machine) -> bool:
        """True if a machine holds every byte of the bundle."""
        held, chunks = machine.part.chunks, self._content.chunks
        return len(held) == len(chunks) and all(held[i] == c for i, c in enumerate(chunks))

    # ---- lines ---------------------------------------------------------------------------------

    def _send(self, src: Machine, dst: Machine, frame: bytes) -> None:
        conduct, chance, false = src.conduct, src.rng, False
        message = _read(frame)
        if isinstance(message, ListData) and chance.random() < conduct.false_lists:
            frame = encode(ListData(message.root, encode(chunk_list(b"another"))))
        if isinstance(message, ChunkData):
            if conduct.stalls_after is not None and src.sent_chunks >= conduct.stalls_after:
                return
            if conduct.vanishes_after is not None and src.sent_chunks >= conduct.vanishes_after:
                self.stop(src.name)
                return
            src.sent_chunks += 1
            false = chance.random() < conduct.lies
            if false:
                wrong = bytes([message.data[0] ^ 1]) + message.data[1:]
                frame = encode(ChunkData(message.root, message.index, wrong))
            src.chunk_bytes_out += len(message.data)
        leaves = max(self._time.now, src.busy_until) + len(frame) / conduct.line_bytes_s
        src.busy_until = leaves
        if conduct.crawls_bytes_s and isinstance(message, ChunkData | ListData):
            leaves += len(frame) / conduct.crawls_bytes_s
        life, bytes_in = src.life, len(message.data) if isinstance(message, ChunkData) else 0

        def arrive() -> ExchangeEvent | None:
            if src.life != life or src.exchange is None:
                return None  # its connections ended with it
            dst.chunk_bytes_in += bytes_in
            dst.false_chunks_in += false
            dst.false_bytes_in += bytes_in if false else 0
            return FrameIn(src.name, frame, self._time.now)

        text = f"{src.name} to {dst.name} {type(message).__name__}"
        self._later(dst, leaves - self._time.now + self._latency(), text, arrive)


@lru_cache(maxsize=64)
def _read(frame: bytes) -> object:
    return decode_bundle(frame)
