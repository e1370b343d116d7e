"""Hashes of large files, taken once per file as it lies on the disk.

Hashing 90 MB takes as long as loading the model in it. What a hash guards against is a file that
was damaged, cut short or replaced; each of these changes its size, its inode or its times, and the
time of change cannot be set by a program. So a hash is trusted while all of these stand. It is no
guard against one who may write here: they could write another manifest as well. `prepare` reads
the files anew each time, and so finds what a failing disk changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(paths: Sequence[Path], ledger: Path) -> list[str]:
    """The hashes of these files; the ledger remembers them until a file changes.

    A ledger that cannot be read is begun anew, and one that cannot be written costs time only.
    Raises OSError if a file cannot be read.
    """
    known = _read(ledger)
    out: list[str] = []
    fresh: dict[str, Any] = {}
    for path in paths:
        key, seen = str(path.absolute()), _seen(path)
        entry = known.get(key)
        if isinstance(entry, dict) and entry.get("seen") == seen and _is_hash(entry.get("sha256")):
            out.append(entry["sha256"])
            continue
        digest = sha256(path)
        out.append(digest)
        if _seen(path) == seen:  # else it was written to while we read it
            fresh[key] = {"seen": seen, "sha256": digest}
    if fresh:
        with contextlib.suppress(OSError):  # of a folder that is not ours to write
            _write(ledger, {**known, **fresh})
    return out


def _seen(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _read(ledger: Path) -> dict[str, Any]:
    try:
        found = json.loads(ledger.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(ledger: Path, entries: dict[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=ledger.parent, prefix=f".{ledger.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file, indent=1, sort_keys=True)
        Path(name).replace(ledger)  # not synced: what is lost is counted again
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
