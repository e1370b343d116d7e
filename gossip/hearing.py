"""What a peer says, sorted by origin and believed as far as it is signed.

Nothing here decides what counts: that is `origin`. Here it is only made sure that the origin, and
nobody else, has said it. `Verifying` is called before each signature is checked: that is the cost
that counts, and who calls may stop it by raising.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import origin as rules
from .envelope import Sealed, Signed, open_, read
from .keys import doc_is_signed, origin_of
from .origin import Claims, Proof
from .wire import Fork, Have, Head, KeyDoc, Retract, Standing, WireError

Verifying = Callable[[], None]


@dataclass(slots=True)
class Said:
    """What one message says of one origin, not verified."""

    keys: list[KeyDoc] = field(default_factory=list)
    retracts: list[Sealed[Retract]] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    heads: list[Sealed[Head]] = field(default_factory=list)


def by_origin(have: Have) -> dict[bytes, Said]:
    """Sort a message by origin, in the order in which they are named. Raises WireError."""
    said: dict[bytes, Said] = {}
    for doc in have.keys:
        said.setdefault(origin_of(doc), Said()).keys.append(doc)
    for env in have.retracts:
        retract = read(env, Retract)
        said.setdefault(retract.value.origin, Said()).retracts.append(retract)
    for fork in have.forks:
        said.setdefault(read(fork.a, Head).value.origin, Said()).forks.append(fork)
    for env in have.heads:
        head = read(env, Head)
        said.setdefault(head.value.origin, Said()).heads.append(head)
    return said


def heard(claims: Claims, said: Said, verifying: Verifying = lambda: None) -> Claims:
    """Return claims with the keys, retractions and forks that are new. Raises WireError.

    What is known already is not verified again: a signature costs 90 µs, a comparison none.
    """
    for doc in said.keys:
        if claims.keys.get(doc.epoch) != doc and claims.standing is not Standing.DEAD:
            verifying()
            claims = claims.with_key(open_key(doc, claims.origin))
    for sealed in said.retracts:
        known = claims.retracts.get(sealed.value.leaf)
        if claims.standing is not Standing.DEAD and (known is None or sealed.id < known.id):
            verifying()
            claims = claims.with_retract(open_retract(sealed, claims))
    for fork in said.forks:
        a, b = read(fork.a, Head), read(fork.b, Head)
        if (
            claims.standing is Standing.SOUND
            and a.value.epoch == claims.epoch
            and rules.conflict(a, b)
        ):
            verifying()
            verifying()
            claims = claims.with_fork(Proof(open_head(a, claims), open_head(b, claims)))
    return claims


def open_key(doc: KeyDoc, origin: bytes) -> KeyDoc:
    """Return the document if its origin's root key signed it. Raises WireError."""
    if origin_of(doc) != origin:
        raise WireError("key of another origin")
    if not doc_is_signed(doc):
        raise WireError("bad signature")
    return doc


def open_head(sealed: Sealed[Head], claims: Claims) -> Signed[Head]:
    """Verify a head by the key of its epoch. Raises WireError."""
    return open_(sealed, _key(claims, sealed.value.origin, sealed.value.epoch))


def open_retract(sealed: Sealed[Retract], claims: Claims) -> Signed[Retract]:
    """Verify a retraction by the key that it names. Raises WireError."""
    return open_(sealed, _key(claims, sealed.value.origin, sealed.value.epoch))


def open_fork(fork: Fork, claims: Claims) -> Proof:
    """Verify both heads of a proof. Raises WireError."""
    return Proof(open_head(read(fork.a, Head), claims), open_head(read(fork.b, Head), claims))


def _key(claims: Claims, origin: bytes, epoch: int) -> bytes:
    public = claims.public_key(epoch)
    if public is None or origin != claims.origin:
        raise WireError("record without its key")
    return public
