"""The multiaddrs that this node dials and tells: what they say, and how far they reach.

TCP alone, to an IP address or a name, direct or through one relay. Whether an address may be told
to a peer, or dialled because a peer told it, depends on the network that it lies in; what a
stranger names is held to more than what the owner does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from .ports import PeerId

Network = IPv4Network | IPv6Network
ADDRESS_CHARS_MAX: Final = 256
PORT_MIN_OF_STRANGERS: Final = 1024  # below listen services of other kinds: they are no targets
CIRCUIT: Final = "/p2p-circuit"

_PEER = r"[1-9A-Za-z][0-9A-Za-z]{39,63}"
_FORM = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[^/]{1,253})/tcp/(?P<port>[0-9]{1,5})"
    rf"(?:/p2p/(?P<relay>{_PEER})(?P<circuit>/p2p-circuit))?(?:/p2p/(?P<peer>{_PEER}))?",
    re.ASCII,
)
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?", re.ASCII)
_LOCAL = [  # not `is_private`, which counts the networks of examples and benchmarks too
    ip_network(each)
    for each in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        "100.64.0.0/10",  # a provider's own, behind its NAT
        *("fc00::/7", "fe80::/10"),
    )
]
_NOWHERE = [  # for strangers: no host of the internet has these, or an IPv4 one under a second name
    ip_network(each)
    for each in (
        *("0.0.0.0/8", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "fec0::/10"),
        *("64:ff9b::/96", "64:ff9b:1::/48"),  # translated: an IPv4 address in its last 32 bits
        *("2001::/32", "2002::/16"),  # Teredo and 6to4: one inside as well
    )
]
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class AddressError(ValueError):
    """Not an address that this node can dial."""


class Reach(IntEnum):
    """From how far away an address can be dialled."""

    LOOPBACK = 0  # this machine
    PRIVATE = 1  # its local network
    PUBLIC = 2  # anywhere


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed multiaddr. host: an address, or a name that must be resolved."""

    kind: str
    host: IPv4Address | IPv6Address | str
    port: int
    relay: PeerId | None = None
    peer: PeerId | None = None

    @property
    def reach(self) -> Reach:
        """Of a name PUBLIC: what it means is known only to who resolves it."""
        return Reach.PUBLIC if isinstance(self.host, str) else reach_of(self.host)

    @property
    def group(self) -> str:
        """The network it lies in, as far as one owner is likely to hold all of it: /16, or /32."""
        if isinstance(self.host, str):
            return self.host.lower()
        bits = 2 if self.host.version == 4 else 4
        return f"ip{self.host.version}/{self.host.packed[:bits].hex()}"

    def without_peer(self) -> str:
        relayed = f"/p2p/{self.relay}{CIRCUIT}" if self.relay else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{relayed}"

    def __str__(self) -> str:
        return self.without_peer() + (f"/p2p/{self.peer}" if self.peer else "")


@lru_cache(maxsize=1024)  # the book's addresses are looked at each time that somebody is dialled
def parse(address: str) -> Place:
    """Raises AddressError."""
    form = _FORM.fullmatch(address) if len(address) <= ADDRESS_CHARS_MAX else None
    if form is None:
        raise AddressError(f"{address[:ADDRESS_CHARS_MAX]!r} is no multiaddr of TCP")
    kind, host, port = form["kind"], form["host"], int(form["port"])
    if not port < 65_536:
        raise AddressError(f"{address!r}: no port is {port}")
    relay, peer = (PeerId(form[part]) if form[part] else None for part in ("relay", "peer"))
    if kind.startswith("dns"):
        if not _NAME.fullmatch(host):
            raise AddressError(f"{address!r}: {host!r} is no name of a machine")
        return Place(kind, host, port, relay, peer)
    try:
        ip = ip_address(host)
    except ValueError:
        raise AddressError(f"{address!r}: {host!r} is no IP address") from None
    if ip.version != int(kind[2]) or "%" in host:
        raise AddressError(f"{address!r}: {host!r} is no IPv{kind[2]} address")
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        kind, ip = "ip4", ip.ipv4_mapped  # how a socket of both kinds names an IPv4 peer
    return Place(kind, ip, port, relay, peer)


def reach_of(ip: IPv4Address | IPv6Address) -> Reach:
    """How far an IP address reaches."""
    if ip.is_loopback or ip.is_unspecified:
        return Reach.LOOPBACK
    return Reach.PRIVATE if any(ip in network for network in _LOCAL) else Reach.PUBLIC


def is_dialable(place: Place) -> bool:
    """True of what the owner may have dialled."""
    if isinstance(place.host, str):
        return place.port > 0
    return place.port > 0 and not (place.host.is_unspecified or place.host.is_multicast)


