"""Circuit relay v2 as bookkeeping: what a relay grants, and which reservations a client keeps.

Pure, with `now` in seconds of any clock that does not go back. py-libp2p's own relay checks none of
its `HopConfig`: a peer may ask as often and send as fast as it likes, and may reserve in another's
name. Here every number that a peer can raise has a limit in `RelayLimits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random
from typing import Final

from .transport_config import RelayLimits

RELAYS_MAX: Final = 3  # at which a node keeps reservations
_RETRY_S_MIN: Final = 2.0
_RETRY_S_MAX: Final = 300.0
_RENEW_S_MIN: Final = 60.0
_RENEW_S_MAX: Final = 900.0  # whatever the relay grants: clocks differ, and asking costs nothing


class Status(IntEnum):
    """What a relay or a target answers; the numbers are the specification's."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


# ---- relaying for others ------------------------------------------------------------------------


@dataclass(slots=True)
class Bucket:
    """Tokens that come back at a steady rate, up to `burst`; the debt of one is waited for."""

    per_s: float
    burst: float
    at: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, count: float, now: float) -> float:
        """Take tokens, which may leave a debt; return the seconds until it is paid."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_s) - count
        self.at = now
        return max(0.0, -self.tokens / self.per_s)

    def has(self, count: float, now: float) -> bool:
        """Take tokens if they are there."""
        if self.tokens + (now - self.at) * self.per_s < count:
            return False
        self.take(count, now)
        return True


@dataclass(slots=True, eq=False)
class Circuit:
    """One connection that is carried for two others. host: where its source is connected from.
    dropped: it made room for another, and is to be ended."""

    source: str
    host: str
    target: str
    ends: float
    bytes_left: int
    pace: Bucket
    dropped: bool = False


class Ledger:
    """Who may be reached through this node, and what is being carried. Peers by their names."""

    def __init__(self, limits: RelayLimits, now: float) -> None:
        self._limits = limits
        self._reserved: dict[str, tuple[str, float]] = {}  # host, end
        self._circuits: dict[Circuit, None] = {}
        self._asks: dict[str, Bucket] = {}
        self._pace = Bucket(limits.bytes_per_s_max, limits.bytes_per_s_max, now)

    @property
    def circuits(self) -> int:
        return len(self._circuits)

    def reservations(self, now: float) -> int:
        self._expire(now)
        return len(self._reserved)

    def heard(self, peer: str, now: float) -> bool:
        """Note one request; False if the peer asks too often."""
        per_s = self._limits.asks_per_min / 60
        bucket = self._asks.setdefault(peer, Bucket(per_s, self._limits.asks_per_min / 2, now))
        return bucket.has(1, now)

    def reserve(self, peer: str, host: str, now: float) -> Status:
        """Grant a reservation, or renew it. host: where the peer is connected from."""
        self._expire(now)
        if peer not in self._reserved:
            of_host = sum(each == host for each, _ in self._reserved.values())
            if len(self._reserved) >= self._limits.reservations_max:
                return Status.RESERVATION_REFUSED
            if of_host >= self._limits.reservations_per_host_max:
                return Status.RESERVATION_REFUSED
        self._reserved[peer] = (host, now + self._limits.reservation_s)
        return Status.OK

    def open(self, source: str, host: str, target: str, now: float) -> Circuit | Status:
        """Begin to carry; the caller must `close` what it gets, and end what is then `dropped`.

        host: where the source is connected from. A name costs nothing, so the circuits of a target,
        and of the relay, are shared among hosts: where none is free, who has least gets one of who
        has most.
        """
        self._expire(now)
        if target not in self._reserved:
            return Status.NO_RESERVATION
        limits = self._limits
        if self._held_by(source) >= limits.circuits_per_peer_max:
            return Status.RESOURCE_LIMIT_EXCEEDED
        if sum(each.host == host for each in self._circuits) >= limits.circuits_per_host_max:
            return Status.RESOURCE_LIMIT_EXCEEDED
        if self._held_by(target) >= limits.circuits_per_peer_max:
            called = [each for each in self._circuits if each.target == target]
            if not self._make_room(called, host):
                return Status.RESOURCE_LIMIT_EXCEEDED
        full = len(self._circuits) >= limits.circuits_max
        if full and not self._make_room(list(self._circuits), host):
            return Status.RESOURCE_LIMIT_EXCEEDED
        circuit = Circuit(
            source,
            host,
            target,
            now + self._limits.circuit_s,
            self._limits.circuit_bytes_max,
            Bucket(self._limits.circuit_bytes_per_s, self._limits.circuit_bytes_per_s, now),
        )
        self._circuits[circuit] = None
        return circuit

    def spend(self, circuit: Circuit, count: int, now: float) -> float | None:
        """Note bytes carried; return how long to wait before more, None if it is to end."""
        circuit.bytes_left -= count
        if circuit.dropped or circuit.bytes_left < 0 or now >= circuit.ends:
            return None
        return max(circuit.pace.take(count, now), self._pace.take(count, now))

    def close(self, circuit: Circuit) -> None:
        self._circuits.pop(circuit, None)

    def _held_by(self, peer: str) -> int:
        return sum(peer in (each.source, each.target) for each in self._circuits)

    def _make_room(self, among: Sequence[Circuit], host: str) -> bool:
        """Drop one of the host that has most of these, unless that would only change who is worse
        off: the one that it has held for longest."""
        held = Counter(each.host for each in among)
        if not held:
            return False
        most, count = held.most_common(1)[0]
        if count < held[host] + 2:
            return False
        oldest = next(each for each in among if each.host == most)
        oldest.dropped = True
        self.close(oldest)
        return True

    def gone(self, peer: str) -> None:
        """A reservation lasts only as long as the connection that it was made over."""
        self._reserved.pop(peer, None)
        self._asks.pop(peer, None)

    def _expire(self, now: float) -> None:
        for peer in [each for each, (_, end) in self._reserved.items() if end <= now]:
            del self._reserved[peer]


# ---- being reached through relays ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RelayState:
    """How it stands with one relay. why: of what is not reserved, in a few words."""

    relay: str
    reserved: bool
    why: str


@dataclass(slots=True)
class _Place:
    due: float = 0.0
    until: float | None = None  # None: not reserved
    asking: bool = False
    failures: int = 0
    why: str = "not asked yet"


class Keeper:
    """Keeps a reservation at each of a few relays; addresses are multiaddrs that end in one."""

    def __init__(self, relays: Sequence[str], rng: Random) -> None:
        self._places = {relay: _Place() for relay in relays[:RELAYS_MAX]}
        self._rng = rng

    def due(self, now: float) -> list[str]:
        """Return the relays to ask now; each must be followed by `granted` or `failed`."""
        found = [
            relay for relay, place in self._places.items() if not place.asking and place.due <= now
        ]
        for relay in found:
            self._places[relay].asking = True
        return found

    def next_due(self) -> float:
        waiting = [place.due for place in self._places.values() if not place.asking]
        return min(waiting, default=float("inf"))

    def granted(self, relay: str, ttl_s: float, now: float) -> None:
        """ttl_s: what the relay says; its clock may be wrong, so it only hastens the renewal."""
        renew_s = min(_RENEW_S_MAX, max(_RENEW_S_MIN, ttl_s / 2)) * self._rng.uniform(0.8, 1.0)
        place = self._places[relay]
        place.due, place.until = now + renew_s, now + max(ttl_s, 2 * _RENEW_S_MIN)
        place.asking, place.failures, place.why = False, 0, ""

    def failed(self, relay: str, why: str, now: float) -> None:
        """A renewal that failed leaves the reservation in force until it ends."""
        place = self._places[relay]
        pause_s = min(_RETRY_S_MAX, _RETRY_S_MIN * 2.0**place.failures)
        place.due = now + pause_s * self._rng.uniform(0.5, 1.0)
        place.asking, place.failures, place.why = False, min(place.failures + 1, 16), why

    def lost(self, peer: str, now: float) -> None:
        """The connection to a relay has ended, and the reservation with it."""
        for relay, place in self._places.items():
            if peer_name(relay) == peer and place.until is not None:
                place.until, place.why = None, "the connection to it ended"
                if not place.asking:
                    place.due = now + self._rng.uniform(0.1, _RETRY_S_MIN)

    def holds(self, peer: str, now: float) -> bool:
        """True if a reservation is held at this peer, or is being asked for."""
        return any(
            peer_name(relay) == peer and (place.asking or _holds(place, now))
            for relay, place in self._places.items()
        )

    def reserved(self, now: float) -> list[str]:
        return [relay for relay, place in self._places.items() if _holds(place, now)]

    def states(self, now: float) -> list[RelayState]:
        return [
            RelayState(relay, _holds(place, now), "" if _holds(place, now) else place.why)
            for relay, place in self._places.items()
        ]


def _holds(place: _Place, now: float) -> bool:
    return place.until is not None and now < place.until


def peer_name(address: str) -> str:
    """The peer that a multiaddr ends in."""
    return address.rpartition("/p2p/")[2]
