"""The token that lets programs ask: 256 bits in a file that the owner alone can read.

A running node holds the token in memory and looks at the file again when somebody shows another
one: so a token that was replaced (`groove-node dashboard --new-token`) is void from the first use
of the new one, and no request waits for a disk.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.errors import OwnerError
from node.home import PRIVATE_FILE, check_private, sync_dir, write_atomic

FILE = "api.token"
PREFIX = "groove_"  # so that those who search files for secrets know one when they see it
SECRET_BYTES = 32
AGAIN_S = 1.0  # between two looks at the file: wrong tokens are no way to keep a disk busy
_FORM = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")

InThread = Callable[[Callable[[], str]], Awaitable[str]]


class TokenError(OwnerError):
    """The file with the token cannot be used."""

    exit_code = 2


def drawn() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def read(home: Path) -> str:
    """The token of this home. Raises FileNotFoundError, WideOpenError or TokenError."""
    path = home / FILE
    check_private(path)
    token = path.read_text(encoding="ascii", errors="replace").strip()
    if not _FORM.fullmatch(token):
        raise TokenError(
            f"{path} holds no token: {PREFIX!r} and 43 characters were expected",
            unchanged="Nothing was read or changed.",
            next_step="`groove-node dashboard --new-token` writes a new one.",
        )
    return token


def read_or_make(home: Path) -> str:
    """The token of this home, drawn at the first call."""
    try:
        return read(home)
    except FileNotFoundError:
        pass
    fresh = home / f".{FILE}.{uuid.uuid4().hex}.tmp"
    write_atomic(fresh, drawn().encode() + b"\n", PRIVATE_FILE)
    try:
        os.link(fresh, home / FILE)  # fails if another process was first: then its token stands
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    sync_dir(home)
    return read(home)


def replace(home: Path) -> str:
    """A new token in place of the old one."""
    token = drawn()
    write_atomic(home / FILE, token.encode() + b"\n", PRIVATE_FILE)
    return token


class Token:
    """The token as a running node holds it."""

    def __init__(self, home: Path, in_thread: InThread, now: Callable[[], float]) -> None:
        """Reads the file, or makes it: for the start of a node, not for its loop.

        now: seconds that never go back, such as `trio.current_time`.
        """
        self._home = home
        self._in_thread = in_thread
        self._now = now
        self.value = read_or_make(home)
        self._digest = _digest(self.value)
        self._looked_s = -AGAIN_S
        self.generation = 0  # grows with each new token: what was let in by an older one is out

    async def is_it(self, given: str) -> bool:
        """Whether this is the token; the same time is taken for any that is not."""
        if self._equals(given):
            return True
        if not _FORM.fullmatch(given) or self._now() - self._looked_s < AGAIN_S:
            return False
        self._looked_s = self._now()
        try:
            value = await self._in_thread(lambda: read(self._home))
        except (OSError, OwnerError):
            return False  # the one that was read when all was well stands
        if value != self.value:
            self.value, self._digest = value, _digest(value)
            self.generation += 1
        return self._equals(given)

    def _equals(self, given: str) -> bool:
        return hmac.compare_digest(_digest(given), self._digest)


def _digest(token: str) -> bytes:
    # Of equal length whatever was given, so that the comparison tells nothing of it.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
