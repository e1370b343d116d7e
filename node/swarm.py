"""The key of a private swarm: whoever has it can connect, and nobody else can.

It lies in keys/swarm.key, as 64 hexadecimal digits, and not in groove.toml, which people show to
each other. A node reads it at its start. Without one it belongs to the swarm that is open to all.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

from .errors import OwnerError
from .home import check_private, private_dir, write_atomic

FILE: Final = "swarm.key"


class SwarmKeyError(OwnerError):
    """The swarm key cannot be used."""

    exit_code = 2


def load(home: Path) -> str:
    """The key, "" if there is none. Raises SwarmKeyError, WideOpenError."""
    path = _path(home)
    if not path.exists():
        return ""
    check_private(path)
    data = path.read_bytes()
    key = key_in(data)
    if not key:
        raise SwarmKeyError(
            f"{path}: expected 64 hexadecimal digits, found {len(data.strip())} characters",
            unchanged="Nothing was dialled: without the key it would be another swarm.",
            next_step="Join again by an invitation of this swarm; or remove the file, to belong "
            "to the swarm that is open to all.",
        )
    return key


def key_in(data: bytes) -> str:
    """The key in the bytes of such a file; "" if they are none."""
    text = data.decode("ascii", "replace").strip().lower()
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else ""


def store(home: Path, key: str) -> bool:
    """Belong to the swarm of this key, or with "" to the open one; True if that is a change."""
    if not re.fullmatch(r"[0-9a-f]{64}|", key):
        raise ValueError(f"a swarm key has 64 hexadecimal digits, not {len(key)} characters")
    path = _path(home)
    try:
        before = load(home)
    except SwarmKeyError:
        before = "damaged"
    if before == key:
        return False
    if key:
        private_dir(path.parent)
        write_atomic(path, key.encode() + b"\n")
    else:
        path.unlink(missing_ok=True)
    return True


def make() -> str:
    """A key that nobody can guess."""
    return secrets.token_hex(32)


def _path(home: Path) -> Path:
    return home / "keys" / FILE
