"""Being reached through relays, and reaching others through theirs: circuit relay v2.

Most nodes stand behind a router that lets nobody in. Such a node keeps a reservation at up to
three relays of its owner's choice, and whoever wants it dials `RELAY/p2p-circuit/p2p/NODE`. The
relay joins two streams; the connection in them is upgraded as any other, so that Noise proves who
is at its other end, and the swarm key, if there is one, is asked for once more. As soon as there
is a direct connection to a peer, the relayed one is closed. Holes are not punched.

py-libp2p 0.8.1 has all of this, and none of it is used: its client asks for a reservation before
each dial, its targets take calls from anybody who says to be a relay, and nothing has a deadline
or a limit that is kept. Only its messages are.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any, Final

import trio

from .dialer import looked_up
from .libp2p_circuit import (
    HOP,
    STOP,
    CircuitError,
    asking,
    close,
    expect_ok,
    hear,
    is_relayed,
    named,
    relayed_connection,
    reset,
    say,
    stopped,
)
from .libp2p_hop import Hop
from .multiaddrs import CIRCUIT, Place
from .relaying import Keeper, RelayState, Status, peer_name
from .transport_config import DialError, DialReason, TransportConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libp2p's own imports; see `libp2p_fence`
    from libp2p.abc import INotifee
    from libp2p.peer.id import ID
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
    from multiaddr import Multiaddr

log = logging.getLogger(__name__)

_ASK_S: Final = 10.0
_CALLS_MAX: Final = 32  # of one relay: connections through it to this node, and handshakes
_DIRECT_SETTLES_S: Final = 0.5  # both ends have the direct connection before the other goes

Dial = Callable[[str], Awaitable[object]]


class Relay:
    """One life of a host, as a client of relays and, if the owner wishes, as one."""

    def __init__(
        self,
        host: Any,
        config: TransportConfig,
        counts: Counter[str],
        nursery: trio.Nursery,
        clock: Callable[[], float],
    ) -> None:
        """clock: Unix seconds, in which relays tell how long they keep a place."""
        self._host = host
        self._config = config
        self._counts = counts
        self._clock = clock
        self._nursery = nursery
        self._own = str(host.get_id())
        relays = [each for each in config.relay if peer_name(each) != self._own]
        self._keeper = Keeper(relays, Random(os.urandom(16)))
        self._calls: Counter[str] = Counter()  # being carried, by relay
        self._stirred = trio.Event()
        self._hop = Hop(host, config.relaying, counts, clock) if config.relay_for_others else None
        host.get_network().register_notifee(_Notifee(self._connected, self._disconnected))
        host.set_stream_handler(STOP, self._take_call)
        if self._hop is not None:
            host.set_stream_handler(HOP, self._hop.serve)

    # ---- what the transport asks -----------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Where this node can be reached through relays, now."""
        reserved = self._keeper.reserved(trio.current_time())
        return [f"{relay}{CIRCUIT}/p2p/{self._own}" for relay in reserved]

    def states(self) -> list[RelayState]:
        return self._keeper.states(trio.current_time())

    def carried(self) -> dict[str, int] | None:
        """What is relayed for others; None if nothing ever is."""
        return self._hop.standing() if self._hop else None

    async def run(self, dial: Dial) -> None:
        """Keep the reservations until cancelled. dial: connects to a relay, or raises DialError."""
        async with trio.open_nursery() as nursery:
            while True:
                self._stirred = trio.Event()
                for relay in self._keeper.due(trio.current_time()):
                    nursery.start_soon(self._reserve, relay, dial)
                wait_s = self._keeper.next_due() - trio.current_time()
                with trio.move_on_after(max(0.0, wait_s)):
                    await self._stirred.wait()

    async def dial(self, place: Place) -> None:
        """Connect through a relay. Raises DialError, or what libp2p raises of a connection that
        fails; the caller keeps the time."""
        assert place.relay is not None and place.peer is not None
        relay_id = ID.from_string(place.relay)
        direct = Multiaddr(f"/{place.kind}/{place.host}/tcp/{place.port}/p2p/{place.relay}")
        if not self._host.is_peer_connected(relay_id):
            await self._host.get_network().dial_addr(direct, relay_id)
        try:
            stream = await self._host.new_stream(relay_id, [HOP])
        except Exception as error:  # of any kind: the fence
            text = f"{place}: the peer that should relay does not: {error}"
            raise DialError(text, DialReason.RELAY_REFUSED) from error
        try:
            await say(stream, asking(ID.from_string(place.peer).to_bytes()), _ASK_S)
            expect_ok(await hear(stream, HopMessage, _ASK_S + self._config.dial_s))
            raw = relayed_connection(stream, str(place), initiator=True)
            await self._host.get_network().upgrade_outbound_raw_conn(
                raw, ID.from_string(place.peer)
            )
        except CircuitError as error:
            await reset(stream)
            absent = error.status is Status.NO_RESERVATION
            reason = DialReason.NO_RESERVATION if absent else DialReason.RELAY_REFUSED
            said = error.status.name.lower().replace("_", " ") if error.status else error.reason
            raise DialError(f"{place}: {said}", reason) from error
        except BaseException:
            await reset(stream)
            raise

    def has_direct(self, peer_id: Any) -> bool:
        """True if there is a connection to the peer that goes through no relay."""
        return not all(map(is_relayed, self._host.get_network().get_connections(peer_id)))

    async def _connected(self, connection: Any) -> None:
        """Hear of every connection: of two to one peer, only the direct stays."""
        peer_id = connection.muxed_conn.peer_id
        if self.has_direct(peer_id):
            connections = self._host.get_network().get_connections(peer_id)
            for each in filter(is_relayed, connections):
                self._nursery.start_soon(self._close, each)

    async def _disconnected(self, connection: Any) -> None:
        """Hear of every connection's end."""
        peer_id = connection.muxed_conn.peer_id
        if not self.has_direct(peer_id):
            self._keeper.lost(str(peer_id), trio.current_time())
            self._stirred.set()
            if self._hop is not None:
                self._hop.gone(str(peer_id))

    # ---- reservations ----------------------------------------------------------------------------

    async def _reserve(self, relay: str, dial: Dial) -> None:
        why = "it gave no answer in time"
        ttl_s = 0.0
        with trio.move_on_after(2 * _ASK_S + self._config.dial_s):
            try:
                for address in await looked_up(relay):
                    await dial(address)
                    break
                ttl_s = await self._ask(ID.from_string(peer_name(relay)))
                why = ""
            except DialError as error:
                why = str(error.reason)
            except CircuitError as error:
                why = _refusal(error)
            except Exception as error:  # of any kind: the fence
                why = f"it does not relay: {type(error).__name__}"
                log.debug("reservation failed relay=%s error=%r", relay, error)
        now = trio.current_time()
        if why:
            self._keeper.failed(relay, why, now)
            log.info("relay not reserved relay=%s reason=%s", relay, why)
        else:
            self._keeper.granted(relay, ttl_s, now)
            log.info("relay reserved relay=%s ttl=%.0f s", relay, ttl_s)
        self._stirred.set()

    async def _ask(self, relay_id: Any) -> float:
        """Return for how long the relay grants a reservation, in seconds."""
        stream = await self._host.new_stream(relay_id, [HOP])
        try:
            await say(stream, asking(), _ASK_S)
            answer = await hear(stream, HopMessage, _ASK_S)
            expect_ok(answer)
        except CircuitError:
            await reset(stream)
            raise
        await close(stream)
        if not self._host.is_peer_connected(relay_id):
            raise CircuitError("relay stream ended")
        return float(answer.reservation.expire - self._clock())

    # ---- calls -----------------------------------------------------------------------------------

    async def _take_call(self, stream: Any) -> None:
        """Be the target of a circuit, and stay until the connection in it ends."""
        relay = str(stream.muxed_conn.peer_id)
        try:
            status = await self._look_at_call(stream, relay)
        except CircuitError as error:
            self._counts[error.reason] += 1
            await reset(stream)
            return
        if status is not Status.OK:
            self._counts["relayed call refused"] += 1
            with suppress(CircuitError):
                await say(stream, stopped(status), _ASK_S)
            await close(stream)
            return
        self._calls[relay] += 1
        try:
            await self._upgrade(stream, relay)
        except CircuitError as error:
            self._counts[error.reason] += 1
        finally:
            self._calls[relay] -= 1
            self._calls = +self._calls
            await reset(stream)

    async def _look_at_call(self, stream: Any, relay: str) -> Status:
        if not self._keeper.holds(relay, trio.current_time()) or is_relayed(stream.muxed_conn):
            return Status.PERMISSION_DENIED  # nobody asked this peer to relay
        call = await hear(stream, StopMessage, _ASK_S)
        if call.type != StopMessage.CONNECT:
            return Status.UNEXPECTED_MESSAGE
        source = named(call)
        if str(source) in (relay, self._own):
            return Status.PERMISSION_DENIED
        if self._calls[relay] >= _CALLS_MAX:
            return Status.RESOURCE_LIMIT_EXCEEDED
        if self.has_direct(source):
            return Status.CONNECTION_FAILED
        return Status.OK

    async def _upgrade(self, stream: Any, relay: str) -> None:
        """Whoever the relay says is calling, the name is the one that Noise proves."""
        await say(stream, stopped(Status.OK), _ASK_S)
        at = next(each for each in self._config.relay if peer_name(each) == relay)
        raw = relayed_connection(stream, f"{at}{CIRCUIT}", initiator=False)
        try:
            network = self._host.get_network()
            muxed = await network.upgrade_inbound_raw_conn(raw, Multiaddr(at))
            await muxed.event_closed.wait()
        except Exception as error:  # of any kind: the fence; also its end, see `libp2p_fence`
            log.debug("relayed connection ended relay=%s error=%r", relay, error)

    async def _close(self, connection: Any) -> None:
        await trio.sleep(_DIRECT_SETTLES_S)
        with suppress(Exception):
            await connection.close()


class _Notifee(INotifee):  # type: ignore[misc]
    """Tells of every connection, not only of a peer's first."""

    def __init__(
        self, began: Callable[[Any], Awaitable[None]], ended: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._began = began
        self._ended = ended

    async def connected(self, network: Any, conn: Any) -> None:
        await self._began(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        await self._ended(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


def _refusal(error: CircuitError) -> str:
    match error.status:
        case Status.RESERVATION_REFUSED | Status.RESOURCE_LIMIT_EXCEEDED:
            return "it has no room for another"
        case Status.PERMISSION_DENIED:
            return "it does not relay for this node"
        case _:
            return error.reason
