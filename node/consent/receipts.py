"""Proof of what the owner agreed to: one receipt for each decision, chained and signed.

A receipt is canonical JSON. It names the receipt before it by hash, so none can be taken out or
changed without the later ones showing it, and the node's operational key signs it. The signature is
over a prefix of its own, which no message of the mesh begins with: neither can pass for the other.
Receipts stay on this machine; folders stand in them as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from gossip.keys import Keys

DOMAIN: Final = b"groove/consent-receipt/1\0"
DECISION, SUSPENSION = "decision", "suspension"


class Decision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a receipt says. `previous` is the hash of the receipt before it, empty for the first."""

    number: int
    user_id: str
    event: str  # a decision of the owner, or a suspension by the node
    opted_in: bool
    version: str  # of the terms
    scopes: tuple[str, ...]
    sources: tuple[str, ...]
    folders: tuple[str, ...]
    at: float  # Unix seconds
    metadata: dict[str, Any]
    disclosure: str  # SHA-256 of the text that was shown, in hex; empty if none was
    previous: str
    # How the store stood, if what it held last was not in force: a decision that was lost stands
    # between this one and the one before, and its number may be missing.
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as it is stored."""

    body: str
    hash: str
    signature: bytes = b""
    key_doc: bytes = b""  # the root key's word for the key that signed
    signed_at: float | None = None  # the decision's time, unless it was signed later


class Signer(Protocol):
    """Signs receipts."""

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """Return a signature, and the document of the key that made it."""
        ...


class KeySigner:
    """Signs with the operational key of this node."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        from gossip.wire import encode

        return self._keys.op.sign(message), encode(self._keys.doc)


def write(decision: Decision) -> Receipt:
    """The receipt of a decision, not signed yet."""
    body = msgspec.json.encode(decision, order="sorted").decode()
    return Receipt(body, hash_of(body))


def hash_of(body: str) -> str:
    return hashlib.sha256(message(body)).hexdigest()


def message(body: str) -> bytes:
    """What is hashed and signed."""
    return DOMAIN + body.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=64)  # asked for at every text that is captured, and a receipt never changes
def read(body: str, hash_: str) -> Decision | None:
    """What a receipt says, or None if it was altered."""
    if hash_of(body) != hash_:
        return None
    try:
        return msgspec.json.decode(body, type=Decision)
    except (msgspec.DecodeError, UnicodeError):
        return None


def problems(receipts: Sequence[Receipt], origin: bytes | None = None) -> list[str]:
    """What is wrong with a chain of receipts, oldest first; nothing if each proves itself.

    origin: of the node that must have signed. Receipts without a signature are no problem here.
    """
    found: list[str] = []
    previous, number, certain = "", 0, True
    for place, receipt in enumerate(receipts, start=1):
        decision = read(receipt.body, receipt.hash)
        if decision is None:
            found.append(f"receipt {place}: its text was altered")
            previous, number, certain = receipt.hash, number + 1, False
            continue
        name = f"receipt {decision.number}"
        if decision.previous != previous:
            found.append(f"{name}: it does not follow the one before it; one is missing or altered")
        if decision.number <= number:
            found.append(f"{name}: it comes after number {number}")
        if certain and decision.number > number + 1 and not decision.broken:
            found.append(f"{name}: {_numbers(number, decision.number)}, and nothing says why")
        if receipt.signature and (reason := _bad_signature(receipt, origin)):
            found.append(f"{name}: {reason}")
        previous, number, certain = receipt.hash, decision.number, True
    return found


def missing(receipts: Sequence[Receipt]) -> dict[int, str]:
    """What receipts, by number, say of those that are not here before them: which, and why."""
    told: dict[int, str] = {}
    number = 0
    for receipt in receipts:
        decision = read(receipt.body, receipt.hash)
        if decision is None:
            number += 1
            continue
        if decision.broken and decision.number > number + 1:
            told[decision.number] = f"{_numbers(number, decision.number)}: {decision.broken}"
        number = decision.number
    return told


def _numbers(before: int, after: int) -> str:
    """The numbers between two that follow each other in the store."""
    first, last = before + 1, after - 1
    if first == last:
        return f"receipt {first} is missing"
    return f"receipts {first}-{last} are missing"


def _bad_signature(receipt: Receipt, origin: bytes | None) -> str:
    from gossip.keys import doc_is_signed, origin_of, verify
    from gossip.wire import KeyDoc, WireError, decode

    try:
        doc = decode(receipt.key_doc, KeyDoc)
    except WireError:
        return "the document of its key is damaged"
    if origin is not None and origin_of(doc) != origin:
        return "another node signed it"
    if not doc_is_signed(doc) or not verify(doc.op, receipt.signature, message(receipt.body)):
        return "its signature is wrong"
    return ""
