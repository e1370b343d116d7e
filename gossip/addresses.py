"""The address book: where peers were reached, or might be, and on whose word.

Bounded, and by source too: what has worked in the last two weeks is dropped last, however often it
has failed since, and of what was never tried the one goes first whose introducer, or whose network,
has named the most. So a peer that introduces a thousand others pushes out its own. An address that
a peer named is tried once: one that does not answer is forgotten, and not taken from anybody again
for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from .multiaddrs import AddressError as AddressError
from .multiaddrs import Place, group_of, is_dialable, parse
from .ports import PeerId

_TEXT_BYTES_MAX = 256
BY_MDNS: Final = "mdns"
INTRODUCED_BY_ONE_MAX: Final = 32  # addresses not tried yet
_REFUSED_S: Final = 3600.0  # an address that did not answer is not learned again for so long
_REFUSED_HERE_S: Final = 30.0  # of the local network, where it is announced again when it is back
_REFUSED_MAX: Final = 1024
_HALF_LIFE_S: Final = 3 * 86_400.0
_PROVEN_S: Final = 14 * 86_400.0  # what has worked so lately gives way to no stranger...
_PROVEN_SHARE: Final = 7 / 8  # ...in so many of the places; in the others there is room for news


class Source(StrEnum):
    """Who named an address. The owner's are kept for ever and dialled before the others."""

    OWNER = "owner"
    LEARNED = "learned"


class Entry(Struct, kw_only=True, forbid_unknown_fields=True):
    """One address of one peer."""

    address: Annotated[str, Meta(max_length=_TEXT_BYTES_MAX)]  # multiaddr that ends in /p2p/PEER
    source: Source = Source.LEARNED
    by: Annotated[str, Meta(max_length=64)] = ""  # the peer that named it, or BY_MDNS
    heard_s: float = 0.0  # Unix seconds; of the others too
    last_ok_s: float = 0.0  # 0 if never
    failures: Annotated[int, Meta(ge=0)] = 0  # since then, running

    @property
    def is_strangers(self) -> bool:
        """True of what only a peer, or the local network, has named, and where nobody was yet."""
        return self.source is Source.LEARNED and bool(self.by) and not self.last_ok_s

    def score(self, latest_s: float) -> float:
        """Higher is dialled first and dropped last: what worked lately, then what worked once, then
        the untried, each halved by every failure. latest_s: when any address worked last."""
        proven = 0.0
        if self.last_ok_s:
            proven = 1.0 + 2.0 * 0.5 ** (max(0.0, latest_s - self.last_ok_s) / _HALF_LIFE_S)
        return (1.0 + proven) * 0.5 ** min(self.failures, 16)


def place_of(address: str) -> Place:
    """Parse the address of a peer. Raises AddressError."""
    try:
        place = parse(address)
    except AddressError as problem:
        raise AddressError(
            f"{problem}; expected one that ends in /p2p/PEER, as in "
            "/ip4/192.0.2.7/tcp/4021/p2p/12D3KooW…"
        ) from None
    if place.peer is None:
        raise AddressError(
            f"{address!r} does not say whose it is: expected one that ends in /p2p/PEER"
        )
    if not is_dialable(place):
        raise AddressError(
            f"{address!r} is where a node listens; expected the address of its machine"
        )
    return place


def peer_of(address: str) -> PeerId:
    """Return the peer at the end of a multiaddr. Raises AddressError."""
    peer = place_of(address).peer
    assert peer is not None
    return peer


