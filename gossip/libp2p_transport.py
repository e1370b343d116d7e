"""The real transport: frames over py-libp2p streams, broadcasts over its gossipsub.

A host lives inside `run`, which starts another with the same key if it dies all the same. Each
peer has one outbound stream for each channel, written by a task of its own from a bounded queue,
so that a peer that does not read holds up nobody; and one inbound stream for each channel, whose
frames wait in one inbox, so that a peer that sends too fast is made to wait.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from . import libp2p_fence as fence
from .framing import FrameError, FrameReader, framed
from .outbox import Budget, Outbox
from .ports import Arrived, Channel, Connected, Disconnected, PeerId, TransportEvent
from .transport_config import DialError, ListenError, PortInUseError, TransportConfig

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_PROTOCOLS = {Channel.SYNC: "/groove/sync/1", Channel.BUNDLE: "/groove/bundle/1"}
_OPEN_TRIES = 3  # then what waits for the peer on that channel is dropped
_RETRY_S = 0.3
_CLOSE_S = 5.0
_JOIN_S = 2.0
_PUBLISH_GAP_S = 0.02  # bursts overflow the peers' queues, in silence
_RESTART_S_MIN = 0.5
_LIVED_S = 60.0  # a host that lived this long died of something new: no back-off


@dataclass(slots=True)
class _Peer:
    """One peer while it is connected. A peer that comes back gets another."""

    id: Any
    address: str
    outboxes: dict[Channel, Outbox] = field(default_factory=dict)
    readers: dict[Channel, trio.CancelScope] = field(default_factory=dict)
    writers: list[trio.CancelScope] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Life:
    """What belongs to one life of the host."""

    host: Any
    pubsub: Any
    nursery: trio.Nursery


class Libp2pTransport:
    """See `ports.Transport`. key: the Ed25519 private key of the transport, 32 bytes."""

    def __init__(self, key: bytes, config: TransportConfig | None = None) -> None:
        self._key = key
        self._config = config or TransportConfig()
        self._peer_id = PeerId(fence.peer_id_of(key))
        self._listen = self._config.listen
        self._life: _Life | None = None
        self._peers: dict[PeerId, _Peer] = {}
        self._told: dict[PeerId, _Peer] = {}  # those whose Connected has been handed out
        self._budget = Budget(self._config.queued_bytes_max)
        self._inbox_in, self._inbox_out = trio.open_memory_channel[tuple[_Peer, Arrived]](
            self._config.inbox_frames_max
        )
        self._urgent_inbox: deque[tuple[_Peer, Arrived]] = deque()
        self._urgent_in, self._urgent_out = trio.open_memory_channel[bytes](
            self._config.urgent_queue_max
        )
        self._stirred = trio.Event()
        self.counts: Counter[str] = Counter()  # what was refused or dropped, by a fixed phrase
        self.lives = 0

    # ---- the port ------------------------------------------------------------------------------

    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        life = self._life
        return [str(address) for address in life.host.get_addrs()] if life else []

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; False at once if the peer is gone or its queue is full."""
        await trio.lowlevel.checkpoint()
        entry, life = self._peers.get(peer), self._life
        if entry is None or life is None:
            return False
        outbox = entry.outboxes.get(channel)
        if outbox is None:
            outbox = entry.outboxes[channel] = Outbox(self._config.queue_bytes_max, self._budget)
            life.nursery.start_soon(
                self._fenced, partial(self._write_frames, life, entry, channel, outbox)
            )
        sent = outbox.put(framed(frame))
        if not sent:
            self.counts["outbox full"] += 1
        return sent

    async def broadcast(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if len(frame) > self._config.urgent_bytes_max:
            raise ValueError(
                f"a broadcast has at most {self._config.urgent_bytes_max} bytes, not {len(frame)}"
            )
        try:
            self._urgent_in.send_nowait(frame)
        except trio.WouldBlock:
            self.counts["broadcast queue full"] += 1

    async def next_event(self) -> TransportEvent:
        await trio.lowlevel.checkpoint()
        while True:
            change = self._untold_change()
            if change is not None:
                return change
            try:
                # Retractions before bulk.
                entry, arrived = (
                    self._urgent_inbox.popleft()
                    if self._urgent_inbox
                    else self._inbox_out.receive_nowait()
                )
            except trio.WouldBlock:
                await self._stirred.wait()
                self._stirred = trio.Event()
                continue
            if self._told.get(arrived.peer) is entry:
                return arrived
            # Else it came over a connection whose end has been told already.

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        entry, life = self._peers.get(peer), self._life
        if entry is None or life is None:
            return
        log.info("peer disconnected peer=%s reason=%s", peer, reason)
        self._forget(peer)
        life.nursery.start_soon(self._fenced, partial(fence.disconnect, life.host, entry.id))

    # ---- beyond the port -----------------------------------------------------------------------

    async def dial(self, address: str) -> PeerId:
        """Connect to a multiaddr that ends in /p2p/PEER, and return the peer. Raises DialError."""
        life = self._life
        if life is None:
            raise DialError("the host is not running")
        try:
            peer = fence.peer_of(address)
        except ValueError as error:
            raise DialError(f"{address!r} is no multiaddr that ends in /p2p/PEER") from error
        if str(peer) == self._peer_id:
            raise DialError(f"{address} is this node")
        if PeerId(str(peer)) in self._peers:
            return PeerId(str(peer))
        try:
            with trio.fail_after(self._config.dial_s):
                await life.host.get_network().dial_addr(fence.address_of(address), peer)
        except trio.TooSlowError:
            raise DialError(f"{address}: no answer in {self._config.dial_s:g} s") from None
        except Exception as error:  # of any kind: the fence
            raise DialError(f"{address}: {error.__cause__ or error}") from error
        return PeerId(str(peer))

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a host alive until cancelled; started once it listens.

        Raises ListenError if the first host cannot listen.
        """
        pause_s = _RESTART_S_MIN
        while True:
            born = trio.current_time()
            try:
                await self._live(task_status if self.lives == 0 else trio.TASK_STATUS_IGNORED)
            except (Exception, BaseExceptionGroup) as error:
                died = _without_cancellation(error)
                if self.lives == 0:
                    raise _listen_error(died) or died from error
                self.counts["host died"] += 1
                log.error("host died, starting another in=%.1f s", pause_s, exc_info=died)
            # If it was our own cancellation, this raises it again.
            await trio.sleep(pause_s)
            lived = trio.current_time() - born > _LIVED_S
            pause_s = _RESTART_S_MIN if lived else min(2 * pause_s, self._config.restart_s_max)

    # ---- one life of the host ------------------------------------------------------------------

    async def _live(self, task_status: TaskStatus[None]) -> None:
        """Run one host until cancelled, or until it dies.

        libp2p does not bear cancellation: its tasks fail on each other's remains and leave
        sockets open. So the host runs shielded, and is closed in order when we are cancelled.
        """
        _refuse_port_in_use(self._listen)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live_shielded, stop, task_status)
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

    async def _live_shielded(self, stop: trio.Event, task_status: TaskStatus[None]) -> None:
        host = fence.open_host(self._key, self._listen, self._config)
        pubsub, router = fence.open_pubsub(host, self._config, self._take_urgent)
        with trio.CancelScope(shield=True) as shield:
            try:
                host.get_network().register_notifee(fence.notifee(self._joined, self._left))
                for channel, protocol in _PROTOCOLS.items():
                    host.set_stream_handler(protocol, partial(self._read_frames, channel))
                async with host.run([fence.address_of(self._listen)]):
                    if not host.get_addrs():
                        raise ListenError(
                            f"cannot listen on {self._listen}; choose another address"
                        )
                    async with fence.service(pubsub), fence.service(router):
                        await self._serve(host, pubsub, stop, task_status)
                        shield.deadline = trio.current_time() + 2 * _CLOSE_S
                        # Leaving `host.run` alone would leak two sockets for each connection.
                        with trio.move_on_after(_CLOSE_S):
                            await host.close()
            finally:
                # A host that died of a fault has left its listener open.
                with trio.move_on_after(_CLOSE_S):
                    await fence.close_rest(host)
                self._life = None
                for peer in list(self._peers):
                    self._forget(peer)
                pubsub.seen_messages.stop()

    async def _serve(
        self, host: Any, pubsub: Any, stop: trio.Event, task_status: TaskStatus[None]
    ) -> None:
        """Be what the port's methods work on, until told to stop."""
        await pubsub.wait_until_ready()
        await pubsub.subscribe(fence.URGENT_TOPIC)
        # Another life listens where this one did, whatever port the system chose.
        self._listen = str(host.get_addrs()[0]).split("/p2p/")[0]
        self.lives += 1
        log.info("listening address=%s", host.get_addrs()[0])
        async with trio.open_nursery() as nursery:
            self._life = _Life(host, pubsub, nursery)
            nursery.start_soon(self._publish, pubsub)
            task_status.started()
            await stop.wait()
            self._life = None
            for peer in list(self._peers):
                self._forget(peer)
            nursery.cancel_scope.cancel()

    async def _joined(self, peer_id: Any, address: str) -> None:
        peer = PeerId(str(peer_id))
        if peer not in self._peers and peer != self._peer_id:
            self._peers[peer] = _Peer(peer_id, address)
            self._stirred.set()

    async def _left(self, peer_id: Any) -> None:
        self._forget(PeerId(str(peer_id)))

    def _forget(self, peer: PeerId) -> None:
        entry = self._peers.pop(peer, None)
        if entry is not None:
            for outbox in entry.outboxes.values():
                outbox.clear()
            for scope in [*entry.readers.values(), *entry.writers]:
                scope.cancel()
            self._stirred.set()

    def _untold_change(self) -> Connected | Disconnected | None:
        """The next difference between who is connected and who was said to be."""
        for peer, entry in self._told.items():
            if self._peers.get(peer) is not entry:
                del self._told[peer]
                return Disconnected(peer)
        for peer, entry in self._peers.items():
            if peer not in self._told:
                self._told[peer] = entry
                return Connected(peer, entry.address)
        return None

    # ---- frames --------------------------------------------------------------------------------

    async def _read_frames(self, channel: Channel, stream: Any) -> None:
        """Serve one inbound stream: hand over its frames until it ends or sends what is none."""
        peer = PeerId(str(stream.muxed_conn.peer_id))
        # A quick peer's stream may be here before its connection has been told.
        with trio.move_on_after(_JOIN_S):
            while peer not in self._peers:
                await trio.sleep(0.01)
        entry = self._peers.get(peer)
        if entry is None:
            await stream.reset()
            return
        if channel in entry.readers:
            entry.readers[channel].cancel()  # its writer has opened another
        reader = FrameReader(stream)
        with trio.CancelScope() as scope:
            entry.readers[channel] = scope
            try:
                while True:
                    frame = await reader.next(
                        idle_s=self._config.reader_idle_s, frame_s=self._config.frame_s
                    )
                    if frame is None:
                        break
                    await self._inbox_in.send((entry, Arrived(peer, channel, frame)))
                    self._stirred.set()
            except FrameError as error:
                self.counts[error.reason] += 1
                log.info("stream refused peer=%s channel=%s reason=%s", peer, channel, error.reason)
        if entry.readers.get(channel) is scope:
            del entry.readers[channel]
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S), suppress(Exception):
            await stream.reset()

    def _take_urgent(self, forwarder: Any, data: bytes) -> None:
        peer = PeerId(str(forwarder))
        entry = self._peers.get(peer)
        if entry is None:
            return
        if len(self._urgent_inbox) >= self._config.urgent_inbox_max:
            self.counts["urgent inbox full"] += 1  # a hint; reconciliation brings what it told
            return
        self._urgent_inbox.append((entry, Arrived(peer, None, data)))
        self._stirred.set()

    async def _write_frames(
        self, life: _Life, entry: _Peer, channel: Channel, outbox: Outbox
    ) -> None:
        """Write what is queued, over a stream that is opened when needed, until the peer goes."""
        stream: Any = None
        failures = 0
        with trio.CancelScope() as scope:
            entry.writers.append(scope)
            while True:
                frame = await outbox.first(self._config.writer_idle_s)
                if frame is None:
                    await _close(stream)
                    stream = None
                    continue
                try:
                    if stream is None:
                        stream = await self._open(life, entry, channel)
                    outbox.drop_first()  # from here on it may have arrived, so never again
                    with trio.fail_after(self._config.write_s):
                        await stream.write(frame)
                    failures = 0
                except Exception as error:  # of any kind: the fence
                    log.info("send failed peer=%s channel=%s error=%r", entry.id, channel, error)
                    failures += 1
                    if isinstance(error, trio.TooSlowError) and stream is not None:
                        # A cancelled write may have put half a Noise message on the wire.
                        await self.disconnect(PeerId(str(entry.id)), "does not read")
                        return
                    await _reset(stream)
                    stream = None
                    if failures >= _OPEN_TRIES:
                        self.counts["unsent"] += outbox.clear()
                    await trio.sleep(_RETRY_S * failures)
        # A cancelled write spoils the connection, but then the peer is gone anyhow.

    async def _open(self, life: _Life, entry: _Peer, channel: Channel) -> Any:
        if not life.host.is_peer_connected(entry.id):
            raise DialError("connection lost")  # libp2p would dial by itself
        with trio.fail_after(self._config.open_s):
            return await life.host.new_stream(entry.id, [_PROTOCOLS[channel]])

    async def _publish(self, pubsub: Any) -> None:
        async for data in self._urgent_out:
            try:
                await pubsub.publish_paced(data)
            except Exception as error:  # of any kind: the fence
                log.warning("broadcast failed error=%r", error)
            await trio.sleep(_PUBLISH_GAP_S)

    async def _fenced(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("transport task failed")


async def _close(stream: Any) -> None:
    if stream is not None:
        with trio.move_on_after(_CLOSE_S), suppress(Exception):
            await stream.close()


async def _reset(stream: Any) -> None:
    if stream is not None:
        with trio.move_on_after(_CLOSE_S), suppress(Exception):
            await stream.reset()


def _without_cancellation(error: BaseException) -> BaseException:
    """Return what failed; raise again what holds nothing else than our own cancellation, or an
    order to exit, which no supervisor may swallow."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    exits, _ = error.split((KeyboardInterrupt, SystemExit))
    _, failed = error.split(trio.Cancelled)
    if exits is not None or failed is None:
        raise error
    return failed


def _listen_error(error: BaseException) -> ListenError | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_listen_error, error.exceptions)), None)
    return error if isinstance(error, ListenError) else None


_TCP_ADDRESS = re.compile(r"/ip(?P<version>[46])/(?P<host>[^/]+)/tcp/(?P<port>\d{1,5})$")


def _refuse_port_in_use(listen: str) -> None:
    """Raise ListenError unless `listen` is a TCP multiaddr whose port is free.

    libp2p binds with SO_REUSEPORT, so a second node of the same user would share the first one's
    port and get half of its connections.
    """
    parts = _TCP_ADDRESS.match(listen)
    if parts is None:
        raise ListenError(
            f"cannot listen on {listen!r}: it is no TCP multiaddr; expected /ip4/ADDRESS/tcp/PORT"
        )
    host, port = parts["host"], int(parts["port"])
    family = socket.AF_INET if parts["version"] == "4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if in_use:
                raise PortInUseError(
                    f"cannot listen on {listen}: another process listens there"
                ) from error
            raise ListenError(f"cannot listen on {listen}: {error}") from error
