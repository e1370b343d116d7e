"""Peers learned from peers: who is told where whom can be dialled, and what is believed of it.

A peer signs its own address record, so nobody can say where another is to be found; it may still
lie about itself, and name a victim's address. So a node passes on only the records of peers that it
was linked with, and only as far as they name the address that it saw them at; what a peer says of
itself it tries no farther than that either; it believes nothing about its own loopback or networks
that comes from farther away; and it hands what it learns to an address book that tries each address
once and lets no introducer fill it (see `addresses` and `dialer`).

The records of one peer are kept apart by kind, for a signature covers all of a record: one that
names a local network is told on that network only, and one address that nobody has seen is not
passed on with another that was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Final, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from .config import Count, Seconds
from .keys import public_bytes, verify
from .multiaddrs import (
    AddressError,
    Place,
    Reach,
    Vicinity,
    host_of,
    is_fit_for_strangers,
    parse,
    peer_of_key,
    reach_of_link,
)
from .ports import PeerId
from .wire import (
    HOUR_S,
    RECORDS_MAX,
    AddressRecord,
    Peers,
    PeersGet,
    WireError,
    decode_peers,
    encode,
)

PLACES_MAX: Final = 4  # in a record
AGE_H_MAX: Final = 7 * 24  # a record is told for so long
AHEAD_H_MAX: Final = 2  # clocks differ
RENEW_H: Final = 24
_DOMAIN = b"groove/address/1\0"
Kind = tuple[Reach, str]  # and "ip4", "ip6" or "relayed"


class IntroductionsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    links_wanted: Count = 8  # while there are fewer, a peer is asked at each look
    look_s_min: Seconds = 5.0  # after the first link and after each loss, then twice as long...
    look_s_max: Seconds = 180.0  # ...and so on to this
    ask_again_s: Seconds = 1800.0  # one peer, when nothing is wanting: to know who has moved
    asks_burst: Count = 3  # of one peer, however often its links come and go
    asks_every_s: Seconds = 90.0  # then one more each so long; both below what a peer answers
    records_max: Count = 512  # held, of other peers
    told_after_h: Count = 24  # a peer is introduced for so long after its link has ended
    gets_burst: Count = 4  # answered to one peer at once
    gets_every_s: Seconds = 60.0  # then one more each so long


# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Met:
    """A peer is linked."""

    peer: PeerId
    address: str
    now_s: int


@dataclass(frozen=True, slots=True)
class Parted:
    peer: PeerId
    now_s: int


@dataclass(frozen=True, slots=True)
class FrameIn:
    peer: PeerId
    frame: bytes
    now_s: int


@dataclass(frozen=True, slots=True)
class Moved:
    """This node can be dialled at these addresses, and lies in these networks ("10.0.0.0/8")."""

    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    now_s: int


@dataclass(frozen=True, slots=True)
class LookDue:
    now_s: int


IntroductionEvent = Met | Parted | FrameIn | Moved | LookDue


# Effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendFrame:
    peer: PeerId
    frame: bytes


@dataclass(frozen=True, slots=True)
class Learned:
    """A peer says that it can be dialled here. by: who told of it, which may be the peer itself."""

    peer: PeerId
    addresses: tuple[str, ...]
    by: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    peer: PeerId
    reason: str
    blame: bool = True


@dataclass(frozen=True, slots=True)
class WakeAfter:
    """Hand in `LookDue` after so long."""

    delay_s: float


IntroductionEffect = SendFrame | Learned | Refused | WakeAfter


@dataclass(slots=True)
class _Bucket:
    """How many questions may be put now."""

    tokens: float
    at_s: int  # when they were last counted

    def take(self, burst: int, every_s: float, now_s: int) -> bool:
        earned = max(0, now_s - self.at_s) / every_s
        self.tokens, self.at_s = min(float(burst), self.tokens + earned), now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class _Link:
    """One linked peer. times in Unix seconds."""

    address: str
    reach: Reach
    host: str  # that it is linked from, or was dialled at
    gets: _Bucket  # for its questions
    asked: bool = False  # and has not answered
    asked_s: int = 0


@dataclass(slots=True)
class _Known:
    """The records of one other peer."""

    records: dict[Kind, AddressRecord] = field(default_factory=dict)
    linked_s: int = 0  # when a link with it was last up; 0 never, and then it is not introduced
    host: str = ""  # of that link


class Introductions:
    """key: the transport's, whose name `own` is; None tells nothing of this node."""

    def __init__(
        self,
        own: PeerId,
        key: Ed25519PrivateKey | None,
        rng: Random,
        config: IntroductionsConfig | None = None,
    ) -> None:
        assert key is None or peer_of_key(public_bytes(key)) == own, "another peer's key"
        self._own = own
        self._key = key
        self._rng = rng
        self._config = config or IntroductionsConfig()
        self._links: dict[PeerId, _Link] = {}
        self._asks: dict[PeerId, _Bucket] = {}  # for questions to it, also if it comes and goes
        self._known: dict[PeerId, _Known] = {}  # the one heard of longest ago first
        self._vicinity = Vicinity()
        self._places: dict[Kind, tuple[bytes, ...]] = {}
        self._records: dict[Kind, AddressRecord] = {}  # this node's own
        self._looking = False
        self._look_s = self._config.look_s_min

    def handle(self, event: IntroductionEvent) -> list[IntroductionEffect]:
        """Advance by one event; never raises on anything a peer can send."""
        match event:
            case Met(peer, address, now_s):
                gets = _Bucket(float(self._config.gets_burst), now_s)
                link = _Link(address, reach_of_link(address), host_of(address), gets)
                self._links[peer] = link
                if known := self._known.get(peer):
                    known.linked_s, known.host = now_s, link.host
                return [*self._ask(peer, now_s), *self._begin_to_look()]
            case Parted(peer, now_s):
                self._links.pop(peer, None)
                self._look_s = self._config.look_s_min
                if known := self._known.get(peer):
                    known.linked_s = now_s
                return []
            case FrameIn(peer, frame, now_s):
                return self._heard(peer, frame, now_s) if peer in self._links else []
            case Moved(addresses, networks, now_s):
                self._vicinity = Vicinity.of(addresses, networks)
                self._places = _by_kind(addresses)
                self._sign(now_s)
                return []
            case LookDue(now_s):
                self._looking = False
                return [*self._look(now_s), *self._begin_to_look()]
            case _:
                assert_never(event)

    # ---- asking --------------------------------------------------------------------------------

    def _begin_to_look(self) -> list[IntroductionEffect]:
        if self._looking or not self._links:
            return []
        self._looking = True
        delay_s, self._look_s = self._look_s, min(2 * self._look_s, self._config.look_s_max)
        return [WakeAfter(delay_s)]

    def _look(self, now_s: int) -> list[IntroductionEffect]:
        for peer, known in list(self._known.items()):
            for kind, record in list(known.records.items()):
                if record.ts_h + AGE_H_MAX < now_s // HOUR_S:
                    del known.records[kind]
            if not known.records:
                del self._known[peer]
        if any(record.ts_h + RENEW_H <= now_s // HOUR_S for record in self._records.values()):
            self._sign(now_s)
        longest = min(self._links, key=lambda each: self._links[each].asked_s, default=None)
        if longest is None:
            return []
        quiet_s = now_s - self._links[longest].asked_s
        wanting = len(self._links) < self._config.links_wanted
        due = wanting or quiet_s >= self._config.ask_again_s
        return self._ask(longest, now_s) if due else []

    def _ask(self, peer: PeerId, now_s: int) -> list[IntroductionEffect]:
        """Ask, unless this peer has been asked as often as it would answer."""
        config, link = self._config, self._links[peer]
        asks = self._asks.pop(peer, None) or _Bucket(float(config.asks_burst), now_s)
        self._asks[peer] = asks
        if len(self._asks) > config.records_max:
            del self._asks[next(iter(self._asks))]
        link.asked_s = now_s
        if not asks.take(config.asks_burst, config.asks_every_s, now_s):
            return []
        link.asked = True
        return [SendFrame(peer, encode(PeersGet(RECORDS_MAX - 1)))]

    # ---- what peers say ------------------------------------------------------------------------

    def _heard(self, peer: PeerId, frame: bytes, now_s: int) -> list[IntroductionEffect]:
        try:
            message = decode_peers(frame)
        except WireError as error:
            return [Refused(peer, error.reason)]
        match message:
            case PeersGet(count):
                return self._answer(peer, count, now_s)
            case Peers(records):
                link = self._links[peer]
                if not link.asked:
                    return [Refused(peer, "peers not asked for")]
                link.asked = False
                effects: list[IntroductionEffect] = []
                for record in records:
                    effects += self._told(peer, record, now_s)
                return effects
            case _:
                assert_never(message)

    def _answer(self, peer: PeerId, count: int, now_s: int) -> list[IntroductionEffect]:
        link, config = self._links[peer], self._config
        if not link.gets.take(config.gets_burst, config.gets_every_s, now_s):
            return [Refused(peer, "asks for peers too often")]
        told = [record for (reach, _), record in self._records.items() if reach >= link.reach]
        others = [
            record
            for other, known in self._known.items()
            if other != peer and self._is_introduced(other, known, now_s)
            for kind, record in known.records.items()
            if kind[0] >= link.reach and self._is_vouched_for(kind, record, known, now_s)
        ]
        room = min(count, RECORDS_MAX - len(told), len(others))
        told += self._rng.sample(others, room)
        return [SendFrame(peer, encode(Peers(tuple(told))))]

    def _is_introduced(self, peer: PeerId, known: _Known, now_s: int) -> bool:
        since_s = now_s - known.linked_s
        recent = known.linked_s > 0 and since_s <= self._config.told_after_h * HOUR_S
        return peer in self._links or recent

    def _is_vouched_for(self, kind: Kind, record: AddressRecord, known: _Known, now_s: int) -> bool:
        """True if the peer was seen at the address that its record names, or at one of several of
        its local network; through a relay, if the relay is known here at that address."""
        if record.ts_h + AGE_H_MAX < now_s // HOUR_S:
            return False
        places = [parse(place.decode("ascii")) for place in record.places]
        reach, way = kind
        if way == "relayed":
            return all(self._knows(place.relay, str(place.host)) for place in places)
        seen = [str(place.host) == known.host for place in places]
        return all(seen) if reach is Reach.PUBLIC else any(seen)

    def _knows(self, peer: PeerId | None, host: str) -> bool:
        if peer is None:
            return False
        link, known = self._links.get(peer), self._known.get(peer)
        return host in (link.host if link else "", known.host if known else "")

    def _told(self, by: PeerId, record: AddressRecord, now_s: int) -> list[IntroductionEffect]:
        """Take in one record, or say why not. What an honest peer may pass on is not blamed on it:
        it cannot know what this node's clock and networks are."""
        peer = peer_of_key(record.key)
        if peer == self._own:
            return []
        try:
            places = [parse(place.decode("ascii")) for place in record.places]
        except (AddressError, UnicodeDecodeError):
            return [Refused(by, "address record malformed")]
        kinds = {_kind(place) for place in places}
        if len(kinds) != 1 or any(place.peer for place in places):
            return [Refused(by, "address record malformed")]
        (kind,) = kinds
        hour = now_s // HOUR_S
        if not hour - AGE_H_MAX <= record.ts_h <= hour + AHEAD_H_MAX:
            return [Refused(by, "address record out of date", blame=False)]
        held = self._known.get(peer, _Known()).records.get(kind)
        if held is not None and held.ts_h > record.ts_h:
            return []
        teller = self._vicinity.teller(self._links[by].address)
        if not all(self._vicinity.admits(place, teller) for place in places):
            return [Refused(by, "address record of another network", blame=False)]
        if not _is_signed(record):
            return [Refused(by, "address record forged")]
        self._keep(peer, kind, record, now_s)
        tried = [place for place in places if by != peer or self._is_seen_at(peer, place)]
        addresses = tuple(f"{place}/p2p/{peer}" for place in tried)
        return [Learned(peer, addresses, by)] if addresses else []

    def _is_seen_at(self, peer: PeerId, place: Place) -> bool:
        """True if a linked peer may name this place for itself: else whoever makes itself a new
        name for each link would send this node wherever it likes. Through a relay, if it is linked
        through that one, or the relay is known here at that address."""
        link = self._links[peer]
        if place.relay is None:
            return str(place.host) == link.host
        through = link.address.startswith(place.without_peer())
        return through or self._knows(place.relay, str(place.host))

    def _keep(self, peer: PeerId, kind: Kind, record: AddressRecord, now_s: int) -> None:
        known = self._known.pop(peer, None) or _Known()
        known.records[kind] = record
        if link := self._links.get(peer):
            known.linked_s, known.host = now_s, link.host
        self._known[peer] = known
        while len(self._known) > self._config.records_max:
            # Those never linked with are not passed on anyway.
            strange = (other for other, each in self._known.items() if not each.linked_s)
            del self._known[next(strange, None) or next(iter(self._known))]

    # ---- this node's own -----------------------------------------------------------------------

    def _sign(self, now_s: int) -> None:
        self._records = {}
        if self._key is None:
            return
        for kind, places in self._places.items():
            self._records[kind] = signed(self._key, places, now_s // HOUR_S)


def signed(key: Ed25519PrivateKey, places: tuple[bytes, ...], ts_h: int) -> AddressRecord:
    """Sign where the holder of the key can be dialled."""
    body = (public_bytes(key), places, ts_h)
    return AddressRecord(*body, sig=key.sign(_DOMAIN + encode(body)))


def _is_signed(record: AddressRecord) -> bool:
    body = (record.key, record.places, record.ts_h)
    return verify(record.key, record.sig, _DOMAIN + encode(body))


def _by_kind(addresses: Iterable[str]) -> dict[Kind, tuple[bytes, ...]]:
    """What of these addresses can be told, as records write it."""
    found: dict[Kind, dict[bytes, None]] = {}
    for address in addresses:
        place = parse(address)
        if is_fit_for_strangers(place):
            found.setdefault(_kind(place), {})[place.without_peer().encode()] = None
    return {kind: tuple(places)[:PLACES_MAX] for kind, places in found.items()}


def _kind(place: Place) -> Kind:
    return place.reach, "relayed" if place.relay else place.kind
