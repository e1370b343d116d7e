"""The node's keys on disk: the root that is its origin, the key that signs, the key it dials with.

The root key is needed only for key epochs and emergencies; the op key signs heads and
retractions; the transport key names the libp2p host and never appears in a record.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.wire import HOUR_S, KeyDoc, WireError, decode, encode

from .errors import OwnerError
from .home import check_private, private_dir, write_atomic

_NAMES = ("root", "op", "transport")
_DOC = "op.doc"  # the root key's word for the op key
_DOC_YEARS = 10  # an epoch is ended by a new one, long before


class IdentityError(OwnerError):
    """The key files cannot be used."""


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
    files = [*(f"{name}.key" for name in _NAMES), _DOC]
    missing = [name for name in files if not (folder / name).exists()]
    if missing and (folder / _DOC).exists():  # the document is written last
        raise IdentityError(
            f"{folder}: {', '.join(missing)} missing",
            unchanged="No new key was made: it would have made this node a stranger to its peers.",
            next_step="Put the file back from a backup, or move the whole folder aside to start "
            "as a new origin.",
        )
    if missing:
        _create(folder, now_s, secret)
    op, transport = _read(folder / "op.key"), _read(folder / "transport.key")
    try:
        doc = decode((folder / _DOC).read_bytes(), KeyDoc)
        return Identity(Keys(private_key(op), doc), transport)
    except (WireError, ValueError, msgspec.ValidationError) as problem:
        raise IdentityError(
            f"{folder / _DOC} does not fit op.key: {problem}",
            unchanged="The keys were left as they are.",
            next_step="Put the folder back from a backup.",
        ) from None


def _create(folder: Path, now_s: float, secret: Callable[[], bytes]) -> None:
    seeds = {name: secret() for name in _NAMES}
    for name, seed in seeds.items():
        write_atomic(folder / f"{name}.key", seed.hex().encode() + b"\n")
    hour = int(now_s) // HOUR_S
    doc = issue(
        private_key(seeds["root"]),
        public_bytes(private_key(seeds["op"])),
        epoch=1,
        not_before_h=hour - 24,  # a clock a few hours off must not make the first head void
        not_after_h=hour + _DOC_YEARS * 8766,
    )
    write_atomic(folder / _DOC, encode(doc))


def _read(path: Path) -> bytes:
    check_private(path)
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if len(text) != 64 or not all(c in "0123456789abcdef" for c in text):
        raise IdentityError(
            f"{path}: expected 64 hexadecimal digits, found {len(text)} characters",
            unchanged="The file was left as it is.",
            next_step="Put it back from a backup.",
        )
    return bytes.fromhex(text)
