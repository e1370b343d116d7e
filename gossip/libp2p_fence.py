"""py-libp2p 0.8.1 behind a fence: what it takes to keep one peer from ending the process.

As shipped, one malformed frame from any connected peer raises through the whole service tree,
and several small inputs stop the event loop or eat memory. Each guard here answers one input
that was seen to do so; tests/test_libp2p_hostile.py sends them all. Nothing else in the package
may import libp2p, but for the transport.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from . import swarm_key
from .doorkeeper import Doorkeeper, Guest
from .libp2p_muxer import YAMUX_PROTOCOL, Blame, GuardedYamux, Unread
from .libp2p_pubsub import URGENT_TOPIC as URGENT_TOPIC
from .libp2p_pubsub import open_pubsub as open_pubsub
from .ports import PeerId
from .transport_config import TransportConfig

with warnings.catch_warnings():
    # libp2p's own use of deprecated parts of its dependencies, at import; not ours to mend.
    warnings.simplefilter("ignore")
    import libp2p.crypto.serialization as key_formats
    import libp2p.identity.update as identify_update
    from libp2p import new_host
    from libp2p.abc import INotifee
    from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_pair
    from libp2p.crypto.keys import KeyType
    from libp2p.crypto.rsa import RSAPublicKey
    from libp2p.crypto.x25519 import create_new_key_pair as x25519_pair
    from libp2p.identity.identify_push.identify_push import ID_PUSH
    from libp2p.io.trio import TrioTCPStream
    from libp2p.network.config import ConnectionConfig, RetryConfig
    from libp2p.network.connection.swarm_connection import SwarmConn
    from libp2p.network.exceptions import SwarmException
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as NoiseTransport
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

service = background_trio_service
address_of = Multiaddr

log = logging.getLogger(__name__)
# It logs what peers do wrong as errors, with stack traces; what matters of it is logged by us.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)

_RSA_KEY_BYTES_MAX = 600  # a public key of 4096 bits, libp2p's largest, has about 550
_ADDRESS_BYTES_MAX = 256
_CLOSE_S = 2.0
_GOODBYE_S = 1.0


# ---- process-wide guards, put in place at import ------------------------------------------------


def _guard_rsa_keys() -> None:
    """Refuse long RSA keys before they are parsed.

    The parser tests a private key's factors for primality before libp2p looks at its length:
    1.7 s of CPU for each crafted key, and a Noise handshake offers one before authentication.
    """
    parse = RSAPublicKey.from_bytes

    def from_bytes(data: bytes) -> Any:
        if len(data) > _RSA_KEY_BYTES_MAX:
            raise ValueError(f"RSA key of {len(data)} bytes refused")
        return parse(data)

    RSAPublicKey.from_bytes = from_bytes
    # The table of formats holds a reference of its own.
    key_formats.key_type_to_public_key_deserializer[KeyType.RSA.value] = from_bytes


def _guard_identify_addresses() -> None:
    """Parse identify's addresses without the cache that keeps 1000 raw entries of any size."""

    def parse(raw: bytes) -> Any:
        if len(raw) > _ADDRESS_BYTES_MAX:
            return None
        try:
            address = Multiaddr(raw)
            str(address)  # the constructor takes any bytes; the fault would show in the peerstore
            return address
        except Exception:
            return None  # a peer's nonsense; the caller skips it

    identify_update._safe_parse_multiaddr_cached = parse


def _guard_connection_tasks() -> None:
    """Let a fault in a connection's task end the connection, and not the host that runs it."""
    start = SwarmConn.start

    async def start_fenced(self: Any) -> None:
        try:
            await start(self)
        except Exception as error:
            log.info("connection failed peer=%s error=%r", self.muxed_conn.peer_id, error)
            with suppress(Exception):
                await self.close()

    SwarmConn.start = start_fenced


def _guard_addresses() -> None:
    """Know the other end's address of IPv6 too: libp2p takes a name of four parts for none, and
    whoever has no address pays for nothing."""

    def get_remote_address(self: Any) -> tuple[str, int] | None:
        if self._cached_remote_address is None:
            with suppress(OSError, AttributeError):  # closed already
                host, port = self.stream.socket.getpeername()[:2]
                self._cached_remote_address = (str(host).partition("%")[0], int(port))
        address: tuple[str, int] | None = self._cached_remote_address
        return address

    TrioTCPStream.get_remote_address = get_remote_address


_guard_rsa_keys()
_guard_identify_addresses()
_guard_connection_tasks()
_guard_addresses()


