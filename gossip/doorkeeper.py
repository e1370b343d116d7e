"""Who may connect, how often, and what a peer's faults cost it: bookkeeping without a socket.

A peer's name costs nothing to make, an address costs something. So an address pays for every
connection with a token, and for every fault of a peer behind it with several; a public address
may fall into debt, and is then shut out until it has paid. Addresses of the local network pay at
other rates and never fall into debt: honest neighbours share them. Of public IPv6 a /64 is one
address: whoever has one of it has all. All tables are bounded.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

from .multiaddrs import Reach, reach_of
from .ports import PeerId
from .transport_config import TransportConfig

log = logging.getLogger(__name__)

ADDRESSES_MAX: Final = 4096  # remembered
PEERS_MAX: Final = 4096
FAULT_TOKENS: Final = 5.0  # what a fault costs the address that it came from
LOCAL_SHARE: Final = 2.0  # how much more often the local network may connect
LOCAL_RESERVE: Final = 2.0  # tokens that faults never take from a local address
BAN_DOUBLINGS_MAX: Final = 6
_IPV6_BITS: Final = 64


@dataclass(slots=True)
class _Address:
    """Who pays for one. tokens as of `at`; connections that are open or being made."""

    tokens: float
    at: float
    local: bool
    connections: int = 0


@dataclass(slots=True)
class _Standing:
    """What one peer has done. faults are forgiven with time."""

    faults: float = 0.0
    at: float = 0.0
    bans: int = 0
    banned_until: float = float("-inf")
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class Guest:
    """One inbound connection, from its arrival to its end. ip: who pays, see `account_of`."""

    ip: str
    arrived_at: float
    shaken: bool = False  # its handshake is done


class Doorkeeper:
    """Counts every refusal by a fixed phrase. `now` is seconds of a clock that does not go back."""

    def __init__(self, config: TransportConfig, counts: Counter[str]) -> None:
        self._config = config
        self._counts = counts
        self._addresses: dict[str, _Address] = {}
        self._peers: dict[PeerId, _Standing] = {}
        self._guests: dict[Guest, None] = {}
        self._ip_of: dict[PeerId, str] = {}
        self.knocking: set[int] = set()  # ports of connections that this node makes to itself

    # ---- connections ---------------------------------------------------------------------------

    def arrive(self, ip: str, now: float) -> Guest | None:
        """Take in a connection, which must `leave` later; None if it is refused."""
        ip = account_of(ip)
        address = self._address(ip, now)
        reason = self._reason_to_refuse(address)
        if reason is not None:
            self._count(reason, f"ip={ip}")
            return None
        address.tokens -= 1.0
        address.connections += 1
        guest = Guest(ip, now)
        self._guests[guest] = None
        return guest

    def to_make_room(self) -> Guest | None:
        """Return the connection to end when too many handshakes are under way: the oldest of the
        address that has most of them. A polite one takes a moment, so it is hardly ever hit."""
        waiting = [guest for guest in self._guests if not guest.shaken]
        if len(waiting) <= self._config.handshakes_max:
            return None
        most = Counter(guest.ip for guest in waiting).most_common(1)[0][0]
        self._count("handshakes under way", f"ip={most}")
        return next(guest for guest in waiting if guest.ip == most)

    def shake(self, guest: Guest, peer: PeerId) -> None:
        """The handshake has shown who it is."""
        guest.shaken = True
        self.came_from(peer, guest.ip)

    def came_from(self, peer: PeerId, ip: str) -> None:
        """Remember which address pays for a peer's faults."""
        self._ip_of[peer] = account_of(ip)
        if len(self._ip_of) > PEERS_MAX:
            del self._ip_of[next(iter(self._ip_of))]

    def leave(self, guest: Guest) -> None:
        self._guests.pop(guest, None)
        if address := self._addresses.get(guest.ip):
            address.connections -= 1

    def connections(self) -> int:
        """Return how many inbound connections are open or being made."""
        return len(self._guests)

    # ---- faults --------------------------------------------------------------------------------

    def botched(self, ip: str, reason: str, now: float) -> None:
        """Count a fault of someone who never said who it is."""
        self._count(reason, f"ip={ip}")
        self._charge(self._address(account_of(ip), now))

    def blame(self, peer: PeerId, reason: str, now: float, weight: float = 1.0) -> bool:
        """Count a fault; True if it was one too many, and the peer is banned from now on."""
        standing = self._peers.get(peer)
        if standing is None:
            standing = self._peers[peer] = _Standing(at=now)
            self._forget_someone(now)
        if not standing.refused[reason]:
            log.info("refused peer=%s reason=%s", peer, reason)
        standing.refused[reason] += 1
        self._counts[reason] += 1
        if ip := self._ip_of.get(peer):
            self._charge(self._address(ip, now))
        forgiven = (now - standing.at) * self._config.faults_forgiven_per_s
        standing.faults = max(0.0, standing.faults - forgiven) + weight
        standing.at = now
        if standing.faults < self._config.faults_max or now < standing.banned_until:
            return False
        pause_s = self._config.ban_s * 2.0 ** min(standing.bans, BAN_DOUBLINGS_MAX)
        standing.bans += 1
        standing.faults = 0.0
        standing.banned_until = now + pause_s
        self._count("peer banned", f"peer={peer} for_s={pause_s:g}")
        return True

    def banned(self, peer: PeerId, now: float) -> bool:
        standing = self._peers.get(peer)
        return standing is not None and now < standing.banned_until

    def turned_away(self, peer: PeerId) -> None:
        self._count("connection of a banned peer", f"peer={peer}")

    def refused_of(self, peer: PeerId) -> Counter[str]:
        """Return what was refused of a peer, by reason."""
        standing = self._peers.get(peer)
        return Counter(standing.refused) if standing else Counter()

    # ---- the tables ----------------------------------------------------------------------------

    def _reason_to_refuse(self, address: _Address) -> str | None:
        reserved = max(1, self._config.connections_max // 8)  # so that we can dial all the same
        here = self._config.connections_max if address.local else self._config.per_address_max
        if len(self._guests) >= max(1, self._config.connections_max - reserved):
            return "no room for a connection"
        if address.connections >= here:
            return "too many connections of one address"
        if address.tokens < 1.0:
            return "connecting too often"
        return None

    def _address(self, ip: str, now: float) -> _Address:
        """Return the entry of an address, its tokens counted up to now."""
        address = self._addresses.get(ip)
        if address is None:
            burst = float(self._config.accept_burst)
            address = self._addresses[ip] = _Address(burst, now, is_local(ip))
            if len(self._addresses) > ADDRESSES_MAX:
                self._forget_addresses()
            return address
        per_s = self._config.accept_per_s * (LOCAL_SHARE if address.local else 1.0)
        gained = (now - address.at) * per_s
        address.tokens = min(float(self._config.accept_burst), address.tokens + gained)
        address.at = now
        return address

    def _charge(self, address: _Address) -> None:
        if address.local:
            floor = min(LOCAL_RESERVE, address.tokens)
        else:
            floor = -self._config.ban_s * self._config.accept_per_s
        address.tokens = max(floor, address.tokens - FAULT_TOKENS)

    def _forget_addresses(self) -> None:
        """Forget a quarter: those that nobody is connected from, the least in debt first."""
        idle = sorted(
            (ip for ip, address in self._addresses.items() if not address.connections),
            key=lambda ip: -self._addresses[ip].tokens,
        )
        for ip in idle[: ADDRESSES_MAX // 4]:
            del self._addresses[ip]

    def _forget_someone(self, now: float) -> None:
        if len(self._peers) > PEERS_MAX:
            free = (peer for peer in self._peers if not self.banned(peer, now))
            del self._peers[next(free, next(iter(self._peers)))]

    def _count(self, reason: str, who: str) -> None:
        self._counts[reason] += 1
        if self._counts[reason].bit_count() == 1:  # the first, second, fourth: a flood fills logs
            log.info("refused %s reason=%s times=%d", who, reason, self._counts[reason])


def account_of(ip: str) -> str:
    """Return who pays for an address: itself, or of public IPv6 its /64, all of which belongs to
    whoever has one of it. What is no address pays for itself."""
    ip = ip.partition("%")[0]
    try:
        address = ip_address(ip)
    except ValueError:
        return ip
    if not isinstance(address, IPv6Address):
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if reach_of(address) is not Reach.PUBLIC:
        return ip
    return str(IPv6Network((address, _IPV6_BITS), strict=False))


def is_local(ip: str) -> bool:
    """Whether an address is of this machine or of a private network."""
    try:
        return reach_of(ip_address(ip.partition("%")[0])) is not Reach.PUBLIC
    except ValueError:
        return False
