"""Which of peers' bundles are kept when not all can be: pinned ones, then those used last.

When a bundle was used last stands in the times of its file, so there is no record that could
disagree with the disk. A pin is the owner's word on a leaf: its bundle is kept though the leaf was
archived or went from its origin's table, and makes room for no other. Only a retraction ends it.
Own bundles are not on this shelf: they are kept for as long as their leaf may be revived.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gossip.bundle_files import BundleFiles
from leaves.bundle import Hex32
from leaves.model import LeafId

from .errors import OwnerError
from .foreign import Known
from .home import PRIVATE_FILE, write_atomic

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE = "pins.json"
LOCK_FILE = "pins.lock"
PINS_MAX = 10_000


class Pin(Struct, frozen=True, forbid_unknown_fields=True):
    """A leaf that the owner wants kept, and its bundles as of when the leaf was last there."""

    origin: Hex32
    leaf: LeafId
    name: str
    roots: tuple[Hex32, ...]


class PinsError(OwnerError):
    """The owner's pins cannot be read or changed."""


class Shelf:
    """Peers' bundles of one home."""

    def __init__(self, home: Path, files: BundleFiles) -> None:
        self._path = home / FILE
        self._files = files

    @classmethod
    def of(cls, app: App) -> Shelf:
        return cls(app.home, app.bundles.files)

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned, by origin and leaf. Raises PinsError if the file is damaged."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Pin, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, ValueError, RecursionError) as problem:
            raise PinsError(
                f"{self._path} cannot be read: {problem}",
                unchanged="It was left as it is; until it is mended nothing counts as pinned.",
                next_step="Move it aside, and pin again what is to stay: `groove-node leaf pin`.",
            ) from None

    def _pins(self) -> tuple[Pin, ...]:
        """The same for the running node, which must go on, and for which no pin outweighs a
        retraction: a damaged file holds none."""
        try:
            return self.pins()
        except PinsError as problem:
            log.error("pins not heeded reason=%s", problem)
            return ()

    def is_pinned(self, known: Known) -> bool:
        return any(_is_of(pin, known.leaf.origin, known.leaf.leaf) for pin in self.pins())

    def pin(self, known: Known) -> None:
        """Keep a leaf's bundles from now on; those that are not here yet, once they are."""
        leaf = known.leaf
        with self._turn():
            others = [pin for pin in self.pins() if not _is_of(pin, leaf.origin, leaf.leaf)]
            if len(others) >= PINS_MAX:
                raise PinsError(
                    f"{PINS_MAX:,} leaves are pinned already",
                    unchanged="Nothing was pinned.",
                    next_step="`groove-node leaf unpin` lets one go.",
                )
            self._write([*others, Pin(leaf.origin, leaf.leaf, known.name, _roots(known))])

    def unpin(self, origin: str, leaf: LeafId | None) -> bool:
        """Let a leaf's bundles go, or all of an origin's (None); False if none was pinned."""
        with self._turn():
            pins = self._pins()
            kept = [pin for pin in pins if not _is_of(pin, origin, leaf)]
            if len(kept) < len(pins):
                self._write(kept)
            return len(kept) < len(pins)

    def pinned_roots(self, present: Collection[Known]) -> set[str]:
        """The bundles that stay. present: the leaves that are known now, whose bundles may be
        others than when they were pinned."""
        now = {(known.leaf.origin, known.leaf.leaf): known for known in present}
        with self._turn():
            pins = self._pins()
            renewed = [
                msgspec.structs.replace(pin, roots=_roots(known), name=known.name)
                if (known := now.get((pin.origin, pin.leaf))) and known.leaf.root
                else pin
                for pin in pins
            ]
            if renewed != list(pins):
                self._write(renewed)
        return {root for pin in renewed for root in pin.roots}

    def used(self, root: str) -> None:
        """A bundle has just been of use."""
        self._files.touch(bytes.fromhex(root))

    def oldest_first(self, roots: Iterable[str]) -> list[str]:
        """Bundles in the order in which they make room: the one used longest ago comes first."""
        return sorted(roots, key=lambda root: (self._last_used(root), root))

    def _last_used(self, root: str) -> float:
        try:
            return self._files.path(bytes.fromhex(root)).stat().st_mtime
        except FileNotFoundError:
            return 0.0  # only begun

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A command and the running node change pins one after the other: each writes all that it
        has read. Falls with the process; held for as long as a small file takes to be written."""
        fd = os.open(self._path.with_name(LOCK_FILE), os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, pins: Iterable[Pin]) -> None:
        ordered = sorted(pins, key=lambda pin: (pin.origin, pin.leaf))
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(ordered)))


def _is_of(pin: Pin, origin: str, leaf: LeafId | None) -> bool:
    return pin.origin == origin and leaf in (None, pin.leaf)


def _roots(known: Known) -> tuple[str, ...]:
    control = known.detail.get("control_root", "")
    return tuple(root for root in (known.leaf.root, control) if root)
