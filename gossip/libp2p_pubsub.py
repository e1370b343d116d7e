"""Gossipsub with a gate before it: of what a peer sends, only what our one topic needs goes in.

py-libp2p 0.8.1 keeps what a peer names (topics, back-offs, identifiers) without bound, starts a
task for each message of a frame, verifies a signed address record with each, and ends the host on
bytes that are no protobuf. Here a frame is read within limits, cut down to what we have a use
for, and dealt with before the next one is read, so that a peer that sends too much waits.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio

from .libp2p_muxer import Blame
from .transport_config import MESH_DEGREE, MESH_HIGH, MESH_LOW, TransportConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import libp2p.pubsub.gossipsub as gossipsub_module
    from libp2p.network.stream.exceptions import StreamEOF
    from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
    from libp2p.pubsub.mcache import CacheEntry, MessageCache
    from libp2p.pubsub.pb import rpc_pb2
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.pubsub.validators import signature_validator

log = logging.getLogger(__name__)

URGENT_TOPIC: Final = "groove/urgent/1"
_BUFFERED_READ_BYTES: Final = 64 * 1024
_QUEUE_HIGH: Final = 16  # of 32; what does not fit in a peer's queue is dropped in silence
_PUBLISH_WAIT_S: Final = 1.0
_RPC_BYTES_MAX: Final = 256 * 1024
_RPCS_PER_S: Final = 100.0  # of one peer; then it is read no faster
_RPCS_BURST: Final = 500.0
_RPC_COST_BYTES: Final = 4096  # of a frame, as much as another frame
_STREAMS_MAX: Final = 3  # of one peer: one, and those of a connection that is being replaced
_IDS_MAX: Final = 256  # messages that a frame may offer, or ask for
_WANTED_PER_S: Final = 20.0  # messages sent again to one peer that asks for them
_WANTED_BURST: Final = 256.0
_ID_BYTES_MAX: Final = 64
_SENDER_BYTES_MAX: Final = 64
_KEY_BYTES_MAX: Final = 600
_SIGNATURE_BYTES_MAX: Final = 512
_BACK_OFF_S_MAX: Final = 3600
_BACK_OFFS_MAX: Final = 1024

# With each message a signed record of the sender's addresses would go, and be verified: we dial
# by our own address book.
gossipsub_module.env_to_send_in_RPC = lambda host: (b"", False)


class RpcError(Exception):
    """A frame that is refused. `reason` is a fixed phrase, to be counted by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Allowance:
    """Token buckets by peer, for at most `peers_max` peers."""

    def __init__(self, per_s: float, burst: float, peers_max: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._peers_max = peers_max
        self._buckets: dict[Any, tuple[float, float]] = {}

    def take(self, peer: Any, now: float, cost: float = 1.0) -> bool:
        """Take tokens, or none at all if there are too few."""
        tokens = self._tokens(peer, now)
        enough = tokens >= cost
        self._buckets[peer] = (tokens - cost if enough else tokens, now)
        return enough

    def owe(self, peer: Any, now: float, cost: float) -> float:
        """Take tokens, and return after how many seconds none is owed."""
        tokens = self._tokens(peer, now) - cost
        self._buckets[peer] = (tokens, now)
        return max(0.0, -tokens / self._per_s)

    def _tokens(self, peer: Any, now: float) -> float:
        tokens, at = self._buckets.get(peer, (self._burst, now))
        if peer not in self._buckets and len(self._buckets) > self._peers_max:
            self._buckets.clear()  # of peers long gone, mostly; costs each a new burst
        return min(self._burst, tokens + (now - at) * self._per_s)


class Buffered:
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


def message_id(message: Any) -> bytes:
    """Return what a broadcast is known by: the same for equal data, whoever signed it."""
    return hashlib.sha256(message.data).digest()[:20]


class _Cache(MessageCache):  # type: ignore[misc]
    """Messages under the names that they are known by; libp2p's has others, which nobody's list
    of messages seen has, so that each offer of a message would fetch it once more."""

    def put(self, msg: Any) -> None:
        name = message_id(msg)
        if name not in self.msgs:
            self.msgs[name] = msg
            self.history[0].append(CacheEntry(name, msg.topicIDs))


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

    def send_rpc(self, peer_id: Any, rpc: Any, priority: bool = False) -> None:
        rpc.ClearField("senderRecord")  # an empty one is set, and would be refused
        super().send_rpc(peer_id, rpc, priority)

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
        self,
        host: Any,
        router: Any,
        config: TransportConfig,
        take: Callable[[Any, bytes], None],
        blame: Blame,
        counts: Counter[str],
    ) -> None:
        super().__init__(
            host,
            router,
            msg_id_constructor=message_id,
            allowed_topics={URGENT_TOPIC},
            max_inbound_rpc_size=_RPC_BYTES_MAX,
        )
        router.mcache = _Cache(router.mcache.window_size, router.mcache.history_size)
        self._take = take
        self._blame = blame
        self._counts = counts
        self._config = config
        peers_max = 4 * config.connections_max
        self._messages = Allowance(config.urgent_per_s, float(config.urgent_burst), peers_max)
        self._rpcs = Allowance(_RPCS_PER_S, _RPCS_BURST, peers_max)
        self._wanted = Allowance(_WANTED_PER_S, _WANTED_BURST, peers_max)
        self._reading: Counter[Any] = Counter()  # streams, by peer
        self._full_since: dict[Any, float] = {}  # the peers whose queue is full now

    # ---- what comes in -------------------------------------------------------------------------

    async def stream_handler(self, stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        if self._reading[peer] >= _STREAMS_MAX:
            self._blame(peer, "too many streams of broadcasts")
            await stream.reset()
            return
        self._reading[peer] += 1
        try:
            await super().stream_handler(Buffered(stream))
        finally:
            self._reading[peer] -= 1
            if not self._reading[peer]:
                del self._reading[peer]

    async def continuously_read_stream(self, stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        try:
            while self.manager.is_running:
                data = await self._next_frame(stream)
                await trio.sleep(
                    self._rpcs.owe(peer, trio.current_time(), 1 + len(data) / _RPC_COST_BYTES)
                )
                await self._take_frame(peer, data)
        except StreamEOF:
            return
        except RpcError as error:
            self._blame(peer, error.reason)
            with suppress(Exception):
                await stream.reset()
            self._handle_dead_peer(peer)

    async def _next_frame(self, stream: Any) -> bytes:
        """Return the next frame's body: after its length as a varint, seven bits a byte."""
        byte = await _exactly(stream, 1)
        with trio.move_on_after(self._config.frame_s):
            size, shift = byte[0] & 0x7F, 7
            while byte[0] & 0x80:
                if shift > 28:
                    raise RpcError("broadcast frame too large")
                byte = await _exactly(stream, 1)
                size |= (byte[0] & 0x7F) << shift
                shift += 7
            if size > _RPC_BYTES_MAX:
                raise RpcError("broadcast frame too large")
            return await _exactly(stream, size)
        raise RpcError("broadcast frame too slow")

    async def _take_frame(self, peer: Any, data: bytes) -> None:
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(data)
        except Exception:  # of protobuf's several kinds
            raise RpcError("broadcast frame is no protobuf") from None
        for message in rpc.publish:
            await self.push_msg(peer, message)
        ours = [sub for sub in rpc.subscriptions if sub.topicid == URGENT_TOPIC]
        if ours:
            self.handle_subscription(peer, ours[-1])  # the others it has taken back itself
        if rpc.HasField("control"):
            control = self._cut_down(peer, rpc.control)
            if control.ByteSize():
                await self.router.handle_rpc(rpc_pb2.RPC(control=control), peer)

    def _cut_down(self, peer: Any, control: Any) -> Any:
        """Return what is of our topic and within bounds."""
        now = trio.current_time()
        kept = rpc_pb2.ControlMessage()
        offered = [m for each in control.ihave if _is_ours(each) for m in each.messageIDs]
        offered = [name for name in dict.fromkeys(offered) if len(name) <= _ID_BYTES_MAX]
        if offered:
            kept.ihave.add(topicID=URGENT_TOPIC, messageIDs=offered[:_IDS_MAX])
        asked = dict.fromkeys(m for each in control.iwant for m in each.messageIDs)
        wanted = [name for name in list(asked)[:_IDS_MAX] if self._wanted.take(peer, now)]
        if wanted:
            kept.iwant.add(messageIDs=wanted)
        if len(wanted) < len(asked):
            self._counts["asked for too many broadcasts"] += 1
        kept.graft.extend([each for each in control.graft if _is_ours(each)][:1])
        kept.prune.extend([each for each in control.prune if _is_ours(each)][:1])
        return kept

    async def push_msg(self, forwarder: Any, message: Any) -> None:
        if forwarder != self.my_id and not self._is_new_and_sound(forwarder, message):
            return
        self._mark_msg_seen(message)
        if forwarder != self.my_id:
            self._take(forwarder, bytes(message.data))
        try:
            await self.router.publish(forwarder, message)
        except Exception as error:  # of any kind: the fence
            log.info("broadcast dropped forwarder=%s error=%r", forwarder, error)

    def _is_new_and_sound(self, forwarder: Any, message: Any) -> bool:
        """Check a peer's message, cheapest first; blame its forwarder if it can never be sound."""
        if list(message.topicIDs) != [URGENT_TOPIC]:
            self._blame(forwarder, "broadcast of another topic")
        elif not 0 < len(message.data) <= self._config.urgent_bytes_max:
            self._blame(forwarder, "broadcast empty or too large")
        elif self._is_msg_seen(message) or message.from_id == self.my_id.to_bytes():
            pass
        elif not self._within_budget(forwarder):
            self._counts["too many broadcasts of one peer"] += 1
        elif not _is_signed(message):
            self._blame(forwarder, "broadcast badly signed")
        else:
            return True
        return False

    def _within_budget(self, forwarder: Any) -> bool:
        return self._messages.take(forwarder, trio.current_time())

    # ---- what goes out -------------------------------------------------------------------------

    async def publish_paced(self, data: bytes) -> None:
        """Publish once the peers' queues have room. Nobody waits for a peer that does not read:
        one whose queue has been full for a moment is passed over until it has room again."""
        while self._worth_waiting_for(trio.current_time()):
            await trio.sleep(0.005)
        await self.publish(URGENT_TOPIC, data)

    def _worth_waiting_for(self, now: float) -> bool:
        full = [peer for peer, queue in self.peer_queues.items() if len(queue) > _QUEUE_HIGH]
        self._full_since = {peer: self._full_since.get(peer, now) for peer in full}
        return any(now - since < _PUBLISH_WAIT_S for since in self._full_since.values())


def _is_ours(part: Any) -> bool:
    return bool(part.topicID == URGENT_TOPIC)


def _is_signed(message: Any) -> bool:
    bounded = (
        len(message.from_id) <= _SENDER_BYTES_MAX
        and len(message.key) <= _KEY_BYTES_MAX
        and len(message.signature) <= _SIGNATURE_BYTES_MAX
        and len(message.seqno) <= _ID_BYTES_MAX
    )
    try:
        return bounded and bool(signature_validator(message))
    except Exception:  # a peer's key of any kind of nonsense
        return False


async def _exactly(stream: Any, size: int) -> bytes:
    """Read that many bytes. libp2p's own gives up after a hundred small packets."""
    data = bytearray()
    while len(data) < size:
        part = await stream.read(size - len(data))
        if not part:
            raise StreamEOF
        data += part
    return bytes(data)


def open_pubsub(
    host: Any,
    config: TransportConfig,
    take: Callable[[Any, bytes], None],
    blame: Blame,
    counts: Counter[str],
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
    return _SafePubsub(host, router, config, take, blame, counts), router
