"""What a running node read at its start, and what was changed since: it goes on with what it read.

The run file holds a stamp of it, so that every command can tell the owner for as long as it is so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import swarm
from .config import FILE
from .errors import OwnerError

if TYPE_CHECKING:
    from .app import App

AGAIN = "end it and start it again"


def stamp(home: Path, swarm_key: str, listen: str) -> dict[str, str]:
    """For the run file. swarm_key: the one in force; of a key only a short hash is written."""
    return {"config": _config(home), "swarm": fingerprint(swarm_key), "listen": listen}


def fingerprint(swarm_key: str) -> str:
    """Eight bytes by which to tell two swarms apart, in hex; "" of the one that is open to all."""
    if not swarm_key:
        return ""
    return hashlib.sha256(b"groove swarm fingerprint\0" + swarm_key.encode()).hexdigest()[:16]


def swarm_changed(app: App, node: Mapping[str, Any] | None) -> bool:
    """True if the node that runs speaks another swarm than it will after its next start."""
    read = (node or {}).get("read", {})
    key = swarm.load(app.home) or app.config.mesh.transport.swarm_key
    return "swarm" in read and read["swarm"] != fingerprint(key)


def changes(app: App, node: Mapping[str, Any] | None) -> list[str]:
    """What the running node does not know yet, a line each."""
    read = (node or {}).get("read", {})
    found = []
    if "config" in read and read["config"] != _config(app.home):
        found.append(f"{FILE} was changed since the node started: {AGAIN}")
    try:
        if swarm_changed(app, node):
            found.append(f"the swarm was changed since the node started: {AGAIN}")
    except OwnerError as problem:
        found.append(f"{problem.what}: the node will not start again with it")
    return found


def _config(home: Path) -> str:
    try:
        return hashlib.sha256((home / FILE).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""  # none, or none to be read: the defaults
