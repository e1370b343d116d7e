"""The only door between bytes and a signed value: `seal` going out, `open_` coming in.

A `Signed` value exists only if its signature was checked over the very payload that was received,
under a prefix that names its type: a signed head can never pass for a signed retraction. Reading
what an envelope claims, to find the key that it must be opened with, gives a `Sealed` value, which
nothing accepts as true.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .keys import verify
from .wire import Env, Head, Retract, WireError, decode, encode

T = TypeVar("T", Head, Retract)
TYPES: Final[dict[type[Head] | type[Retract], str]] = {Head: "head/1", Retract: "retract/1"}


@dataclass(frozen=True, slots=True)
class Sealed(Generic[T]):
    """What an envelope claims, before its signature was checked."""

    value: T
    env: Env
    id: bytes


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """A value, the envelope that proves it, and the SHA-256 of the envelope."""

    value: T
    env: Env
    id: bytes


def read(env: Env, kind: type[T]) -> Sealed[T]:
    """Parse an envelope without believing it. Raises WireError."""
    if env.type != TYPES[kind]:
        raise WireError("wrong type")
    return Sealed(decode(env.payload, kind), env, id_of(env))


def open_(sealed: Sealed[T], public: bytes) -> Signed[T]:
    """Check the signature over the payload as received. Raises WireError."""
    env = sealed.env
    if not verify(public, env.sig, _message(env.type, env.payload)):
        raise WireError("bad signature")
    return Signed(sealed.value, env, sealed.id)


def seal(value: T, key: Ed25519PrivateKey) -> Signed[T]:
    """Sign a value."""
    type_, payload = TYPES[type(value)], encode(value)
    env = Env(type_, payload, key.sign(_message(type_, payload)))
    return Signed(value, env, id_of(env))


def id_of(env: Env) -> bytes:
    """Return the hash by which an envelope is known."""
    return hashlib.sha256(encode(env)).digest()


def _message(type_: str, payload: bytes) -> bytes:
    return b"groove/" + type_.encode() + b"\0" + payload