def is_fit_for_strangers(place: Place) -> bool:
    """True of what may be dialled because a peer told it, as far as the address alone can say.

    No names: one can be made to mean a machine of our own network after it was looked at. No
    ports of well-known services, no broadcast and no link-local addresses, and none that a
    translator turns into an IPv4 address, which may be one of ours.
    """
    if isinstance(place.host, str) or not is_dialable(place):
        return False
    if not place.host.is_loopback and any(place.host in network for network in _NOWHERE):
        return False
    if place.host.is_link_local or (place.host.version == 4 and place.host.is_reserved):
        return False
    return place.port >= PORT_MIN_OF_STRANGERS


@dataclass(frozen=True, slots=True)
class Vicinity:
    """Where this machine is: the hosts that it is known by, and the networks that it lies in."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, addresses: Iterable[str], networks: Iterable[str]) -> Vicinity:
        """addresses: this node's, as multiaddrs; networks: as "10.0.0.0/8"."""
        places = [place for place in map(parse, addresses) if not place.relay]
        lies_in = tuple(ip_network(each, strict=False) for each in networks)
        return cls(frozenset(str(place.host) for place in places), lies_in)

    def is_inside(self, host: IPv4Address | IPv6Address) -> bool:
        return any(host in network for network in self.networks)

    def admits(self, place: Place, teller: Reach) -> bool:
        """True if this node may be sent there by who is as near as `teller`.

        A place of this machine only by its own peers, and one of a network that it lies in only by
        those near by, whatever the range: there this node is behind firewalls that the teller is
        not, and a public address is often one of a data centre's.
        """
        host = place.host
        if not is_fit_for_strangers(place) or isinstance(host, str):
            return False
        inside, reach = self.is_inside(host), place.reach
        if reach is Reach.PRIVATE and not inside:
            return False
        if str(host) in self.hosts:
            reach = Reach.LOOPBACK
        elif inside:
            reach = min(reach, Reach.PRIVATE)
        return reach >= teller and not self._is_broadcast(host)

    def teller(self, address: str) -> Reach:
        """How near the peer at the other end of a link is, for what it may be believed."""
        reach = reach_of_link(address)
        if reach is not Reach.PUBLIC or not (host := host_of(address)):
            return reach
        place = parse(address)
        near = not isinstance(place.host, str) and self.is_inside(place.host)
        return Reach.PRIVATE if near and host not in self.hosts else reach

    def _is_broadcast(self, host: IPv4Address | IPv6Address) -> bool:
        return host.version == 4 and any(
            host in (network.broadcast_address, network.network_address)
            for network in self.networks
            if network.version == 4 and network.prefixlen < 31
        )


def reach_of_link(address: str) -> Reach:
    """How near the peer at the other end of a link is. Unknown is far: it is told the least."""
    try:
        place = parse(address)
    except AddressError:
        return Reach.PUBLIC
    return Reach.PUBLIC if place.relay else place.reach  # through a relay from anywhere


def host_of(address: str) -> str:
    """The host that a link leads to, "" if that cannot be said."""
    try:
        place = parse(address)
    except AddressError:
        return ""
    return "" if place.relay else str(place.host)


def group_of(address: str) -> str:
    """See `Place.group`; of what cannot be parsed, the text."""
    try:
        return parse(address).group
    except AddressError:
        return address


def expand(listening: Iterable[str], interfaces: Iterable[str]) -> list[str]:
    """Replace "everywhere" by the addresses of this machine's interfaces; each once, in order."""
    ips = [ip_address(each.partition("%")[0]) for each in interfaces]
    found: dict[str, None] = {}
    for address in listening:
        place = parse(address)
        if isinstance(place.host, str) or not place.host.is_unspecified:
            found[address] = None
            continue
        for ip in sorted(ips, key=lambda each: (-reach_of(each), each.version, int(each))):
            if ip.version == place.host.version and not ip.is_link_local:
                meant = Place(place.kind, ip, place.port, place.relay, place.peer)
                found[str(meant)] = None
    return list(found)


def peer_of_key(public: bytes) -> PeerId:
    """The name that libp2p gives the holder of an Ed25519 public key: base58 of the key itself,
    as the identity multihash of its protobuf."""
    raw = bytes.fromhex("002408011220") + public
    number, digits = int.from_bytes(raw), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return PeerId("1" * zeros + digits)


def tag_of(address: str) -> bytes:
    """Eight bytes to remember an address by."""
    return hashlib.sha256(address.encode()).digest()[:8]
