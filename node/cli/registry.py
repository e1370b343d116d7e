"""The registry: what lies there, and bringing it up to what may be published."""

from __future__ import annotations

from node import registry as registries
from node import show
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, registry

COLUMNS = ("LEAF", "VERSION", "SIZE", "CHASSIS", "ORIGIN")


@registry.command(name="push")
def registry_push(*, json: AsJson = False) -> None:
    """Offer there what may be published now, and take back what may not; a round does it too."""
    out = Terminal(json)
    done = registries.push_home(App.open())
    if done is None:
        raise _none()
    pushed, where = done
    result = {"where": where, "added": pushed.added, "removed": pushed.removed}
    out.done({**result, "offered": pushed.offered}, pushed.told(where))


@registry.command(name="list")
def registry_list(*, json: AsJson = False) -> None:
    """What is offered there, by this node and by others."""
    out = Terminal(json)
    app = App.open()
    found = registries.open_registry(app.config.registry)
    if found is None:
        raise _none()
    entries = found.index().leaves
    own = app.origin.hex()
    names = {str(leaf.id): leaf.name for leaf in app.forests.forest()}
    rows = [
        (
            names.get(entry.leaf, entry.leaf) if entry.origin == own else entry.leaf,
            str(entry.version),
            show.size(entry.size_bytes),
            entry.chassis,
            "this node" if entry.origin == own else f"{entry.origin[:12]}…",
        )
        for entry in entries
    ]
    out.table(COLUMNS, rows)
    out.done(
        {"where": found.where, "leaves": list(entries)}, f"{len(rows)} leaves in {found.where}"
    )


def _none() -> MisuseError:
    return MisuseError(
        "there is no registry",
        unchanged="Nothing was sent.",
        next_step="`groove-node config set registry.url` takes a folder, or s3://BUCKET/PREFIX.",
    )
