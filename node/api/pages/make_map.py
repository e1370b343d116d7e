"""`python -m node.api.pages.make_map HOME [--texts]`: makes the map, in a child of the node.

UMAP of tens of thousands of sessions takes minutes and all of a core: neither the loop nor the
pages wait for it. What is written is as private as the vectors it was made of, and goes with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from node.app import App
from node.errors import OwnerError
from node.home import private_dir, write_atomic
from node.pictures.atlas import gather
from node.pictures.page import note, parts

from .map_page import FILE, FOLDER, Made, state_of


def make(app: App, *, texts: bool = False) -> Path:
    """Write the map of the home's sessions; returns where. Raises OwnerError if there are none."""
    state = state_of(app.home)
    atlas = gather(app, texts=texts)
    pieces = parts(atlas)
    made = Made(
        state=state,
        at=atlas.made,
        texts=texts,
        note=note(atlas),
        method=atlas.dots.method,
        sessions=atlas.standing.sessions,
        first=pieces["first"],
        last=pieces["last"],
        tree=pieces["tree"],
        growth=pieces["growth"],
        data=pieces["data"],
    )
    path = private_dir(app.home / FOLDER) / FILE
    write_atomic(path, msgspec.json.encode(made))
    return path


def main(arguments: list[str]) -> int:
    """Exit code 0 if it was made; else what is wrong is the last line of standard error."""
    try:
        make(App(Path(arguments[0])), texts="--texts" in arguments[1:])
    except OwnerError as problem:
        sys.stderr.write(f"{problem.what}. {problem.next_step}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
