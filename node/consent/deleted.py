"""What is remembered outside the home of its last full deletion, so that an undone one is noticed.

A backup that is restored brings back what was deleted since. The home cannot know; so a file in
GROOVE_STATE, beside the one of `witness`, says when everything was deleted last, from whose
home, and how many records went: no text. A home of the same owner whose own list of deletions lacks
that one is from before it. It is off, and nothing can be granted there until it is deleted again.

The file is written once the order is in the home and before the first record goes: a home that
holds the order is in the middle of the deletion, and the next command finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from node.errors import OwnerError
from node.home import USER_ID_FILE, private_dir, remembered_path, write_atomic

log = logging.getLogger(__name__)

MARKER: Final = "deletion.pending"
RECEIPTS: Final = "deletions.jsonl"


class UndoneDeletionError(OwnerError):
    """This home holds what was deleted, so nothing can be granted in it."""


class Deletion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One full deletion. The file."""

    at: float  # when it was ordered, Unix seconds to the millisecond, as its receipt has it
    user_id: str  # of the home: another home in the same place holds other data
    records: int


def remember(home: Path, deletion: Deletion) -> None:
    """Note a deletion outside. A failure is logged: what was ordered is deleted all the same."""
    path = _path(home)
    try:
        private_dir(path.parent)
        write_atomic(path, msgspec.json.encode(deletion) + b"\n")
    except (OSError, OwnerError) as problem:
        log.warning("deletion not noted outside the home reason=%s", type(problem).__name__)


def undone(home: Path) -> Deletion | None:
    """The last full deletion, if this home is from before it."""
    path = _path(home)
    try:
        last = msgspec.json.decode(path.read_bytes(), type=Deletion)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as problem:
        log.warning("damaged file=%s reason=%s", path, type(problem).__name__)
        return None
    if last.user_id != _user_id(home) or (home / MARKER).exists():
        return None
    return None if any(each.get("at") == last.at for each in _receipts(home)) else last


def refuse_if_undone(home: Path) -> None:
    """Raise UndoneDeletionError if this home is from before its last full deletion."""
    if undone(home) is not None:
        raise UndoneDeletionError(
            f"{home} is from before the last deletion of everything: a backup brought it back",
            unchanged="Nothing was granted. What was deleted is here again, and stays unused.",
            next_step="`groove-node data --delete` deletes it again; then grant.",
        )


def receipts_in(home: Path) -> list[dict[str, Any]]:
    """The receipts of the home's deletions, oldest first."""
    path = home / RECEIPTS
    if not path.exists():
        return []
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line]


def _receipts(home: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from receipts_in(home)
    except (OSError, msgspec.DecodeError) as problem:
        log.warning("damaged file=%s reason=%s", home / RECEIPTS, type(problem).__name__)


def _user_id(home: Path) -> str:
    try:
        return (home / USER_ID_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _path(home: Path) -> Path:
    return remembered_path(home, "deletion")
