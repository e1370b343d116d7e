"""The file that a picture goes to: nothing that this command did not make is ever replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from node.errors import MisuseError, OwnerError
from node.home import write_atomic

from . import page, png
from .atlas import Atlas

HEAD_BYTES = 1024  # of a file, in which the sign of its maker stands
MAKERS = {".html": page.MADE_BY, ".png": png.MADE_BY}


class TargetError(OwnerError):
    """The file cannot be written, or holds something of the owner's."""


def check(path: Path, *, force: bool, texts: bool, growth: bool) -> None:
    """Refuse what could not be written in the end, before anything long is begun."""
    nothing = "No file was written."
    if path.suffix not in MAKERS:
        raise MisuseError(
            f"{path} ends in {path.suffix or 'nothing'!r}, expected .html or .png",
            unchanged=nothing,
            next_step="Name a file such as map.html.",
        )
    if texts and path.suffix == ".png":
        raise MisuseError(
            "--texts goes with .html alone: a .png has no room for texts", unchanged=nothing
        )
    if growth and path.suffix == ".html":
        raise MisuseError(
            "--growth goes with .png alone: an .html always has it", unchanged=nothing
        )
    if not path.parent.is_dir():
        raise TargetError(
            f"there is no folder {path.parent}", unchanged=nothing, next_step="Make it first."
        )
    if path.is_dir():
        raise TargetError(f"{path} is a folder", unchanged=nothing, next_step="Name a file in it.")
    if path.exists() and not force:
        with path.open("rb") as file:
            ours = MAKERS[path.suffix] in file.read(HEAD_BYTES)
        if not ours:
            raise TargetError(
                f"{path} is there already, and no map made it",
                unchanged="It was left as it is.",
                next_step="Name another file, or add --force to replace it.",
            )


def write(path: Path, atlas: Atlas, *, growth: bool = False) -> int:
    """Draw and write the file, readable by its owner alone; returns its bytes."""
    draw: dict[str, Callable[[], bytes]] = {
        ".html": lambda: page.page(atlas),
        ".png": lambda: png.png(atlas, growth=growth),
    }
    data = draw[path.suffix]()
    write_atomic(path, data)
    return len(data)