class AddressBook:
    """Addresses by peer, bounded. Saved as JSON by whoever keeps it."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        peers_max: int = 256,
        addresses_per_peer_max: int = 4,
    ) -> None:
        self._peers: dict[PeerId, list[Entry]] = {}
        self._peers_max = peers_max
        self._addresses_max = addresses_per_peer_max
        self._refused: dict[str, float] = {}  # until when
        self._latest_s = 0.0
        for entry in entries:
            self._latest_s = max(self._latest_s, entry.last_ok_s)
            self._put(entry)

    @classmethod
    def from_json(cls, data: bytes) -> AddressBook:
        """Raises msgspec.DecodeError or AddressError on what `to_json` did not write."""
        return cls(msgspec.json.decode(data, type=list[Entry]))

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(list(self)), indent=1)

    def __iter__(self) -> Iterator[Entry]:
        for entries in self._peers.values():
            yield from entries

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: object) -> bool:
        return peer in self._peers

    def add(self, address: str, source: Source) -> PeerId:
        """Note an address; the owner's word makes a learned one the owner's. AddressError."""
        peer = peer_of(address)
        self._put(Entry(address=address, source=source))
        return peer

    def introduce(self, address: str, by: str, now_s: float) -> bool:
        """Note what a peer, or the local network, has named; False if it is not to be tried, or is
        known. Raises AddressError."""
        peer_of(address)
        if now_s < self._refused.get(address, 0.0) or self._find(address) is not None:
            return False
        mine = [e for e in self if e.by == by and e.source is Source.LEARNED and not e.last_ok_s]
        for oldest in mine[: max(0, len(mine) + 1 - INTRODUCED_BY_ONE_MAX)]:
            self._drop(oldest)
        self._put(Entry(address=address, by=by, heard_s=now_s))
        return self._find(address) is not None

    def remove(self, peer: PeerId) -> bool:
        return self._peers.pop(peer, None) is not None

    def succeeded(self, address: str, now_s: float) -> None:
        self._latest_s = max(self._latest_s, now_s)
        if entry := self._find(address):
            entry.last_ok_s, entry.failures = now_s, 0

    def failed(self, address: str, now_s: float = 0.0) -> None:
        entry = self._find(address)
        if entry is None:
            return
        entry.failures += 1
        if entry.is_strangers:
            self._drop(entry)
            pause_s = _REFUSED_HERE_S if entry.by == BY_MDNS else _REFUSED_S
            self._refused[address] = now_s + pause_s
            if len(self._refused) > _REFUSED_MAX:
                del self._refused[next(iter(self._refused))]

    def forgive(self) -> None:
        """The network is another one: what did not answer may answer now."""
        self._refused.clear()

    def peers(self) -> list[PeerId]:
        """All peers: the owner's first, then by the score of their best address."""
        return sorted(self._peers, key=lambda peer: (not self.is_owners(peer), -self._best(peer)))

    def is_owners(self, peer: PeerId) -> bool:
        return any(entry.source is Source.OWNER for entry in self._peers.get(peer, ()))

    def is_strangers(self, address: str) -> bool:
        """See `Entry.is_strangers`; of what is no longer known too."""
        entry = self._find(address)
        return entry is None or entry.is_strangers

    def is_proven(self, peer: PeerId) -> bool:
        """True if it was reached at any of its addresses, ever."""
        return any(entry.last_ok_s for entry in self._peers.get(peer, ()))

    def introducer(self, peer: PeerId) -> str:
        """The other peer that named this one; "" if it is the owner's, or named itself."""
        first = next(iter(self._peers.get(peer, ())), None)
        named = "" if first is None or self.is_owners(peer) else first.by
        return "" if named in (peer, BY_MDNS) else named

    def addresses(self, peer: PeerId) -> list[str]:
        """The peer's addresses, the best first; of equals those that need no relay."""
        return [entry.address for entry in self.entries(peer)]

    def entries(self, peer: PeerId) -> list[Entry]:
        """See `addresses`."""
        return sorted(
            self._peers.get(peer, ()),
            key=lambda entry: (-self.score(entry), "/p2p-circuit" in entry.address),
        )

    def score(self, entry: Entry) -> float:
        return entry.score(self._latest_s)

    def _best(self, peer: PeerId) -> float:
        return max(self.score(entry) for entry in self._peers[peer])

    def _find(self, address: str) -> Entry | None:
        entries = self._peers.get(peer_of(address), ())
        return next((entry for entry in entries if entry.address == address), None)

    def _drop(self, entry: Entry) -> None:
        peer = peer_of(entry.address)
        self._peers[peer].remove(entry)
        if not self._peers[peer]:
            del self._peers[peer]

    def _put(self, entry: Entry) -> None:
        peer = peer_of(entry.address)
        known = self._find(entry.address)
        if known is not None:
            if entry.source is Source.OWNER:
                known.source = Source.OWNER
            return
        entries = self._peers.setdefault(peer, [])
        entries.append(entry)
        while len(entries) > self._addresses_max:
            # The newest of the worst goes last in, first out: news must not push out what works.
            worst = min(reversed(entries), key=lambda e: (e.source is Source.OWNER, self.score(e)))
            entries.remove(worst)
        self._drop_peers(keep=peer)

    def _drop_peers(self, keep: PeerId) -> None:
        while len(self._peers) > self._peers_max:
            learned = [p for p in self._peers if p != keep and not self.is_owners(p)]
            if not learned:
                return
            del self._peers[self._least(learned)]

    def _least(self, learned: list[PeerId]) -> PeerId:
        """The one to give up: the worst, and of equals the one of the largest crowd, which is a
        flood from one introducer or from one network. After an outage all that ever worked has
        failed, and what nobody has tried scores higher; so the proven are kept by themselves."""
        firsts = {peer: self._peers[peer][0] for peer in learned}
        groups = {peer: group_of(first.address) for peer, first in firsts.items()}
        by_group, by_peer = Counter(groups.values()), Counter(e.by for e in firsts.values())

        def worth(peer: PeerId) -> tuple[float, int]:
            named = firsts[peer].by
            crowd = max(by_group[groups[peer]], by_peer[named] if named else 0)
            return self._best(peer), -crowd

        proven = sorted(filter(self._is_lately_proven, learned), key=self._best, reverse=True)
        kept = set(proven[: int(self._peers_max * _PROVEN_SHARE)])
        return min([peer for peer in learned if peer not in kept] or proven[-1:], key=worth)

    def _is_lately_proven(self, peer: PeerId) -> bool:
        oks = (entry.last_ok_s for entry in self._peers[peer])
        return any(ok_s and self._latest_s - ok_s <= _PROVEN_S for ok_s in oks)
