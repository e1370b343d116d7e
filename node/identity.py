"""The node's keys on disk: the root that is its origin, the key that signs, the key it dials with.

The root key is needed only for key epochs and emergencies, and may be kept elsewhere; the op key
signs heads and retractions; the transport key names the libp2p host and never appears in a record.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.wire import HOUR_S, KeyDoc, WireError, decode, encode

from . import keyfiles
from .home import check_private, private_dir
from .keyfiles import AWAY, DOC, OP, ROOT, TRANSPORT, IdentityError

__all__ = ["Identity", "IdentityError", "load_or_create"]

_DOC_YEARS = 10  # an epoch is ended by a new one, long before


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node signs with, and the 32-byte seed of the key that it dials with."""

    keys: Keys
    transport: bytes

    @property
    def origin(self) -> bytes:
        return self.keys.origin


def drawn() -> bytes:
    """The seed of a key that nobody can guess."""
    return secrets.token_bytes(32)


def load_or_create(home: Path, now_s: float, secret: Callable[[], bytes] = drawn) -> Identity:
    """Read GROOVE_HOME/keys, or make it on the first start, each key from a 32-byte `secret`.

    Raises IdentityError if a file is damaged or some are missing, WideOpenError if others can
    read one.
    """
    folder = private_dir(home / "keys")
    keyfiles.sweep(folder)
    with keyfiles.reading(folder):
        if not _lacking(folder):
            return _load(folder)
    with keyfiles.writing(folder):  # of two processes that start at once one makes them
        if missing := _lacking(folder):
            if any((folder / name).exists() for name in (ROOT, OP, TRANSPORT, DOC)):
                raise _missing(folder, missing)
            _create(folder, now_s, secret)
        return _load(folder)


def _lacking(folder: Path) -> list[str]:
    wanted = (OP, TRANSPORT, DOC) if (folder / AWAY).exists() else (ROOT, OP, TRANSPORT, DOC)
    return [name for name in wanted if not (folder / name).exists()]


def _missing(folder: Path, names: list[str]) -> IdentityError:
    return IdentityError(
        f"{folder}: {', '.join(names)} missing",
        unchanged="No new key was made: it would have made this node a stranger to its peers.",
        next_step="Put the file back from a backup, or `groove-node keys restore --replace` an "
        "export; or move the whole folder aside to start as a new origin.",
    )


def _load(folder: Path) -> Identity:
    op, transport = read_seed(folder / OP), read_seed(folder / TRANSPORT)
    try:
        doc = decode((folder / DOC).read_bytes(), KeyDoc)
        return Identity(Keys(private_key(op), doc), transport)
    except (WireError, ValueError, msgspec.ValidationError) as problem:
        raise IdentityError(
            f"{folder / DOC} does not fit op.key: {problem}",
            unchanged="The keys were left as they are.",
            next_step="Put the folder back from a backup, or `groove-node keys restore --replace` "
            "an export.",
        ) from None


def _create(folder: Path, now_s: float, secret: Callable[[], bytes]) -> None:
    seeds = {name: secret() for name in (ROOT, OP, TRANSPORT)}
    doc = next_doc(private_key(seeds[ROOT]), seeds[OP], 1, now_s)
    files = {name: seed_file(seed) for name, seed in seeds.items()}
    keyfiles.put(folder, keyfiles.Change({**files, DOC: encode(doc)}))


def next_doc(
    root: Ed25519PrivateKey, op: bytes, epoch: int, now_s: float, revoked: tuple[int, ...] = ()
) -> KeyDoc:
    """The root key's word for the op key of an epoch."""
    hour = int(now_s) // HOUR_S
    return issue(
        root,
        public_bytes(private_key(op)),
        epoch=epoch,
        not_before_h=hour - 24,  # a clock a few hours off must not make the first head void
        not_after_h=hour + _DOC_YEARS * 8766,
        revoked=revoked,
    )


def seed_file(seed: bytes) -> bytes:
    return seed.hex().encode() + b"\n"


def read_seed(path: Path) -> bytes:
    """Read a key file. Raises IdentityError, WideOpenError."""
    check_private(path)
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if len(text) != 64 or not all(c in "0123456789abcdef" for c in text):
        raise IdentityError(
            f"{path}: expected 64 hexadecimal digits, found {len(text)} characters",
            unchanged="The file was left as it is.",
            next_step="Put it back from a backup.",
        )
    return bytes.fromhex(text)