# ---- guards of one host ------------------------------------------------------------------------


def _guard_streams(network: Any) -> None:
    """Let no exception of an inbound stream reach the swarm, which would end with it."""
    inner = network.common_stream_handler

    async def handle(stream: Any) -> None:
        try:
            await inner(stream)
        except Exception as error:
            log.info("stream failed peer=%s error=%r", stream.muxed_conn.peer_id, error)
            with suppress(Exception):
                await stream.reset()

    network.set_stream_handler(handle)


def _guard_door(network: Any, door: Doorkeeper) -> None:
    """Ask the doorkeeper about each inbound connection, and give its slot back at its end.

    libp2p holds the slot until the host ends, so a host goes deaf after as many inbound connections
    in its life as it has slots. The caller closes the socket and frees the slot on an error.
    """
    handle, upgrade = network._handle_inbound_connection, network.upgrade_inbound_raw_conn
    sockets: dict[Guest, Any] = {}

    async def admit(socket: Any, address: Any) -> None:
        ip, port = socket.get_remote_address() or ("?", 0)  # gone already
        if port in door.knocking:
            await _close_socket(socket)  # our own knock: that it is answered is all it asks
            return
        guest = door.arrive(ip, trio.current_time())
        if guest is None:
            await _close_socket(socket)
            return
        sockets[guest] = socket
        try:
            if crowd_out := door.to_make_room():
                await _close_socket(sockets[crowd_out])
            await handle(socket, address)
        except Exception as error:
            log.info("connection failed ip=%s error=%r", guest.ip, error)
            await _close_socket(socket)
        finally:
            del sockets[guest]
            door.leave(guest)

    async def upgrade_and_stay(raw_conn: Any, address: Any) -> Any:
        # None: it has come through a relay, which answers for it.
        end = getattr(raw_conn, "stream", None)
        guest = next((g for g, socket in sockets.items() if socket is end), None)
        try:
            muxed = await upgrade(raw_conn, address)
        except Exception:
            if guest is not None:
                door.botched(guest.ip, "handshake failed", trio.current_time())
            raise
        peer = PeerId(str(muxed.peer_id))
        if guest is not None:
            door.shake(guest, peer)
        if door.banned(peer, trio.current_time()):
            door.turned_away(peer)
            await muxed.abort()
        await muxed.event_closed.wait()
        raise SwarmException("connection ended")

    network._handle_inbound_connection = admit
    network.upgrade_inbound_raw_conn = upgrade_and_stay


async def _close_socket(socket: Any) -> None:
    with trio.move_on_after(_CLOSE_S), suppress(Exception):
        await socket.close()


def _guard_muxer(network: Any, config: TransportConfig, blame: Blame) -> None:
    """Speak Yamux alone, and within limits; libp2p makes its own muxer whatever it is given."""
    unread = Unread(config.unread_bytes_max)
    muxers = network.upgrader.muxer_multistream
    for protocol in [each for each in muxers.transports if each != YAMUX_PROTOCOL]:
        del muxers.transports[protocol]
        muxers.multiselect.handlers.pop(protocol, None)

    async def new_conn(conn: Any, peer_id: Any) -> Any:
        await muxers.select_transport(conn)
        muxer = GuardedYamux(conn, peer_id, config, unread, blame)
        return muxers._annotate_connection(muxer, conn, YAMUX_PROTOCOL)

    muxers.new_conn = new_conn


def _stop_identifying(host: Any) -> None:
    """Ask no peer who it is, and listen to none that says so unasked; answer those who ask.

    All that we need of a peer is its key, which the handshake proves. What it says of itself
    libp2p would keep for hours, of every peer ever.
    """
    host._schedule_identify = lambda peer_id, *, reason: None
    host.multiselect.handlers.pop(ID_PUSH, None)


def _stop_auto_connector(network: Any) -> None:
    """Leave dialling to our own dialer: this one dials whatever a peer has told, up to half of
    the connection limit, whenever a connection ends, and whatever its settings are."""

    async def never() -> None: ...

    network.auto_connector.maybe_connect = never
    # It remembers every peer that it must not dial again so soon.
    network.auto_connector.record_disconnect = lambda peer_id: None


# ---- construction ------------------------------------------------------------------------------


def peer_id_of(key: bytes) -> str:
    """Return the transport's name of the Ed25519 private key (32 bytes)."""
    return str(ID.from_pubkey(ed25519_pair(key).public_key))


