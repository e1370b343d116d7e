"""py-libp2p 0.8.1 behind a fence: what it takes to keep one peer from ending the process.

As shipped, one malformed frame from any connected peer raises through the whole service tree,
and several small inputs stop the event loop or eat memory. Each guard here answers one input
that was seen to do so; tests/test_libp2p_hostile.py sends them all. Nothing else in the package
may import libp2p, but for the transport.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from .transport_config import MESH_DEGREE, MESH_HIGH, MESH_LOW, TransportConfig

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
    from libp2p.network.config import ConnectionConfig, RetryConfig
    from libp2p.network.exceptions import SwarmException
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as NoiseTransport
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

service = background_trio_service
address_of = Multiaddr

log = logging.getLogger(__name__)
# It logs what peers do wrong as errors, with stack traces; what matters of it is logged by us.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)

URGENT_TOPIC = "groove/urgent/1"
_RSA_KEY_BYTES_MAX = 600  # a public key of 4096 bits, libp2p's largest, has about 550
_ADDRESS_BYTES_MAX = 256
_BUFFERED_READ_BYTES = 64 * 1024
_PUBLISH_QUEUE_HIGH = 16  # of 32; what does not fit in a peer's queue is dropped in silence
_PUBLISH_WAIT_S = 2.0
_RPC_BYTES_MAX = 256 * 1024
_BACK_OFF_S_MAX = 3600
_BACK_OFFS_MAX = 1024


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


_guard_rsa_keys()
_guard_identify_addresses()


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


def _guard_inbound_slots(network: Any) -> None:
    """Give an inbound connection's slot back when the connection ends.

    libp2p holds it until the host ends, so a host goes deaf after as many inbound connections
    in its life as it has slots. The caller closes the socket and frees the slot on an error.
    """
    upgrade = network.upgrade_inbound_raw_conn

    async def upgrade_and_stay(raw_conn: Any, address: Any) -> Any:
        muxed = await upgrade(raw_conn, address)
        await muxed.event_closed.wait()
        raise SwarmException("connection ended")

    network.upgrade_inbound_raw_conn = upgrade_and_stay


def _stop_auto_connector(network: Any) -> None:
    """Leave dialling to our own dialer: this one dials whatever a peer has told, up to half of
    the connection limit, whenever a connection ends, and whatever its settings are."""

    async def never() -> None: ...

    network.auto_connector.maybe_connect = never


class _Buffered:
    """One large read of the muxer feeds many small ones; see `framing._READ_BYTES`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._buffer = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int | None = None) -> bytes:
        if not self._buffer:
            data = await self._stream.read(_BUFFERED_READ_BYTES)
            if not data:
                return b""
            self._buffer += data
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken


class _SafeGossipSub(GossipSub):  # type: ignore[misc]
    """GossipSub that keeps, and does, only what our one topic needs."""

    async def handle_prune(self, prune: Any, sender: Any) -> None:
        # Each is remembered for as long as the peer says, in a table that is never swept.
        if prune.topicID not in self.mesh:
            return
        if len(self.back_off.get(prune.topicID, ())) >= _BACK_OFFS_MAX:
            self.back_off[prune.topicID].clear()
        prune.backoff = min(prune.backoff, _BACK_OFF_S_MAX)
        del prune.peers[:]  # peers to connect to, and be it at addresses of the sender's choice
        await super().handle_prune(prune, sender)

    async def publish(self, forwarder: Any, message: Any) -> None:
        await super().publish(forwarder, message)
        # Of every message ever, for features that are off here.
        self.equivocation_detection.clear()
        self.recent_message_deliveries.clear()
        self.recent_peer_connections.clear()
        self.recent_peer_disconnections.clear()


