"""Leaves whose adapter is of another chassis than the one in use: set aside until trained anew.

Which chassis that is takes a look at all its weights, so whoever has looked writes the tag down for
those who only route and show. Once groove.toml names another chassis, they look themselves.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from leaves.model import Leaf

from .errors import OwnerError
from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE = "chassis.json"
NONE_FITS = ""  # stands for a chassis that cannot be opened: no adapter sits on it


class InUse(msgspec.Struct, frozen=True):
    """The chassis that was in use when somebody looked. configured: as groove.toml named it."""

    configured: str
    tag: str


def remember(app: App) -> str:
    """Note which chassis is in use and return its tag; opens the chassis."""
    now = InUse(app.config.training.chassis, app.chassis.tag8.hex())
    if _read(app) != now:
        write_atomic(app.home / FILE, msgspec.json.encode(now))
    return now.tag


def tag(app: App) -> str | None:
    """The tag of the chassis in use; None if nothing was ever trained here.

    Opens it only if groove.toml names another one since.
    """
    known = _read(app)
    if known is None:
        return None
    if known.configured == app.config.training.chassis:
        return known.tag
    try:
        return app.chassis.tag8.hex()
    except OwnerError as problem:
        log.warning("chassis not opened, so no adapter is used reason=%s", problem)
        return NONE_FITS


def changed(app: App) -> bool:
    """True if groove.toml names another chassis than when somebody looked last."""
    known = _read(app)
    return known is not None and known.configured != app.config.training.chassis


def of_another(leaf: Leaf, chassis: str | None) -> bool:
    """True if a leaf's adapter cannot sit on this chassis; False where nobody knows which it is."""
    return leaf.adapter is not None and chassis is not None and leaf.adapter.chassis != chassis


def _read(app: App) -> InUse | None:
    try:
        return msgspec.json.decode((app.home / FILE).read_bytes(), type=InUse)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # no round has trained here, or the next one writes it anew
