"""The node's keys on disk: the root that is its origin, the key that signs, the key it dials with.

The root key is needed only for key epochs and emergencies; the op key signs heads and
retractions; the transport key names the libp2p host and never appears in a record.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from gossip.keys import Keys

from .errors import OwnerError
from .home import check_private, private_dir, write_atomic

_NAMES = ("root", "op", "transport")


class IdentityError(OwnerError):
    """The key files cannot be used."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Private keys, 32 bytes each."""

    keys: Keys
    transport: bytes

    @property
    def origin(self) -> bytes:
        return self.keys.origin


def load_or_create(home: Path) -> Identity:
    """Read GROOVE_HOME/keys, or make it on the first start.

    Raises IdentityError if a file is damaged or some are missing, and the home's own error if one
    is readable by others.
    """
    folder = private_dir(home / "keys")
    missing = [name for name in _NAMES if not (folder / f"{name}.key").exists()]
    if missing and len(missing) < len(_NAMES):
        raise IdentityError(
            f"{folder}: {', '.join(f'{name}.key' for name in missing)} missing",
            unchanged="No new key was made: it would have made this node a stranger to its peers.",
            next_step="Put the file back from a backup, or move the whole folder aside to start "
            "as a new origin.",
        )
    if missing:
        for name in _NAMES:
            write_atomic(folder / f"{name}.key", secrets.token_hex(32).encode() + b"\n")
    root, op, transport = (_read(folder / f"{name}.key") for name in _NAMES)
    return Identity(Keys.from_private(root, op), transport)


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


def umask() -> None:
    """Everything this process creates is the owner's alone."""
    os.umask(0o077)
