"""Settings and errors of the transport, apart from it so that they load without libp2p."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from .config import Count, Rate, Seconds

# Of the gossipsub mesh, here and in simulation: peers that a broadcast is pushed to, below how many
# others are taken in, and above how many nobody more is.
MESH_DEGREE: Final = 8
MESH_LOW: Final = 6
MESH_HIGH: Final = 12


SwarmKey = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]


class RelayLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node gives to others when it relays for them."""

    reservations_max: Count = 64  # peers that may be reached through this node
    reservations_per_host_max: Count = 8  # one address makes itself any number of names
    reservation_s: Seconds = 3600.0
    circuits_max: Count = 64
    circuits_per_peer_max: Count = 8
    circuits_per_host_max: Count = 16  # of all names that call from one address
    circuit_s: Seconds = 3600.0  # then it is closed, and made again by whoever wants it
    circuit_bytes_max: Count = 1 << 30  # both ways together
    circuit_bytes_per_s: Count = 4 << 20  # both ways together
    bytes_per_s_max: Count = 8 << 20  # of all circuits: a relay is a gift, and costs CPU too
    circuit_idle_s: Seconds = 60.0  # both ends ping every few seconds; silence is a dead one
    asks_per_min: Rate = 30.0  # reservations and circuits asked for by one peer


class TransportConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the node listens, and what one peer may cost it."""

    listen: str = "/ip4/0.0.0.0/tcp/4021"  # multiaddr; port 0 lets the system choose
    announce: tuple[str, ...] = ()  # more addresses that lead here: a router's port, a name
    introduced: bool = True  # peers are told where this node listens, and may pass it on
    # Look for peers on the local network, and be seen there. Off: on the network of a café it tells
    # everybody that this machine runs a node, and which one, from one place to the next.
    mdns: bool = False
    connections_max: Count = 128  # inbound and outbound; each costs about 0.1 MB
    dial_s: Seconds = 10.0  # TCP, Noise and Yamux handshakes together
    open_s: Seconds = 10.0  # to open a stream and agree on its protocol
    write_s: Seconds = 30.0  # for one frame: 320 KiB at 11 kB/s
    frame_s: Seconds = 60.0  # for one frame to arrive, once begun
    reader_idle_s: Seconds = 900.0  # a peer's silent stream; longer than its writer_idle_s
    writer_idle_s: Seconds = 100.0  # our silent stream is closed, before js-libp2p resets it
    queue_bytes_max: Count = 4 * 1024 * 1024  # for one peer on one channel; above pull_bytes_max
    queued_bytes_max: Count = 64 * 1024 * 1024  # waiting for all peers
    inbox_frames_max: Count = 32  # arrived, not yet taken; then peers are made to wait
    urgent_inbox_max: Count = 512  # broadcasts arrived, not yet taken; then they are dropped
    urgent_bytes_max: Count = 16 * 1024  # of one broadcast
    urgent_per_s: Rate = 20.0  # broadcasts taken from one forwarder
    urgent_burst: Count = 200  # so that a reconnected peer's replay passes
    urgent_queue_max: Count = 64  # own broadcasts waiting for their turn
    health_check_s: Seconds = 10.0  # silent for so long, a peer is pinged...
    health_answer_s: Seconds = 3.0  # ...and is given up if nothing comes from it for so long
    deaf_check_s: Seconds = 30.0  # how often the node knocks at its own door
    handshake_s: Seconds = 5.0  # for an inbound connection to say who it is
    handshakes_max: Count = 32  # inbound and under way; then the oldest is ended
    accept_per_s: Rate = 5.0  # inbound connections of one address; of a local one, twice as many
    accept_burst: Count = 40
    per_address_max: Count = 16  # inbound connections of one address; a local one has no such bound
    streams_max: Count = 128  # of one connection
    unread_bytes_max: Count = 32 * 1024 * 1024  # arrived and not yet read, of all connections
    faults_max: Count = 30  # refusals of one peer, then it is disconnected and banned
    faults_forgiven_per_s: Rate = 0.1
    ban_s: Seconds = 60.0  # doubled with each further ban, up to 64 times
    restart_s_max: Seconds = 30.0  # longest pause before a dead host is started again
    swarm_key: SwarmKey = ""  # 64 hex digits: only nodes with the same one connect
    relay: tuple[str, ...] = ()  # multiaddrs of up to 3 relays through which to be reached
    relay_for_others: bool = False  # carry connections of peers that cannot be dialled
    relaying: RelayLimits = field(default_factory=RelayLimits)


class ListenError(OSError):
    """The address cannot be listened on. The owner's to mend: says what to do."""


class PortInUseError(ListenError):
    """Another process listens on the address."""


class DialReason(StrEnum):
    """Why a dial failed, in words for the owner; what tells more comes first."""

    WRONG_SWARM_KEY = "another swarm key, or none"
    WRONG_PEER = "another peer answers there"
    FULL = "no connection is free here"
    NO_RESERVATION = "not reserved at the relay"
    RELAY_REFUSED = "the relay refused"
    REFUSED = "connection refused"
    NO_ROUTE = "no route"
    HANDSHAKE = "the handshake failed"
    NO_ANSWER = "no answer"
    NO_ADDRESS = "not an address"
    THIS_NODE = "this node"
    BANNED = "banned for what it has sent"
    NOT_RUNNING = "not running"
    OTHER = "failed"


class DialError(Exception):
    """A peer could not be reached at an address."""

    def __init__(self, text: str, reason: DialReason = DialReason.OTHER) -> None:
        super().__init__(text)
        self.reason = reason