def open_host(
    key: bytes,
    listen: str,
    config: TransportConfig,
    door: Doorkeeper | None = None,
    blame: Blame = lambda peer_id, reason: None,
) -> Any:
    """Return a host that speaks TCP, Noise and Yamux alone, with every guard in place."""
    door = door or Doorkeeper(config, Counter())
    pair = ed25519_pair(key)
    host = new_host(
        key_pair=pair,
        listen_addrs=[Multiaddr(listen)],
        # The default would accept plaintext from anyone who offers nothing better.
        sec_opt={NOISE: NoiseTransport(pair, noise_privkey=x25519_pair().private_key)},
        connection_config=_connection_config(config),
        disable_identify_address_discovery=True,
    )
    network = host.get_network()
    network.retry_config = RetryConfig(max_retries=0)  # the dialer decides when to try again
    _guard_streams(network)
    if config.swarm_key:
        swarm_key.protect(network, bytes.fromhex(config.swarm_key))
    _guard_door(network, door)
    _guard_muxer(network, config, blame)
    _stop_identifying(host)
    _stop_auto_connector(network)
    return host


async def disconnect(host: Any, peer_id: Any) -> None:
    """Close the peer's connections. libp2p's own way would also forget, unclosed, one that the
    peer opens in the meantime; and a peer that does not read is never done with its goodbye."""
    for connection in host.get_network().get_connections(peer_id):
        with trio.move_on_after(_GOODBYE_S) as scope, suppress(Exception):
            await connection.close()
        if scope.cancelled_caught:
            await connection.muxed_conn.abort()


async def answers(host: Any, peer_id: Any, within_s: float) -> bool:
    """Ping every connection of the peer; whether all of them answer in time."""
    muxers = [connection.muxed_conn for connection in host.get_network().get_connections(peer_id)]
    heard: list[bool] = []

    async def ask(muxer: Any) -> None:
        heard.append(await muxer.answers(within_s))

    async with trio.open_nursery() as nursery:
        for muxer in muxers:
            nursery.start_soon(ask, muxer)
    return bool(heard) and all(heard)


def forget(host: Any, peer_id: Any) -> None:
    """Forget what libp2p keeps of a peer that is gone: a name costs nothing to make."""
    with suppress(Exception):  # it raises for a peer of which it knows nothing
        host.get_peerstore().clear_peerdata(peer_id)


async def close(host: Any) -> None:
    """Close a host in order. Its own way closes one connection after the other, 0.2 s each, and
    waits for one that does not read."""
    async with trio.open_nursery() as nursery:
        for peer_id in list(host.get_network().connections):
            nursery.start_soon(disconnect, host, peer_id)
    await host.close()


async def close_rest(host: Any) -> None:
    """Close what a host has left open that did not end in order."""
    network = host.get_network()
    for connection in list(network.get_connections()):
        await connection.muxed_conn.abort()
    for listener in list(network.listeners.values()):
        with suppress(Exception):
            await listener.close()
    network.listeners.clear()


def _connection_config(config: TransportConfig) -> Any:
    return ConnectionConfig(
        max_connections=config.connections_max,
        high_watermark=config.connections_max,
        min_connections=0,
        low_watermark=0,
        auto_connect_interval=86_400.0,
        dial_timeout=config.dial_s,
        inbound_upgrade_timeout=config.handshake_s,
        outbound_upgrade_timeout=config.dial_s,
        enable_health_monitoring=False,  # a stream for each ping; `GuardedYamux` does without
    )


class _Notifee(INotifee):  # type: ignore[misc]
    """Tells of a peer's first connection and of its last one's end."""

    def __init__(
        self,
        joined: Callable[[Any, str, bool], Awaitable[None]],
        left: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._joined = joined
        self._left = left

    async def connected(self, network: Any, conn: Any) -> None:
        addresses = conn.get_transport_addresses()
        address = str(addresses[0]) if addresses else ""
        await self._joined(conn.muxed_conn.peer_id, address, conn.direction.name == "INBOUND")

    async def disconnected(self, network: Any, conn: Any) -> None:
        peer_id = conn.muxed_conn.peer_id
        if not network.get_connections(peer_id):
            await self._left(peer_id)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


notifee = _Notifee


def id_of(peer: PeerId) -> Any:
    """Return libp2p's form of a peer's name."""
    return ID.from_string(peer)


def peer_of(address: str) -> Any:
    """Return the peer that a multiaddr ends in. Raises ValueError if it names none."""
    try:
        return info_from_p2p_addr(Multiaddr(address)).peer_id
    except Exception as error:  # multiaddr has a dozen kinds
        raise ValueError(f"{address!r}: {error}") from error
