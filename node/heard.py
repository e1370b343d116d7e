"""When this node last heard the mesh out: what may be routed to after a long silence.

A peer takes a leaf back by a word that somebody has to hear. A machine that was off for weeks has a
routing table from before, and commands use that with no node running. So the table keeps peers'
leaves only as long as their heads live, and they come back once peers have been listened to.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from leaves.model import Instant

from .home import write_atomic

FILE = "mesh.heard"
SILENT_S = 7 * 86_400  # the longest lifetime of a head, `gossip.config`: none from before is valid


def at(home: Path) -> Instant | None:
    """When peers were last heard out; None if never, or nobody knows."""
    with suppress(OSError, ValueError):
        return Instant(int((home / FILE).read_text()))
    return None


def note(home: Path, now: Instant) -> None:
    """Peers were heard out."""
    write_atomic(home / FILE, f"{now}\n".encode())


def silent(home: Path, now: Instant) -> bool:
    """True if what peers offered must not be routed to before they are heard again.

    A node that never heard anybody has nothing of theirs, and a clock that was set back tells
    nothing.
    """
    heard = at(home)
    return heard is not None and now - heard > SILENT_S
