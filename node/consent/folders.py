"""Project folders that the owner named: what may be named, and what lies inside.

A folder is compared as what it is on disk, part by part: `/work/app` does not hold `/work/app2`,
and a link that leads out of a folder does not lead to a place inside it. What a transcript says of
its folder is a stranger's word, so whatever cannot be understood lies nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from node.errors import OwnerError
from node.home import home_path


class FolderError(OwnerError):
    """This folder cannot be allowed or withdrawn."""


def resolved(folder: str | os.PathLike[str]) -> Path | None:
    """The folder itself, links followed; None if this names no absolute place."""
    try:
        path = Path(folder).expanduser()
        return Path(os.path.realpath(path)) if path.is_absolute() else None
    except (ValueError, RuntimeError, OSError):  # a NUL, half a surrogate, a ~user nobody knows
        return None


def inside(folder: Path, allowed: Iterable[Path]) -> bool:
    """True if a resolved folder is one of the allowed ones, or lies in one."""
    return any(folder.is_relative_to(each) for each in allowed)


def named(folder: str | os.PathLike[str]) -> Path:
    """A folder that the owner typed, resolved; a relative one starts here. Raises FolderError."""
    text = str(folder)
    found = resolved(text if text.startswith("~") else Path(text).absolute()) if text else None
    if found is None:
        raise _refused(f"{text!r} names no folder")
    return found


def project_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder that the owner allows, resolved.

    Raises FolderError for `/`, the user's home and whatever holds it, and for GROOVE_HOME. A list
    with an entry that holds every project is no list any more, and nobody means it: it is what a
    shell makes of `--folder ~ /x`. So it is refused; a second question would be answered with yes.
    """
    found = named(folder)
    if found == Path(found.anchor):
        raise _refused(f"{found} is the root of all folders, not a project")
    owners = resolved("~")
    if owners is not None and owners.is_relative_to(found):
        raise _refused(f"{found} holds your whole home, not one project")
    if found == resolved(home_path()):
        raise _refused(f"{found} is where the node keeps its own files, not a project")
    return found


def not_inside_of(folders: Iterable[Path], allowed: Iterable[Path]) -> None:
    """Raise FolderError if one of the folders lies inside an allowed one.

    Taking it off a list that holds its parent would not stop its capture, and nobody would know.
    """
    allowed = list(allowed)
    for folder in folders:
        if holder := next((each for each in allowed if folder.is_relative_to(each)), None):
            raise FolderError(
                f"{folder} lies inside {holder}, which is allowed whole",
                unchanged="Nothing was changed.",
                next_step=f"Withdraw {holder}, and allow those of its folders that may stay.",
            )


def _refused(what: str) -> FolderError:
    return FolderError(
        what,
        unchanged="Nothing was changed.",
        next_step="Name the folder of each project that may be captured.",
    )
