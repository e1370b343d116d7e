"""The trio loop that feeds the two cores and performs their effects, strictly in order.

Whatever has to happen (a frame, a timer, the owner's wish) takes one lock, gives one event to a
core, and performs all of its effects before the next event is looked at. So a head is on disk
before it is told, and a core never sees the world half changed. Only work on bundles leaves the
lock: it touches nothing but its own file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, assert_never

import trio
from msgspec import Struct

from . import exchange_events as bundle
from . import introductions as intro
from .bundle_files import BundleFiles, root_of
from .downloads import Downloads, FetchResult
from .events import (
    Broadcast,
    Effect,
    Event,
    LeafRetracted,
    OriginChanged,
    PeerDown,
    PeerUp,
    Protect,
    Publish,
    PublishBlocked,
    Received,
    Refused,
    Rekey,
    RetractOwn,
    Save,
    Send,
    SyncDue,
    TellDue,
    WakeAfter,
    Withhold,
)
from .exchange import Exchange
from .introductions import Introductions
from .keys import Keys
from .ports import (
    REFUSED_TOO_MUCH,
    Arrived,
    Channel,
    Connected,
    Disconnected,
    PeerId,
    Store,
    Transport,
)
from .wire import Card, Ended, Scope, Usage, encode

log = logging.getLogger(__name__)

T = TypeVar("T")
Change = OriginChanged | LeafRetracted | PublishBlocked


class StoreFailedError(Exception):
    """What the replica knows could not be stored. The process must end without telling anyone of
    it: trying again would be no use, for after a failed fsync the pages may count as clean."""


class Core(Protocol):
    """What the driver needs of `core.Replica`."""

    def handle(self, event: Event) -> list[Effect]: ...


class DriverConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    refusals_max: int = 20  # of one connected peer, then it is disconnected


@dataclass(slots=True)
class PeerStats:
    """What has passed between this node and one connected peer."""

    peer: PeerId
    address: str
    since: float  # by the driver's clock
    bytes_in: Counter[str] = field(default_factory=Counter)  # by channel, "urgent" for broadcasts
    bytes_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    unsent: int = 0  # frames that the transport did not take


class SideHolder(Protocol):
    """Holds bundles and is no peer: frames of the bundle channel are asked of it by a call."""

    @property
    def peer(self) -> PeerId:
        """The name that the exchange knows it by."""
        ...

    async def ask(self, frame: bytes, tell: Callable[[bytes], Awaitable[None]]) -> None:
        """Answer a frame by frames, soon or late. Never raises."""
        ...


class Changes:
    """A subscription to what changes in the replica; iterate over it.

    A change that has not been taken yet is not put in again, so it is bounded by what is stored
    and never makes the driver wait.
    """

    def __init__(self) -> None:
        self._pending: dict[Change, None] = {}
        self._filled = trio.Event()

    def put(self, change: Change) -> None:
        self._pending[change] = None
        self._filled.set()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._pending:
            self._filled = trio.Event()
            await self._filled.wait()
        first = next(iter(self._pending))
        del self._pending[first]
        return first


class GossipDriver:
    """Runs a replica and an exchange over a transport.

    clock: Unix seconds. in_thread: runs blocking work; simulations pass one that runs it at once.
    on_link: hears of connections, for the dialer. introductions, on_learned: asks peers for others,
    and hears of what they say; without, nobody is asked and nobody is told. mirror: holds bundles
    besides the peers.
    """

    def __init__(
        self,
        replica: Core,
        exchange: Exchange,
        transport: Transport,
        store: Store,
        files: BundleFiles,
        *,
        clock: Callable[[], float],
        config: DriverConfig | None = None,
        in_thread: Callable[[Callable[[], T]], Awaitable[T]] = trio.to_thread.run_sync,
        on_link: Callable[[Connected | Disconnected], None] = lambda event: None,
        introductions: Introductions | None = None,
        on_learned: Callable[[intro.Learned], None] = lambda learned: None,
        mirror: SideHolder | None = None,
    ) -> None:
        self._replica = replica
        self._exchange = exchange
        self._transport = transport
        self._store = store
        self._files = files
        self._clock = clock
        self._config = config or DriverConfig()
        self._in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] = in_thread
        self._on_link = on_link
        self._introductions = introductions
        self._on_learned = on_learned
        self._mirror = mirror
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._peers: dict[PeerId, PeerStats] = {}
        self._downloads = Downloads(files, self._in_thread, self._tell_exchange, self._spawn)
        self._subscribers: list[Changes] = []
        self._hold_fetching = self._hold_serving = False
        self._store_failed: Exception | None = None
        self.refused: Counter[str] = Counter()  # by reason, of all peers ever

    # ---- for the owner -------------------------------------------------------------------------

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. The transport is run by the caller. Raises StoreFailedError."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            async with self._turn:
                await self._replicate(SyncDue(self._now_s()))
                if self._mirror is not None:
                    await self._exchanged(bundle.HolderUp(self._mirror.peer, trio.current_time()))
            task_status.started()
            while True:
                event = await self._transport.next_event()
                async with self._turn:
                    await self._transported(event)

    def changes(self) -> Changes:
        """Subscribe to what changes from now on."""
        changes = Changes()
        self._subscribers.append(changes)
        return changes

    def peers(self) -> tuple[PeerStats, ...]:
        return tuple(self._peers.values())

    async def publish(
        self,
        cards: Sequence[Card],
        ended: Sequence[Ended],
        usage: Sequence[Usage],
        urgent: bool = False,
    ) -> None:
        """Have the whole leaf table signed and told. Returns when it is durable and on its way, or
        waits for peers to say that no newer head is out; `changes` tells when it is signed
        (OriginChanged of this origin) or cannot be (PublishBlocked)."""
        event = Publish(tuple(cards), tuple(ended), tuple(usage), self._now_s(), urgent)
        async with self._turn:
            await self._replicate(event)

    async def withhold(self) -> None:
        """Sign no head until the next `publish`; one that still waits for peers is not signed."""
        async with self._turn:
            await self._replicate(Withhold(self._now_s()))

    async def retract(self, leaf: bytes | None, scope: Scope = Scope.PUBLISH) -> None:
        """Retract one own leaf, or all; returns when it is durable and on its way."""
        async with self._turn:
            await self._replicate(RetractOwn(leaf, self._now_s(), scope))

    async def rekey(self, keys: Keys) -> None:
        """Sign with the keys of a new epoch from now on, and tell of them; returns when their
        document is durable and on its way. Raises ValueError for another origin's."""
        async with self._turn:
            await self._replicate(Rekey(keys, self._now_s()))

    async def protect(self, origins: frozenset[bytes]) -> None:
        """Name the origins that are in use here, and are never given up for want of room."""
        async with self._turn:
            await self._replicate(Protect(origins, self._now_s()))

    async def moved(self, addresses: Sequence[str], networks: Sequence[str]) -> None:
        """Say where this node can be dialled from now on, and which networks it lies in."""
        async with self._turn:
            at = intro.Moved(tuple(addresses), tuple(networks), self._now_s())
            await self._introduced(at)

    async def sync(self) -> None:
        """Reconcile with a peer now, besides the regular times."""
        async with self._turn:
            await self._replicate(SyncDue(self._now_s(), again=False))

    async def add_bundle(self, data: bytes) -> bytes:
        """Keep an own bundle, serve it, and return its root."""
        chunks = await self._in_thread(partial(self._files.add, data))
        root = root_of(chunks)
        await self._tell_exchange(bundle.Serve(root, encode(chunks), len(chunks.hashes) // 32))
        return root

    async def serve_bundle(self, root: bytes) -> bool:
        """Answer for a bundle that is here from now on; False if it is not here, or not whole."""
        chunks = await self._in_thread(partial(self._files.whole, root))
        if chunks is None:
            return False
        await self._tell_exchange(bundle.Serve(root, encode(chunks), len(chunks.hashes) // 32))
        return True

    async def stop_serving(self, root: bytes) -> None:
        """Answer no more for a bundle; it stays on disk."""
        await self._tell_exchange(bundle.StopServing(root))

    def hold_bundles(self, on: bool) -> None:
        """Ask for no more chunks, or go on, in all fetches but those by hand: what was asked for
        may still come, nobody is blamed, and no fetch fails of it."""
        self._hold_fetching = on
        self._tell_soon(lambda now: bundle.HoldFetching(self._hold_fetching, now))

    def hold_serving(self, on: bool) -> None:
        """Say of every bundle that it is not here, or go on serving."""
        self._hold_serving = on
        self._tell_soon(lambda now: bundle.HoldServing(self._hold_serving, now))

    async def serve_blob(self, root: bytes, data: bytes) -> None:
        """Answer for a label, whose SHA-256 is `root`."""
        await self._tell_exchange(bundle.Serve(root, data, 0))

    async def remove_bundle(self, root: bytes) -> None:
        """Stop serving and fetching a bundle or label, and delete it from disk."""
        await self._tell_exchange(bundle.StopServing(root))
        await self._tell_exchange(bundle.Abandon(root, "removed", trio.current_time()))
        await self._in_thread(partial(self._files.remove, root))

    async def fetch(
        self,
        root: bytes,
        size_bytes: int,
        holders: Sequence[PeerId] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        by_hand: bool = False,
    ) -> FetchResult:
        """Get a bundle from those of the holders that have it (None: from any peer).

        by_hand: the owner waits for it, so it is held to no budget.
        progress: called with the bytes that are here and the size. Serves nothing by itself: say
        `serve_bundle` when the file has been checked. Raises FetchError.
        """
        if await self._in_thread(partial(self._files.whole, root)) is not None:
            return FetchResult(self._files.path(root), size_bytes, {}, size_bytes)
        named = None if holders is None else frozenset(holders)
        event = bundle.Fetch(root, size_bytes, named, trio.current_time(), by_hand)
        return await self._downloads.bundle(event, progress)

    async def fetch_blob(self, root: bytes, holders: Sequence[PeerId] | None = None) -> bytes:
        """Get the bytes whose SHA-256 is `root`: a label, at most 64 KiB. Raises FetchError."""
        named = None if holders is None else frozenset(holders)
        return await self._downloads.blob(bundle.FetchBlob(root, named, trio.current_time()))

    # ---- one event at a time; all of these are called in turn ----------------------------------

    async def _transported(self, event: Connected | Disconnected | Arrived) -> None:
        now = trio.current_time()
        match event:
            case Connected(peer, address):
                self._peers[peer] = PeerStats(peer, address, self._clock())
                self._on_link(event)
                await self._replicate(PeerUp(peer, self._now_s()))
                await self._exchanged(bundle.HolderUp(peer, now))
                await self._introduced(intro.Met(peer, address, self._now_s()))
            case Disconnected(peer):
                self._peers.pop(peer, None)
                self._on_link(event)
                await self._replicate(PeerDown(peer, self._now_s()))
                await self._exchanged(bundle.HolderDown(peer, now))
                await self._introduced(intro.Parted(peer, self._now_s()))
            case Arrived(peer, channel, frame):
                if stats := self._peers.get(peer):
                    stats.bytes_in[channel or "urgent"] += len(frame)
                if channel is Channel.BUNDLE:
                    await self._exchanged(bundle.FrameIn(peer, frame, now))
                elif channel is Channel.PEERS:
                    await self._introduced(intro.FrameIn(peer, frame, self._now_s()))
                else:
                    urgent = channel is None
                    await self._replicate(Received(peer, frame, self._now_s(), urgent))
            case _:
                assert_never(event)

    async def _replicate(self, event: Event) -> None:
        await self._refuse_unstored()
        for effect in self._replica.handle(event):
            match effect:
                case Save():
                    await self._save(effect)
                case Send(peer, frame):
                    await self._send(peer, Channel.SYNC, frame)
                case Broadcast(frame):
                    await self._transport.broadcast(frame)
                case OriginChanged() | LeafRetracted() | PublishBlocked():
                    for changes in self._subscribers:
                        changes.put(effect)
                case Refused(peer, reason, blame):
                    await self._refuse(peer, reason, blame)
                case WakeAfter(delay_s, tell):
                    self._after(delay_s, self._tell_due if tell else self._sync_due)
                case _:
                    assert_never(effect)

    async def _save(self, order: Save) -> None:
        write = partial(self._store.write, order.puts, order.deletes, durable=order.durable)
        try:
            await self._in_thread(write)
        except Exception as error:  # of any store
            self._store_failed = error
            if self._nursery is not None:
                # Whoever gave the event may take this for its own failure and go on; `run` cannot.
                self._spawn(self._refuse_unstored)
            await self._refuse_unstored()

    async def _refuse_unstored(self) -> None:
        if self._store_failed is not None:
            raise StoreFailedError(str(self._store_failed)) from self._store_failed

    async def _exchanged(self, event: bundle.ExchangeEvent) -> None:
        for effect in self._exchange.handle(event):
            match effect:
                case bundle.SendFrame(peer, frame):
                    if self._mirror is not None and peer == self._mirror.peer:
                        tell = partial(self._tell_of_mirror, peer)
                        self._spawn(partial(self._mirror.ask, frame, tell))
                    else:
                        await self._send(peer, Channel.BUNDLE, frame)
                case (
                    bundle.CheckPart()
                    | bundle.StoreChunk()
                    | bundle.Finished()
                    | bundle.BlobArrived()
                    | bundle.Failed()
                ):
                    await self._downloads.perform(effect)
                case bundle.PeerRefused(peer, reason):
                    await self._refuse(peer, reason)
                case bundle.ReadChunk():
                    self._spawn(partial(self._read_chunk, effect))
                case bundle.WakeAfter(delay_s):
                    self._after(delay_s, self._tick)
                case _:
                    assert_never(effect)

    async def _introduced(self, event: intro.IntroductionEvent) -> None:
        if self._introductions is None:
            return
        for effect in self._introductions.handle(event):
            match effect:
                case intro.SendFrame(peer, frame):
                    await self._send(peer, Channel.PEERS, frame)
                case intro.Learned():
                    self._on_learned(effect)
                case intro.Refused(peer, reason, blame):
                    await self._refuse(peer, reason, blame)
                case intro.WakeAfter(delay_s):
                    self._after(delay_s, self._look_for_peers)
                case _:
                    assert_never(effect)

    async def _send(self, peer: PeerId, channel: Channel, frame: bytes) -> None:
        sent = await self._transport.send(peer, channel, frame)
        if stats := self._peers.get(peer):
            if sent:
                stats.bytes_out[channel] += len(frame)
            else:
                stats.unsent += 1

    async def _refuse(self, peer: PeerId, reason: str, blame: bool = True) -> None:
        self.refused[reason] += 1
        stats = self._peers.get(peer)
        if self._mirror is not None and peer == self._mirror.peer:
            log.warning("refused mirror reason=%s", reason)  # the owner's to mend
        if stats is None or not blame:
            return
        if not stats.refused[reason]:
            log.warning("refused peer=%s reason=%s", peer, reason)
        stats.refused[reason] += 1
        if stats.refused.total() >= self._config.refusals_max:
            await self._transport.disconnect(peer, REFUSED_TOO_MUCH)

    # ---- timers --------------------------------------------------------------------------------

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None, "the driver is not running"
        self._nursery.start_soon(work)

    def _after(self, delay_s: float, then: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await trio.sleep(delay_s)
            async with self._turn:
                await then()

        self._spawn(wait)

    async def _sync_due(self) -> None:
        await self._replicate(SyncDue(self._now_s()))

    async def _tell_due(self) -> None:
        await self._replicate(TellDue(self._now_s()))

    async def _look_for_peers(self) -> None:
        await self._introduced(intro.LookDue(self._now_s()))

    async def _tick(self) -> None:
        await self._exchanged(bundle.Tick(trio.current_time()))

    def _now_s(self) -> int:
        return int(self._clock())

    # ---- outside of the turns ------------------------------------------------------------------

    async def _tell_exchange(self, event: bundle.ExchangeEvent) -> None:
        async with self._turn:
            await self._exchanged(event)

    async def _tell_of_mirror(self, peer: PeerId, frame: bytes) -> None:
        await self._tell_exchange(bundle.FrameIn(peer, frame, trio.current_time()))

    def _tell_soon(self, event: Callable[[float], bundle.ExchangeEvent]) -> None:
        """Give the exchange what `event` makes, once it is its turn: what is true then."""

        async def tell() -> None:
            async with self._turn:
                await self._exchanged(event(trio.current_time()))

        self._spawn(tell)

    async def _read_chunk(self, order: bundle.ReadChunk) -> None:
        try:
            data = self._files.cached_chunk(order.root, order.index) or await self._in_thread(
                partial(self._files.read_chunk, order.root, order.index)
            )
        except OSError as error:
            log.error("bundle not read root=%s error=%s", order.root.hex(), error)
            data = None
        await self._tell_exchange(bundle.ChunkRead(order.peer, order.root, order.index, data))
