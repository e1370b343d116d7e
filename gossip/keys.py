"""Ed25519 keys as values: the root key that is an origin, and the key that signs for one epoch.

The root key signs only `KeyDoc`s, so it can lie in a safe; the operating key signs every night and
can be replaced. Neither is the transport's key. Where keys lie on disk is the node's affair.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .wire import KeyDoc, encode

_DOC_DOMAIN = b"groove/keydoc/1\0"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a replica signs with: the operating key of one epoch, and the root key's word for it."""

    op: Ed25519PrivateKey
    doc: KeyDoc

    def __post_init__(self) -> None:
        if public_bytes(self.op) != self.doc.op:
            raise ValueError(f"key document of epoch {self.doc.epoch} speaks of another key")
        if not doc_is_signed(self.doc):
            raise ValueError(f"key document of epoch {self.doc.epoch} is not signed by its root")

    @property
    def origin(self) -> bytes:
        return origin_of(self.doc)


def private_key(seed: bytes) -> Ed25519PrivateKey:
    """Return the key of a 32-byte seed, which is all that a key file holds."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def origin_of(doc: KeyDoc) -> bytes:
    """Return the origin a key document belongs to: the SHA-256 of its root key."""
    return hashlib.sha256(doc.root).digest()


def issue(
    root: Ed25519PrivateKey,
    op_public: bytes,
    *,
    epoch: int,
    not_before_h: int,
    not_after_h: int,
    revoked: tuple[int, ...] = (),
) -> KeyDoc:
    """Sign the document that makes a key the operating key of an epoch."""
    body = (public_bytes(root), epoch, op_public, not_before_h, not_after_h, revoked, 0)
    return KeyDoc(*body, sig=root.sign(_DOC_DOMAIN + encode(body)))


def doc_is_signed(doc: KeyDoc) -> bool:
    """True if the root key named in a document signed it."""
    body = (
        *(doc.root, doc.epoch, doc.op, doc.not_before_h, doc.not_after_h),
        *(doc.revoked, doc.pow),
    )
    return verify(doc.root, doc.sig, _DOC_DOMAIN + encode(body))


@lru_cache(maxsize=8192)  # the same head comes from several peers; a verdict on bytes never changes
def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """True if the signature is that key's over that message. About 90 µs when not remembered."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
