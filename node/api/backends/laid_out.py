"""Adapters as folders that a server reads, each under its bundle's digest, for as long as needed.

They lie in the owner's home, not in the cache: an adapter knows what its sessions said, and goes
when its leaf does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from leaves.peft_export import CONFIG, TENSORS, write_peft
from node.home import private_dir
from node.leaf_export import DIGEST_CHARS, NoExportError, taken, with_new_folder

if TYPE_CHECKING:
    from node.app import App

FOLDER = "exports"


class LaidOut:
    """The folders of one home. Its functions wait on the disk: they are for a thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._root = app.home / FOLDER

    def folder(self, bundle: str) -> Path:
        """The folder with this bundle's adapter in PEFT's layout; raises NoExportError."""
        place = self.path(bundle)
        if (place / CONFIG).is_file() and (place / TENSORS).is_file():
            return place
        found = taken(self._app, bundle)
        private_dir(self._root)
        if place.exists():  # what was left of one that somebody began to remove
            shutil.rmtree(place)
        base = str(self._app.chassis.path)
        try:
            with_new_folder(
                place, lambda to: write_peft(found.bundle, found.adapter.tensors, to, base)
            )
        except NoExportError:
            if not (place / CONFIG).is_file():  # else another process was first: it is the same
                raise
        return place

    def path(self, bundle: str) -> Path:
        return self._root / bundle[:DIGEST_CHARS]

    def let_go(self, bundle: str) -> None:
        shutil.rmtree(self.path(bundle), ignore_errors=True)

    def sweep(self) -> set[str]:
        """Remove the folders of bundles that are here no more; the digests of those that are."""
        bundles = self._app.home / "bundles"
        here = {path.name[:DIGEST_CHARS] for path in bundles.glob("*.bundle")}
        for place in self._root.glob("*"):
            if place.name not in here:
                shutil.rmtree(place, ignore_errors=True)
        return here
