"""How the files under GROOVE_HOME/keys change: all of them or none, whenever a process is killed.

Two files belong together (a key, and the root key's word for it), and no file system replaces two
at once. So a change is written down whole in one file first; from then on it holds, and whoever
reads the keys next carries out what a killed process left of it. Readers and writers take turns by
a lock on the folder itself, which falls with its process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from .errors import OwnerError
from .home import check_private, sync_dir, write_atomic

ROOT, OP, TRANSPORT = "root.key", "op.key", "transport.key"
DOC = "op.doc"  # the root key's word for the op key
SWARM = "swarm.key"  # of a private swarm; not every node has one
AWAY = "root.away"  # says that the root key was taken out, and is not lost
BACKUP = "backup.json"  # when the keys were last exported; nothing of them is in it
RESTORED = "restored.json"  # these keys came from an export, so there may be later ones
CHANGE = "change.json"  # a change that holds, and may not be carried out yet
CHANGE_BYTES_MAX = 64 << 10
MOMENT_MAX: Final = 253_402_300_799  # Unix seconds at the end of the year 9999
_NAMES: Final = frozenset((ROOT, OP, TRANSPORT, DOC, SWARM, AWAY, BACKUP, RESTORED))


class IdentityError(OwnerError):
    """The key files cannot be used."""

    exit_code = 2


class DamagedChangeError(IdentityError):
    """A change was begun, and what it was cannot be read any more."""


class Change(Struct, frozen=True, forbid_unknown_fields=True):
    """What the folder is to be like: these files with these bytes, and those not there."""

    files: dict[str, bytes]
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := ({*self.files, *self.gone} - _NAMES):
            raise ValueError(f"not a file of the keys: {sorted(unknown)[0]!r}")


class Backup(Struct, frozen=True):
    """When the keys were last exported or restored, and of which epoch they were."""

    at: Annotated[float, Meta(ge=0, le=MOMENT_MAX)]  # Unix seconds
    epoch: Annotated[int, Meta(ge=0, le=255)]
    root_only: bool = False


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Read the files as they belong together; what a killed process left undone is done first."""
    while True:
        with _turn(folder, fcntl.LOCK_SH):
            if not (folder / CHANGE).exists():
                yield
                return
        with _turn(folder, fcntl.LOCK_EX):
            _carry_out(folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Have the folder alone, with nothing left undone in it."""
    with _turn(folder, fcntl.LOCK_EX):
        _carry_out(folder)
        yield


def commit(folder: Path, change: Change) -> None:
    """Change the files; once this has begun to write them it is carried out, by whomever."""
    with writing(folder):
        put(folder, change)


def put(folder: Path, change: Change) -> None:
    """As `commit`, for who is `writing` already."""
    write_atomic(folder / CHANGE, msgspec.json.encode(change))
    _carry_out(folder)


def replace(folder: Path, change: Change) -> None:
    """As `commit`, also over a change that cannot be read any more: that is set aside."""
    with _turn(folder, fcntl.LOCK_EX):
        try:
            _carry_out(folder)
        except DamagedChangeError:
            (folder / CHANGE).rename(folder / f"{CHANGE}.{uuid.uuid4().hex[:8]}.aside")
        put(folder, change)


def found(folder: Path, change: Change) -> None:
    """Make a folder of keys where there is none, whole or not at all; by one process at a time."""
    for left in _staged(folder):  # by a process that was killed
        shutil.rmtree(left)
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    staged.mkdir(mode=0o700)
    with _turn(staged, fcntl.LOCK_EX):  # or `sweep` would take it for a killed process's
        try:
            write_atomic(staged / CHANGE, msgspec.json.encode(change))
            staged.rename(folder)  # over an empty one at most
        except OSError:
            shutil.rmtree(staged)
            raise
    sync_dir(folder.parent)
    with reading(folder):
        return


def sweep(folder: Path) -> None:
    """Remove the secrets that a process left which was killed while it made the folder."""
    for left in _staged(folder):
        # One that is at work has the lock, or nothing in its folder yet; another may sweep too.
        with suppress(OSError), _turn(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if any(left.iterdir()):
                shutil.rmtree(left)


def _staged(folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f".{folder.name}.*.tmp")


def _carry_out(folder: Path) -> None:
    """Do what the written change says, again if it was done in part. Under the exclusive lock."""
    for name in (ROOT, OP, TRANSPORT, CHANGE):  # what a killed process left half written is secret
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink()
    path = folder / CHANGE
    if not path.exists():
        return
    check_private(path)
    try:
        with path.open("rb") as file:
            change = msgspec.json.decode(file.read(CHANGE_BYTES_MAX), type=Change)
    except (msgspec.DecodeError, ValueError):
        raise DamagedChangeError(
            f"{path} is damaged: a change of the keys was begun and cannot be finished",
            unchanged="The keys were left as they are.",
            next_step="Put the folder back from a backup, or `groove-node keys restore --replace` "
            "an export.",
        ) from None
    for name, data in change.files.items():
        write_atomic(folder / name, data)
    for name in change.gone:
        (folder / name).unlink(missing_ok=True)
    sync_dir(folder)
    path.unlink()
    sync_dir(folder)


@contextmanager
def _turn(folder: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
