"""What the tests of consent share: a home beside its state, and going back to an old backup."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.consent import ConsentManager, witness
from node.consent.receipts import Signer

USER = "f8e7d6c5b4a3f8e7d6c5b4a3f8e7d6c5"


class HandClock:
    """Stands still until a test moves it."""

    time_s = 1_777_204_800.0  # 2026-04-26 12:00 UTC

    def now_s(self) -> float:
        return self.time_s


class Home:
    """One home. The state outside it lies where the run keeps all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = HandClock()

    @property
    def db(self) -> Path:
        return self.folder / "consent.db"

    @property
    def flag(self) -> bool:
        return (self.folder / "consent.flag").exists()

    def open(self, signer: Signer | None = None) -> ConsentManager:
        return ConsentManager(self.db, clock=self.clock, signer=signer)

    def back_up(self, name: str = "backup") -> Path:
        """Copy the home as a backup does, from outside; nobody may have it open."""
        copy = self.folder.with_name(f"{self.folder.name}-{name}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        return copy

    def restore_empty(self) -> None:
        """Begin anew in the same place."""
        shutil.rmtree(self.folder)
        self.folder.mkdir(mode=0o700)

    def restore(self, copy: Path) -> None:
        """Put a backup in the home's place."""
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)


@contextmanager
def read_only_state() -> Iterator[None]:
    """Nothing can be noted or removed outside the home: as on a disk that became read-only."""
    unlink = Path.unlink

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    def unlink_elsewhere(path: Path, *args: Any, **how: Any) -> None:
        (refuse if path.name.startswith("consent-") else unlink)(path, *args, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(witness, "write_atomic", refuse)
        patched.setattr(Path, "unlink", unlink_elsewhere)
        yield