class _SafePubsub(Pubsub):  # type: ignore[misc]
    """Pubsub that survives what its peers send, and hands it over with the forwarder's name."""

    def __init__(
        self, host: Any, router: Any, config: TransportConfig, take: Callable[[Any, bytes], None]
    ) -> None:
        super().__init__(
            host,
            router,
            msg_id_constructor=lambda message: hashlib.sha256(message.data).digest()[:20],
            allowed_topics={URGENT_TOPIC},
            max_inbound_rpc_size=_RPC_BYTES_MAX,
        )
        self._take = take
        self._config = config
        self._budgets: dict[Any, tuple[float, float]] = {}
        self.set_topic_validator(URGENT_TOPIC, self._validate, False)

    async def stream_handler(self, stream: Any) -> None:
        await super().stream_handler(_Buffered(stream))

    async def push_msg(self, forwarder: Any, message: Any) -> None:
        if forwarder != self.my_id and not self._within_budget(forwarder):
            return
        try:
            await super().push_msg(forwarder, message)
        except Exception as error:
            log.info("broadcast dropped forwarder=%s error=%r", forwarder, error)

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Do nothing: `_validate` has handed the message over, and knows who forwarded it."""

    def _validate(self, forwarder: Any, message: Any) -> bool:
        # Called once for each message id. False would be remembered for 300 s, so it is said
        # only of what can never be valid.
        if not 0 < len(message.data) <= self._config.urgent_bytes_max:
            return False
        if forwarder != self.my_id:
            self._take(forwarder, bytes(message.data))
        return True

    def _within_budget(self, forwarder: Any) -> bool:
        now = trio.current_time()
        tokens, at = self._budgets.get(forwarder, (float(self._config.urgent_burst), now))
        tokens = min(self._config.urgent_burst, tokens + (now - at) * self._config.urgent_per_s)
        if forwarder not in self._budgets and len(self._budgets) > 4 * self._config.connections_max:
            self._budgets.clear()  # of peers long gone, mostly; costs each a new burst
        self._budgets[forwarder] = (tokens - 1.0 if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0

    async def publish_paced(self, data: bytes) -> None:
        """Publish once every peer's queue has room, or after a short wait in any case."""
        with trio.move_on_after(_PUBLISH_WAIT_S):
            while any(len(queue) > _PUBLISH_QUEUE_HIGH for queue in self.peer_queues.values()):
                await trio.sleep(0.005)
        await self.publish(URGENT_TOPIC, data)


# ---- construction ------------------------------------------------------------------------------


def peer_id_of(key: bytes) -> str:
    """Return the transport's name of the Ed25519 private key (32 bytes)."""
    return str(ID.from_pubkey(ed25519_pair(key).public_key))


def open_host(key: bytes, listen: str, config: TransportConfig) -> Any:
    """Return a host that speaks TCP, Noise and Yamux alone, with every guard in place."""
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
    _guard_inbound_slots(network)
    _stop_auto_connector(network)
    return host


async def disconnect(host: Any, peer_id: Any) -> None:
    """Close the peer's connections. libp2p's own way would also forget, unclosed, one that the
    peer opens in the meantime."""
    for connection in host.get_network().get_connections(peer_id):
        with suppress(Exception):
            await connection.close()


async def close_rest(host: Any) -> None:
    """Close what a host has left open that did not end in order."""
    network = host.get_network()
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
        inbound_upgrade_timeout=config.dial_s,
        outbound_upgrade_timeout=config.dial_s,
        enable_health_monitoring=True,  # a frozen peer would stay for ever
        health_initial_delay=1.0,
        health_warmup_window=0.0,
        health_check_interval=config.health_check_s,
        ping_timeout=min(3.0, config.health_check_s),
        abort_connection_on_ping_failure=True,
        # Only a missing pong ends a connection; a slow one is never "replaced" behind our back.
        min_health_threshold=0.0,
        max_ping_latency=math.inf,
        min_ping_success_rate=0.0,
        max_failed_streams=1_000_000_000,
    )


def open_pubsub(
    host: Any, config: TransportConfig, take: Callable[[Any, bytes], None]
) -> tuple[Any, Any]:
    """Return (pubsub, router); `take(forwarder, data)` gets each new broadcast and must not raise.

    Starts a thread: call `pubsub.seen_messages.stop()` at the end.
    """
    router = _SafeGossipSub(
        # Version 1.2 sends a control message for each message to each peer, whatever its size.
        [PROTOCOL_ID_V11],
        degree=MESH_DEGREE,
        degree_low=MESH_LOW,
        degree_high=MESH_HIGH,
        heartbeat_interval=1,  # the default of 120 s outlives the message cache
        spam_protection_enabled=False,  # counts the own messages too, and drops in silence
        adaptive_gossip_enabled=False,  # would stretch the heartbeat to 30 s
        eclipse_protection_enabled=False,
    )
    return _SafePubsub(host, router, config, take), router


class _Notifee(INotifee):  # type: ignore[misc]
    """Tells of a peer's first connection and of its last one's end."""

    def __init__(
        self, joined: Callable[[Any, str], Awaitable[None]], left: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._joined = joined
        self._left = left

    async def connected(self, network: Any, conn: Any) -> None:
        addresses = conn.get_transport_addresses()
        await self._joined(conn.muxed_conn.peer_id, str(addresses[0]) if addresses else "")

    async def disconnected(self, network: Any, conn: Any) -> None:
        peer_id = conn.muxed_conn.peer_id
        if not network.get_connections(peer_id):
            await self._left(peer_id)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


notifee = _Notifee


def peer_of(address: str) -> Any:
    """Return the peer that a multiaddr ends in. Raises ValueError if it names none."""
    try:
        return info_from_p2p_addr(Multiaddr(address)).peer_id
    except Exception as error:  # multiaddr has a dozen kinds
        raise ValueError(f"{address!r}: {error}") from error
