"""The address book: where peers were reached, or might be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from .ports import PeerId

_TEXT_BYTES_MAX = 256


class Source(StrEnum):
    """Who named an address. The owner's are kept for ever and dialled before the others."""

    OWNER = "owner"
    LEARNED = "learned"


class Entry(Struct, kw_only=True, forbid_unknown_fields=True):
    """One address of one peer."""

    address: Annotated[str, Meta(max_length=_TEXT_BYTES_MAX)]  # multiaddr that ends in /p2p/PEER
    source: Source = Source.LEARNED
    last_ok_s: float = 0.0  # Unix seconds, 0 if never
    failures: Annotated[int, Meta(ge=0)] = 0  # since then, running

    @property
    def score(self) -> float:
        """Higher is dialled first and dropped last: proven, then untried, then failing."""
        return (2.0 if self.last_ok_s else 1.0) * 0.5 ** min(self.failures, 16)


class AddressError(ValueError):
    """Not the address of a peer."""


def peer_of(address: str) -> PeerId:
    """Return the peer at the end of a multiaddr. Raises AddressError."""
    _, sep, peer = address.rpartition("/p2p/")
    well_formed = sep and address.startswith("/") and 40 <= len(peer) <= 64 and peer.isalnum()
    if not well_formed or len(address) > _TEXT_BYTES_MAX:
        raise AddressError(f"{address!r} is no multiaddr that ends in /p2p/PEER")
    return PeerId(peer)


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
        for entry in entries:
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

    def add(self, address: str, source: Source) -> PeerId:
        """Note an address; the owner's word makes a learned one the owner's. AddressError."""
        self._put(Entry(address=address, source=source))
        return peer_of(address)

    def remove(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)

    def succeeded(self, address: str, now_s: float) -> None:
        if entry := self._find(address):
            entry.last_ok_s, entry.failures = now_s, 0

    def failed(self, address: str) -> None:
        if entry := self._find(address):
            entry.failures += 1

    def peers(self) -> list[PeerId]:
        """All peers: the owner's first, then by the score of their best address."""
        return sorted(self._peers, key=lambda peer: (not self.is_owners(peer), -self._best(peer)))

    def is_owners(self, peer: PeerId) -> bool:
        return any(entry.source is Source.OWNER for entry in self._peers.get(peer, ()))

    def addresses(self, peer: PeerId) -> list[str]:
        """The peer's addresses, the best first."""
        entries = sorted(self._peers.get(peer, ()), key=lambda entry: -entry.score)
        return [entry.address for entry in entries]

    def _best(self, peer: PeerId) -> float:
        return max(entry.score for entry in self._peers[peer])

    def _find(self, address: str) -> Entry | None:
        entries = self._peers.get(peer_of(address), ())
        return next((entry for entry in entries if entry.address == address), None)

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
            worst = min(reversed(entries), key=lambda e: (e.source is Source.OWNER, e.score))
            entries.remove(worst)
        self._drop_peers(keep=peer)

    def _drop_peers(self, keep: PeerId) -> None:
        while len(self._peers) > self._peers_max:
            learned = [p for p in self._peers if p != keep and not self.is_owners(p)]
            if not learned:
                return
            del self._peers[min(learned, key=self._best)]
