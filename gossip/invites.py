"""An invitation: one string by which a stranger finds this node and speaks its swarm's language.

`groove1` and then base32 in lower case, which survives being read out, typed and put in capitals by
a phone. Inside is one canonical MessagePack array and four bytes of its SHA-256, so that a string
with a letter lost says so instead of dialling nowhere. Whoever has one can join: of a private swarm
it holds the key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from . import canonical
from .addresses import peer_of, place_of
from .canonical import WireError
from .multiaddrs import AddressError, Place, parse
from .ports import PeerId
from .wire import Bytes32, Wire, encode

PREFIX: Final = "groove1"
ADDRESSES_MAX: Final = 8
CHARS_MAX: Final = 4096
_CHECK_BYTES: Final = 4
_FORM = re.compile(r"groove([0-9]+)([a-z2-7]*)")


class InviteError(ValueError):
    """A string that is no invitation, or not one that this version understands."""


@dataclass(frozen=True, slots=True)
class Invite:
    """addresses: of one peer, each ending in its /p2p/PEER. swarm_key: 32 bytes, or none."""

    addresses: tuple[str, ...]
    origin: bytes
    swarm_key: bytes = b""

    @property
    def peer(self) -> PeerId:
        return peer_of(self.addresses[0])


class _Body(Wire, frozen=True):
    """What the string holds. The addresses are without their common end /p2p/PEER."""

    peer: Annotated[str, Meta(min_length=40, max_length=64)]
    places: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
        Meta(min_length=1, max_length=ADDRESSES_MAX),
    ]
    origin: Bytes32
    swarm_key: Annotated[bytes, Meta(max_length=32)]


def written(invite: Invite) -> str:
    """Return the invitation as a string. Raises AddressError if its addresses are none."""
    if len(invite.swarm_key) not in (0, 32):
        raise ValueError(f"a swarm key has 32 bytes, not {len(invite.swarm_key)}")
    places = [place_of(address) for address in invite.addresses[:ADDRESSES_MAX]]
    if not places or any(place.peer != places[0].peer for place in places):
        raise AddressError("an invitation names addresses of one peer")
    without = tuple(place.without_peer() for place in places)
    body = encode(_Body(str(places[0].peer), without, invite.origin, invite.swarm_key))
    return PREFIX + base64.b32encode(body + _check(body)).decode().lower().rstrip("=")


def read(text: str) -> Invite:
    """Raises InviteError, which says what is wrong and what to do."""
    token = "".join(text.split()).lower()  # a mail program may have broken it into lines
    if len(token) > CHARS_MAX:
        raise InviteError(f"it is {len(token):,} characters long: no invitation has so many")
    form = _FORM.match(token)
    if form is None:
        raise InviteError("it does not begin with groove1, as every invitation does")
    version, payload = _version(form[1], token)
    if version != "1":
        raise InviteError("it was made by a newer version of groove-node: update this one")
    if re.search(r"[^a-z2-7]", payload):
        raise InviteError("it has a character that no invitation has: copy it again, whole")
    return _opened(payload)


def _version(digits: str, token: str) -> tuple[str, str]:
    """The version and what follows: base32 has the digits 2 to 7 too, so a 1 ends the number."""
    version = "1" if digits.startswith("1") else digits
    return version, token[len("groove") + len(version) :]


def _opened(payload: str) -> Invite:
    damaged = "it is cut short or has been changed on the way: copy it again, whole"
    try:
        data = base64.b32decode(payload.upper() + "=" * (-len(payload) % 8))
    except ValueError:
        raise InviteError(damaged) from None
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not body or check != _check(body):
        raise InviteError(damaged)
    try:
        found = canonical.decode(body, _Body)
        return _invite(found)
    except (WireError, AddressError) as problem:
        raise InviteError(f"it was not made by groove-node: {problem}") from None


def _invite(body: _Body) -> Invite:
    if len(body.swarm_key) not in (0, 32):
        raise WireError("wrong swarm key")
    addresses = tuple(f"{place}/p2p/{body.peer}" for place in body.places)
    for place, address in zip(body.places, addresses, strict=True):
        if parse(place).peer is not None:
            raise AddressError(f"{place!r} names two peers")
        place_of(address)
    return Invite(addresses, body.origin, body.swarm_key)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"groove/invite/1\0" + body).digest()[:_CHECK_BYTES]


def worth_telling(addresses: Sequence[str]) -> list[str]:
    """Of a node's addresses those that a guest may reach it at: from afar first, loopback last."""
    places: list[tuple[int, str]] = []
    for address in dict.fromkeys(addresses):
        place: Place = place_of(address)
        places.append((-int(place.reach) - bool(isinstance(place.host, str)), address))
    return [address for _, address in sorted(places, key=lambda each: each[0])][:ADDRESSES_MAX]
