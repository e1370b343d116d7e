"""Leaves whose adapter is of another chassis than the one in use: set aside until trained anew.

Which chassis that is takes a look at all its weights, so the round that has looked writes the tag
down for those who only route and show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from leaves.model import Leaf

from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

FILE = "chassis.json"


class InUse(msgspec.Struct, frozen=True):
    """The chassis of the last round that trained. configured: as groove.toml named it."""

    configured: str
    tag: str


def remember(app: App) -> str:
    """Note which chassis is in use and return its tag; opens the chassis."""
    now = InUse(app.config.training.chassis, app.chassis.tag8.hex())
    if _read(app) != now:
        write_atomic(app.home / FILE, msgspec.json.encode(now))
    return now.tag


def tag(app: App) -> str | None:
    """The tag of the chassis in use, if a round has seen it; opens nothing."""
    known = _read(app)
    if known is None or known.configured != app.config.training.chassis:
        return None
    return known.tag


def of_another(leaf: Leaf, chassis: str | None) -> bool:
    """True if a leaf's adapter cannot sit on this chassis; False where nobody knows which it is."""
    return leaf.adapter is not None and chassis is not None and leaf.adapter.chassis != chassis


def _read(app: App) -> InUse | None:
    try:
        return msgspec.json.decode((app.home / FILE).read_bytes(), type=InUse)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # no round has trained here, or the next one writes it anew
