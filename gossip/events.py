"""What can happen to a replica, and what it can order done: the door of `core.Replica`."""

from __future__ import annotations

from dataclasses import dataclass

from .keys import Keys
from .ports import PeerId, Record
from .wire import Card, Ended, Scope, Usage

# Every event carries the time, in Unix seconds: the core reads no clock.


@dataclass(frozen=True, slots=True)
class PeerUp:
    peer: PeerId
    now_s: int


@dataclass(frozen=True, slots=True)
class PeerDown:
    peer: PeerId
    now_s: int


@dataclass(frozen=True, slots=True)
class Received:
    """A frame from a peer; `urgent` if it came by broadcast."""

    peer: PeerId
    frame: bytes
    now_s: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """The whole table this origin now stands for, to be signed under one new head.

    urgent: tell it on the urgent plane (a mature leaf changed).
    """

    cards: tuple[Card, ...]
    ended: tuple[Ended, ...]
    usage: tuple[Usage, ...]
    now_s: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class RetractOwn:
    """Retract one of one's own leaves for ever, or all of them (leaf is None)."""

    leaf: bytes | None
    now_s: int
    scope: Scope = Scope.PUBLISH  # the consent that was withdrawn


@dataclass(frozen=True, slots=True)
class Withhold:
    """Sign no head from now on, and renew none, until the next `Publish`. Retractions go out."""

    now_s: int


@dataclass(frozen=True, slots=True)
class SyncDue:
    """Time to reconcile with a random peer. One is handed in at the start, and asks for the next
    by `WakeAfter`; again: False for one that the owner asks for in between."""

    now_s: int
    again: bool = True


@dataclass(frozen=True, slots=True)
class TellDue:
    """Time to tell what is new, and to ask again what was not answered; see `WakeAfter`."""

    now_s: int


@dataclass(frozen=True, slots=True)
class Rekey:
    """Sign with these keys from now on: those of a new epoch, which the root key has signed.

    The document is told at once, and heals a frozen epoch; what is published is signed anew.
    """

    keys: Keys
    now_s: int


@dataclass(frozen=True, slots=True)
class Protect:
    """The origins whose leaves this node uses: never given up for want of room."""

    origins: frozenset[bytes]
    now_s: int


Event = (
    PeerUp
    | PeerDown
    | Received
    | Publish
    | RetractOwn
    | Withhold
    | SyncDue
    | TellDue
    | Rekey
    | Protect
)


@dataclass(frozen=True, slots=True)
class Save:
    """Write these records, all or nothing. The driver performs effects in order, so what follows
    a durable Save leaves the machine only after the save is on disk."""

    puts: tuple[Record, ...]
    deletes: tuple[tuple[str, bytes], ...] = ()
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Send a frame to one peer on the bulk plane."""

    peer: PeerId
    frame: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Put a frame on the urgent plane."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class OriginChanged:
    """The view of one origin is new: read it with `Replica.view(origin)`."""

    origin: bytes


@dataclass(frozen=True, slots=True)
class LeafRetracted:
    """Stop routing to it, unlink its bundle. leaf is None: all of the origin's leaves."""

    origin: bytes
    leaf: bytes | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A peer sent something that cannot be accepted; count it and blame the peer."""

    peer: PeerId
    reason: str  # a fixed phrase
    blame: bool = True  # False where it may be honest: our clock is wrong, or a quota is used up


@dataclass(frozen=True, slots=True)
class PublishBlocked:
    """The last `Publish` cannot be signed, and why; nothing was sent. The owner must act."""

    reason: str  # a fixed phrase


@dataclass(frozen=True, slots=True)
class WakeAfter:
    """Hand a SyncDue back after this long, or a TellDue, with the time as it is then."""

    delay_s: float
    tell: bool = False


Effect = (
    Save | Send | Broadcast | OriginChanged | LeafRetracted | Refused | PublishBlocked | WakeAfter
)
