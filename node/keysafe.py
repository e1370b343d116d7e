"""The one file that a copy of the keys is: sealed under a passphrase, readable in ten years.

    {"format": "groove-keys", "version": 1, …how the passphrase becomes a key…, "sealed": …}

All but the last field is readable, and vouched for by the seal. The file may be anybody's, so what
it asks of this machine's memory is bounded before it is granted.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from gossip.keys import doc_is_signed, origin_of, private_key, public_bytes
from gossip.wire import HOUR_S, KeyDoc, WireError, decode

from . import swarm
from .errors import OwnerError
from .keyfiles import MOMENT_MAX

FILE_BYTES_MAX: Final = 64 << 10
PASSPHRASE_CHARS_MIN: Final = 10
PASSPHRASE_CHARS_MAX: Final = 1024
# scrypt with r = 8 takes 2^log2_n KiB: 128 MiB, and a third of a second a guess, as it is written.
LOG2_N: Final = 17
_LOG2_N_MAX: Final = 18

Seed = Annotated[bytes, Meta(min_length=32, max_length=32)]
Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]+\Z", max_length=64)]  # `$` takes a final newline


class SafeError(OwnerError):
    """An export of keys cannot be used."""


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be read without the passphrase."""

    format: Literal["groove-keys"] = "groove-keys"
    version: Literal[1] = 1
    origin: Hex
    holds: Literal["all", "root"]
    made: Annotated[float, Meta(ge=0, le=MOMENT_MAX)]  # Unix seconds
    kdf: Literal["scrypt"] = "scrypt"
    log2_n: Annotated[int, Meta(ge=10, le=_LOG2_N_MAX)]
    r: Literal[8] = 8
    p: Literal[1] = 1
    salt: Hex
    cipher: Literal["chacha20-poly1305"] = "chacha20-poly1305"
    nonce: Hex


class Secrets(Struct, frozen=True, forbid_unknown_fields=True):
    """What a copy holds: all keys, or the root key alone."""

    root: Seed | None = None  # None: it had been taken out before
    op: Seed | None = None
    transport: Seed | None = None
    doc: Annotated[bytes, Meta(max_length=4096)] = b""  # the root key's word for the op key
    swarm: Annotated[bytes, Meta(max_length=4096)] = b""  # of a private swarm, as its file is

    def __repr__(self) -> str:  # so that no traceback and no log ever shows one
        return "Secrets(…)"

    def key_doc(self) -> KeyDoc | None:
        """Raises SafeError if the parts do not belong together."""
        if self.op is None and self.transport is None and not self.doc:
            return None
        try:
            doc = decode(self.doc, KeyDoc)
        except WireError as problem:
            raise _no_sense(str(problem)) from None
        if doc.not_after_h * HOUR_S > MOMENT_MAX:
            raise _no_sense("the document's end is not a date")
        if self.op is None or self.transport is None or not doc_is_signed(doc):
            raise _no_sense("a part is missing")
        if public_bytes(private_key(self.op)) != doc.op:
            raise _no_sense("the op key is not the document's")
        if self.root is not None and public_bytes(private_key(self.root)) != doc.root:
            raise _no_sense("the root key is not the document's")
        return doc


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    header: Header
    sealed: Annotated[bytes, Meta(max_length=FILE_BYTES_MAX)]


def origin_in(kept: Secrets) -> bytes:
    """The origin that the keys speak for. Raises SafeError."""
    doc = kept.key_doc()
    if doc is not None:
        return origin_of(doc)
    if kept.root is None:
        raise _no_sense("it holds no key")
    return hashlib.sha256(public_bytes(private_key(kept.root))).digest()


def check_passphrase(passphrase: str) -> None:
    """Raises SafeError for one that can be guessed in an afternoon."""
    if not PASSPHRASE_CHARS_MIN <= len(passphrase) <= PASSPHRASE_CHARS_MAX:
        raise SafeError(
            f"a passphrase of {len(passphrase)} characters; expected {PASSPHRASE_CHARS_MIN} to "
            f"{PASSPHRASE_CHARS_MAX:,}",
            unchanged="Nothing was written.",
            next_step="Take several words: whoever has the file can try as often as they like.",
        )


def seal(kept: Secrets, passphrase: str, made: float, log2_n: int = LOG2_N) -> bytes:
    """Return the file. Raises SafeError for a passphrase that is too short."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    check_passphrase(passphrase)
    header = Header(
        origin=origin_in(kept).hex(),
        holds="all" if kept.doc else "root",
        made=made,
        log2_n=log2_n,
        salt=secrets.token_hex(16),
        nonce=secrets.token_hex(12),
    )
    cipher = ChaCha20Poly1305(_stretched(passphrase, header))
    nonce, plain = bytes.fromhex(header.nonce), msgspec.json.encode(kept)
    sealed = cipher.encrypt(nonce, plain, _vouched(header))
    return msgspec.json.format(msgspec.json.encode(_File(header, sealed)), indent=1) + b"\n"


def header_of(blob: bytes) -> Header:
    """What a file says of itself, which nothing vouches for yet. Raises SafeError."""
    return _parsed(blob).header


def unseal(blob: bytes, passphrase: str) -> tuple[Header, Secrets]:
    """Return what a file holds. Raises SafeError."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    file = _parsed(blob)
    header = file.header
    cipher = ChaCha20Poly1305(_stretched(passphrase, header))
    try:
        plain = cipher.decrypt(bytes.fromhex(header.nonce), file.sealed, _vouched(header))
    except InvalidTag:
        raise SafeError(
            "the passphrase is not the file's, or the file was changed",
            unchanged="Nothing was changed.",
            next_step="Try again: capitals, blanks and the layout of the keyboard count.",
        ) from None
    try:
        kept = msgspec.json.decode(plain, type=Secrets)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _no_sense("what was sealed are no keys") from None
    if kept.swarm and not swarm.key_in(kept.swarm):
        raise _no_sense("its swarm key is none")
    if origin_in(kept).hex() != header.origin:
        raise _no_sense("its keys are of another origin than it says")
    return header, kept


def _parsed(blob: bytes) -> _File:
    if len(blob) > FILE_BYTES_MAX:
        raise _no_sense(f"longer than {FILE_BYTES_MAX:,} bytes")
    try:
        file = msgspec.json.decode(blob, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        # msgspec names the field and what was expected, never the value.
        raise _no_sense(str(problem)) from None
    header = file.header
    if len(header.salt) != 32 or len(header.nonce) != 24 or len(header.origin) != 64:
        raise _no_sense("a field of the wrong length")
    return file


def _no_sense(why: str) -> SafeError:
    return SafeError(
        f"this is no export of keys, or a damaged one: {why}",
        unchanged="Nothing was changed.",
        next_step="`groove-node keys export FILE` writes one; try another copy.",
    )


def _vouched(header: Header) -> bytes:
    return b"groove/keys/1\0" + msgspec.json.encode(header)


def _stretched(passphrase: str, header: Header) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    # Keyboards write one letter in several ways; this one is common to all.
    text = unicodedata.normalize("NFKC", passphrase).encode("utf-8", "surrogatepass")
    salt = bytes.fromhex(header.salt)
    return Scrypt(salt=salt, length=32, n=1 << header.log2_n, r=header.r, p=header.p).derive(text)
