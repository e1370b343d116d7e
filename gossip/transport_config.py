"""Settings and errors of the transport, apart from it so that they load without libp2p."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from .config import Count, Rate, Seconds

# Of the gossipsub mesh, here and in simulation: peers that a broadcast is pushed to, below how many
# others are taken in, and above how many nobody more is.
MESH_DEGREE: Final = 8
MESH_LOW: Final = 6
MESH_HIGH: Final = 12


class TransportConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the node listens, and what one peer may cost it."""

    listen: str = "/ip4/0.0.0.0/tcp/4021"  # multiaddr; port 0 lets the system choose
    connections_max: Count = 128  # inbound and outbound; each costs about 0.1 MB
    dial_s: Seconds = 10.0  # TCP, Noise and Yamux handshakes together
    open_s: Seconds = 10.0  # to open a stream and agree on its protocol
    write_s: Seconds = 30.0  # for one frame: 320 KiB at 11 kB/s
    frame_s: Seconds = 60.0  # for one frame to arrive, once begun
    reader_idle_s: Seconds = 900.0  # a peer's silent stream; longer than its writer_idle_s
    writer_idle_s: Seconds = 300.0  # our silent stream is closed and reopened on demand
    queue_bytes_max: Count = 4 * 1024 * 1024  # for one peer on one channel; above pull_bytes_max
    queued_bytes_max: Count = 64 * 1024 * 1024  # waiting for all peers
    inbox_frames_max: Count = 32  # arrived, not yet taken; then peers are made to wait
    urgent_inbox_max: Count = 512  # broadcasts arrived, not yet taken; then they are dropped
    urgent_bytes_max: Count = 16 * 1024  # of one broadcast
    urgent_per_s: Rate = 20.0  # broadcasts taken from one forwarder
    urgent_burst: Count = 200  # so that a reconnected peer's replay passes
    urgent_queue_max: Count = 64  # own broadcasts waiting for their turn
    health_check_s: Seconds = 5.0  # a frozen peer is gone after about twice this
    restart_s_max: Seconds = 30.0  # longest pause before a dead host is started again


class ListenError(OSError):
    """The address cannot be listened on. The owner's to mend: says what to do."""


class PortInUseError(ListenError):
    """Another process listens on the address."""


class DialError(Exception):
    """A peer could not be reached at an address."""
