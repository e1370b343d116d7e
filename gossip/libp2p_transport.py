"""The real transport: frames over py-libp2p streams, broadcasts over its gossipsub.

A host lives inside `run`, which starts another with the same key if it dies all the same. What
its peers send waits in one inbox of a bounded number of frames; `libp2p_streams` has the rest.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from . import libp2p_fence as fence
from . import multiaddrs
from .dial_reasons import reason_of
from .doorkeeper import Doorkeeper
from .inbox import Inbox
from .libp2p_relay import Relay
from .libp2p_streams import PROTOCOLS, PeerStreams, Shared, reset
from .listening import knock, listen_error, refuse_port_in_use
from .multiaddrs import CIRCUIT
from .outbox import Budget
from .ports import (
    REFUSED_TOO_MUCH,
    Arrived,
    Channel,
    Connected,
    Disconnected,
    PeerId,
    TransportEvent,
)
from .relaying import RelayState
from .transport_config import DialError, DialReason, ListenError, TransportConfig

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_CLOSE_S = 5.0
_URGENT_RUN_MAX = 8
_JOIN_S = 2.0
_PUBLISH_GAP_S = 0.02  # bursts overflow the peers' queues, in silence
_RESTART_S_MIN = 0.5
_LIVED_S = 60.0  # a host that lived this long died of something new: no back-off
_KNOCK_S = 5.0
_KNOCKS = 2  # unheard, one after the other, and the host is deaf
_DEATH_CHARS_MAX = 200


class _DeafError(Exception):
    """The host lives, and hears nobody who connects."""


@dataclass(frozen=True, slots=True)
class _Life:
    """What belongs to one life of the host."""

    host: Any
    pubsub: Any
    relay: Relay
    nursery: trio.Nursery


class Libp2pTransport:
    """See `ports.Transport`. key: the Ed25519 private key of the transport, 32 bytes.

    clock: Unix seconds.
    """

    def __init__(
        self,
        key: bytes,
        config: TransportConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._config = config or TransportConfig()
        self._clock = clock
        self._peer_id = PeerId(fence.peer_id_of(key))
        self._listen = self._config.listen
        self._life: _Life | None = None
        self._peers: dict[PeerId, PeerStreams] = {}
        self._told: dict[PeerId, PeerStreams] = {}  # those whose Connected has been handed out
        self._inbox: Inbox[tuple[PeerStreams, Arrived]] = Inbox(self._config.inbox_frames_max)
        self._urgent_inbox: deque[tuple[PeerStreams, Arrived]] = deque()
        self._urgent_run = 0  # broadcasts handed out since the last frame of another kind
        self._urgent_in, self._urgent_out = trio.open_memory_channel[bytes](
            self._config.urgent_queue_max
        )
        self._stirred = trio.Event()
        self.counts: Counter[str] = Counter()  # what was refused or dropped, by a fixed phrase
        self.lives = 0
        self._deaf = False
        self.last_death = ""  # what the host before this one died of
        self._door = Doorkeeper(self._config, self.counts)
        self._shared = Shared(
            self._config,
            self.counts,
            Budget(self._config.queued_bytes_max),
            take=self._take,
            spawn=self._spawn,
            drop=self.disconnect,
            blame=self._blame,
        )

    # ---- the port ------------------------------------------------------------------------------

    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        life = self._life
        if life is None:
            return []
        return [*map(str, life.host.get_addrs()), *life.relay.addresses()]

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; False at once if the peer is gone or its queue is full."""
        await trio.lowlevel.checkpoint()
        entry = self._peers.get(peer)
        return entry is not None and self._life is not None and entry.put(channel, frame)

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
            first = self._next_arrived()
            if first is None:
                await self._stirred.wait()
                self._stirred = trio.Event()
                continue
            entry, arrived = first
            if self._told.get(arrived.peer) is entry:
                return arrived
            # Else it came over a connection whose end has been told already.

    def _next_arrived(self) -> tuple[PeerStreams, Arrived] | None:
        """Retractions before bulk; but more broadcasts than this machine can keep up with must not
        keep out the tables that they tell of."""
        bulks_turn = not self._urgent_inbox or self._urgent_run >= _URGENT_RUN_MAX
        bulk = self._inbox.take() if bulks_turn else None
        if bulk is not None or not self._urgent_inbox:
            self._urgent_run = 0
            return bulk
        self._urgent_run += 1
        return self._urgent_inbox.popleft()

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        entry, life = self._peers.get(peer), self._life
        if entry is None or life is None:
            return
        if reason == REFUSED_TOO_MUCH:
            weight = float(self._config.faults_max)
            self._door.blame(peer, reason, trio.current_time(), weight)
        log.info("peer disconnected peer=%s reason=%s", peer, reason)
        self._forget(peer)
        self._spawn(partial(fence.disconnect, life.host, entry.id))

    # ---- beyond the port -----------------------------------------------------------------------

    async def dial(self, address: str) -> PeerId:
        """Connect to a multiaddr that ends in /p2p/PEER, and return the peer. Raises DialError."""
        life = self._life
        if life is None:
            raise DialError("the host is not running", DialReason.NOT_RUNNING)
        try:
            place = multiaddrs.parse(address)
            peer_id = fence.peer_of(address)
        except ValueError as error:
            text = f"{address!r} is no multiaddr that ends in /p2p/PEER"
            raise DialError(text, DialReason.NO_ADDRESS) from error
        peer = PeerId(str(peer_id))
        if self._peer_id in (peer, place.relay):
            raise DialError(f"{address} is this node", DialReason.THIS_NODE)
        if self._door.banned(peer, trio.current_time()):
            raise DialError(f"{address}: banned for what it has sent", DialReason.BANNED)
        if peer in self._peers and (place.relay or life.relay.has_direct(peer_id)):
            return peer
        try:
            with trio.fail_after(self._config.dial_s):
                if place.relay:
                    await life.relay.dial(place)
                else:
                    await life.host.get_network().dial_addr(fence.address_of(address), peer_id)
        except DialError:
            raise
        except trio.TooSlowError:
            text = f"{address}: no answer in {self._config.dial_s:g} s"
            raise DialError(text, DialReason.NO_ANSWER) from None
        except Exception as error:  # of any kind: the fence
            reason = reason_of(error)
            raise DialError(f"{address}: {error.__cause__ or error}", reason) from error
        return peer

    def relays(self) -> list[RelayState]:
        """How it stands with each relay that this node is to be reached through."""
        return self._life.relay.states() if self._life else []

    def relayed(self) -> dict[str, int] | None:
        """What is relayed for others; None if nothing ever is."""
        return self._life.relay.carried() if self._life else None

    def standing(self) -> dict[str, Any]:
        """How the host does, for the run file: its lives, what the last one died of, and what
        was refused or dropped, by reason."""
        return {
            "lives": self.lives,
            "last_death": self.last_death,
            "counts": dict(self.counts),
        }

    def refused_of(self, peer: PeerId) -> Counter[str]:
        """What was refused of a peer, by reason: the most recent few thousand peers' alone."""
        return self._door.refused_of(peer)

    async def probe(self, peer: PeerId, within_s: float) -> bool:
        """Whether a connected peer answers a ping in time. One that does not is disconnected."""
        entry, life = self._peers.get(peer), self._life
        if entry is None or life is None:
            return False
        if await fence.answers(life.host, entry.id, within_s):
            return True
        await self.disconnect(peer, "did not answer")
        return False

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
                    raise listen_error(died) or died from error
                self.counts["host died"] += 1
                self.last_death = _in_words(died)
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
        refuse_port_in_use(self._listen)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live_shielded, stop, task_status)
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

    async def _live_shielded(self, stop: trio.Event, task_status: TaskStatus[None]) -> None:
        host = fence.open_host(self._key, self._listen, self._config, self._door, self._blame)
        pubsub, router = fence.open_pubsub(
            host, self._config, self._take_urgent, self._blame, self.counts
        )
        with trio.CancelScope(shield=True) as shield:
            try:
                joined = partial(self._joined, host)
                host.get_network().register_notifee(
                    fence.notifee(joined, partial(self._left, host))
                )
                for channel, protocol in PROTOCOLS.items():
                    host.set_stream_handler(protocol, partial(self._read, channel))
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
                            await fence.close(host)
                    if self._deaf:
                        raise _DeafError("it heard nobody who connected")
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
            relay = Relay(host, self._config, self.counts, nursery, self._clock)
            self._life = _Life(host, pubsub, relay, nursery)
            nursery.start_soon(self._publish, pubsub)
            nursery.start_soon(self._listen_to_itself, stop)
            nursery.start_soon(self._fenced, partial(relay.run, self.dial))
            task_status.started()
            await stop.wait()
            self._life = None
            for peer in list(self._peers):
                self._forget(peer)
            nursery.cancel_scope.cancel()

    async def _listen_to_itself(self, stop: trio.Event) -> None:
        """End a life in which nobody who connects is heard: it looks well from inside."""
        unheard = 0
        self._deaf = False
        while unheard < _KNOCKS:
            await trio.sleep(self._config.deaf_check_s if not unheard else _RESTART_S_MIN)
            heard = await knock(self._listen, self._door.knocking, _KNOCK_S)
            unheard = 0 if heard else unheard + 1
        self._deaf = True
        stop.set()

    async def _joined(self, host: Any, peer_id: Any, address: str, inbound: bool) -> None:
        peer = PeerId(str(peer_id))
        if self._door.banned(peer, trio.current_time()):
            return
        if not inbound:
            self._door.came_from(peer, multiaddrs.host_of(address))
        direct = CIRCUIT not in address
        if peer not in self._peers and peer != self._peer_id:
            self._peers[peer] = PeerStreams(host, peer_id, address, self._shared)
            self._peers[peer].inbound = inbound
            self._stirred.set()
        elif (entry := self._peers.get(peer)) and CIRCUIT in entry.address and direct:
            entry.move(address, inbound)

    async def _left(self, host: Any, peer_id: Any) -> None:
        self._forget(PeerId(str(peer_id)))
        fence.forget(host, peer_id)

    def _forget(self, peer: PeerId) -> None:
        entry = self._peers.pop(peer, None)
        if entry is not None:
            entry.end()
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
                return Connected(peer, entry.address, entry.inbound)
        return None

    def _blame(self, peer_id: Any, reason: str) -> None:
        """Count what a peer did wrong; who does so too often is disconnected and banned."""
        peer = PeerId(str(peer_id))
        if self._door.blame(peer, reason, trio.current_time()) and self._life is not None:
            self._forget(peer)
            self._spawn(partial(fence.disconnect, self._life.host, fence.id_of(peer)))

    # ---- what arrives, and what is spread ------------------------------------------------------

    async def _read(self, channel: Channel, stream: Any) -> None:
        peer = PeerId(str(stream.muxed_conn.peer_id))
        # A quick peer's stream may be here before its connection has been told.
        with trio.move_on_after(_JOIN_S):
            while peer not in self._peers:
                await trio.sleep(0.01)
        entry = self._peers.get(peer)
        if entry is None:
            await reset(stream)
        else:
            await entry.read(channel, stream)

    async def _take(self, entry: PeerStreams, arrived: Arrived) -> None:
        await self._inbox.put(entry, (entry, arrived))
        self._stirred.set()

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

    async def _publish(self, pubsub: Any) -> None:
        async for data in self._urgent_out:
            try:
                await pubsub.publish_paced(data)
            except Exception as error:  # of any kind: the fence
                log.warning("broadcast failed error=%r", error)
            await trio.sleep(_PUBLISH_GAP_S)

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self._life is not None, "the host is not running"
        self._life.nursery.start_soon(self._fenced, work)

    async def _fenced(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("transport task failed")


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


def _in_words(error: BaseException) -> str:
    """Say what a host died of: the innermost of the errors that nurseries wrap."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:_DEATH_CHARS_MAX]
