"""A file outside the home that appears whole or not at all, and leaves no text behind when killed.

While it is written it has no name (O_TMPFILE), so a killed process leaves nothing. Where that
cannot be, or where it must replace a file, it has a name for a while; a note in the corpus' folder
says so first, and the next opening of the corpus removes what the note names.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from node.home import sync_dir

log = logging.getLogger(__name__)

_NOTE = ".export-"


@contextmanager
def whole_file(target: Path, notes: Path) -> Iterator[BinaryIO]:
    """Give a file to write to; on leaving well it is durable under its name, mode 0600.

    Raises OSError, and leaves an earlier file of that name as it was.
    """
    with contextlib.ExitStack() as undo:
        fd = _nameless(target.parent)
        fresh = None
        if fd is None:
            fresh = undo.enter_context(_noted(target, notes))
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        out = undo.enter_context(os.fdopen(fd, "wb"))
        yield out
        out.flush()
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        if fresh is None:
            try:
                _name(fd, target)
            except FileExistsError:
                fresh = undo.enter_context(_noted(target, notes))
                _name(fd, fresh)
        if fresh is not None:
            fresh.replace(target)
        sync_dir(target.parent)


def sweep(notes: Path) -> int:
    """Remove what killed exports left; the files of running ones stay. Returns how many."""
    removed = 0
    for note in notes.glob(f"{_NOTE}*"):
        with contextlib.suppress(FileNotFoundError), note.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            left = Path(os.fsdecode(file.read()))
            if left.name.startswith(".") and left.suffix == ".tmp":
                try:
                    left.unlink()
                    removed += 1
                except (FileNotFoundError, NotADirectoryError):
                    pass  # it was killed before the file was made
                except OSError as problem:  # the next opening tries again
                    log.warning("export not removed reason=%s", problem.strerror)
                    continue
            note.unlink()
    return removed


def _nameless(folder: Path) -> int | None:
    """A file without a name in a folder, or None where there is no such thing."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:  # the same folder under a name says what is really wrong
        return None


def _name(fd: int, path: Path) -> None:
    # link(2) would link the symbolic link in /proc; linkat(2) follows it, and needs a folder's fd.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


@contextmanager
def _noted(target: Path, notes: Path) -> Iterator[Path]:
    """A name beside the target, on record for as long as it may be there."""
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    note = notes / f"{_NOTE}{uuid.uuid4().hex}"
    hidden = note.with_name(f".new{note.name}")
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # held while this process lives: that is how `sweep` knows
        os.write(fd, os.fsencode(fresh))
        os.fsync(fd)
        hidden.replace(note)
        sync_dir(notes)
        yield fresh
    finally:
        for path in (fresh, hidden, note):
            path.unlink(missing_ok=True)
        os.close(fd)
