"""The node itself: made, run, looked at, tried out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from node import consenting, crash, keyfiles, next_import, overview, show, show_night, show_peers
from node.app import App
from node.consent import disclosure
from node.errors import MisuseError
from node.logfile import log_to
from node.preparing import prepare_models
from node.terminal import Terminal
from node.told import Told

from .base import AsJson, AsJsonLines, command

ROOT_KEY = (
    "The root key in `keys` is who you are in the mesh. If it is lost, a stolen key can never be "
    "replaced, nor a fork of your node healed; there is no second one. Keep a copy: "
    "`groove-node keys export FILE`, with a passphrase, on another machine."
)


@command.command
def init(
    *,
    models_only: Annotated[bool, Parameter(negative="", help="Only convert the models.")] = False,
    json: AsJson = False,
) -> None:
    """Make the home and its keys, and convert the packaged models once (about a minute).

    The packaged encoder is left as it is where groove.toml names another. Keep a copy of the keys
    on another machine: who loses the root key can never replace a stolen key nor heal a fork.
    """
    out = Terminal(json)
    ready = prepare_models(out.progress)
    if models_only:
        out.done(ready)
        return
    app = App.open(create=True)
    data = {"home": str(app.home), "user_id": app.user_id, "origin": app.origin.hex(), **ready}
    out.facts([(key, str(value)) for key, value in data.items()])
    if not (app.home / "keys" / keyfiles.BACKUP).exists():
        out.line(ROOT_KEY)
    out.done(data, "Nothing is captured until you allow it: `groove-node consent grant capture`.")


@command.command
def run(
    *,
    listen: Annotated[
        str | None,
        Parameter(help="TCP multiaddr; else that of groove.toml, else /ip4/0.0.0.0/tcp/4021."),
    ] = None,
    verbose: Annotated[
        bool, Parameter(negative="", help="Log to stderr, not to GROOVE_HOME/node.log.")
    ] = False,
    json: AsJsonLines = False,
) -> None:
    """Run the node in the foreground: mesh, fetching, retractions. Ctrl-C stops it."""
    out = Terminal(json)
    app = App.open()
    log_to(app.home, verbose=verbose)
    crash.watch(app.home)
    from node.daemon import serve

    def tell(told: Told) -> None:
        out.stream(told)
        if told.event in ("listening", "suspended"):
            stands = consenting.standing(app)
            if stands["undone"] or stands["standing"] in ("terms changed", "restored"):
                out.note(f"allowed: {disclosure.standing_line(stands)}")
        off = [scope for scope in ("publish", "fetch") if not app.allows(scope)]
        if told.event == "listening" and off:
            out.note(f"off until you grant it: {', '.join(off)}; peers' records are passed on")

    serve(app, listen, tell)


@command.command
def status(*, json: AsJson = False) -> None:
    """What is allowed, captured and grown; how far the next leaf is; what the node is doing, or why
    it waits and until when; and how its last night was."""
    out = Terminal(json)
    data = overview.status(App.open())
    night = show_night.facts(data["night"], running=data["node"] is not None)
    imports = next_import.facts(data["imports"])
    out.facts([*show.status_facts(data), *imports, *show_peers.status_facts(data), *night])
    out.done(data)


@command.command
def doctor(
    *,
    probe: Annotated[
        bool,
        Parameter(negative="", help="Have the back end answer with an adapter of known effect."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Check this machine, the home, the models, the mesh and the endpoint; say what to do about
    each finding."""
    out = Terminal(json)
    from node.doctor import examine

    findings = examine(probe=probe)
    out.table(("", "CHECK", "FINDING"), [f.row() for f in findings])
    out.done({"findings": [msgspec.to_builtins(f) for f in findings]})
    if any(f.verdict == "bad" for f in findings):
        sys.exit(1)


@command.command
def demo(
    *,
    nodes: Annotated[Literal[1, 3], Parameter(help="1 stops at the matured leaf.")] = 3,
    from_: Annotated[Path | None, Parameter(name="--from", help="JSONL instead of pydoc.")] = None,
    steps: Annotated[int, Parameter(help="Training steps of 8 sessions each.")] = 24,
    folder: Annotated[Path, Parameter(help="Where the nodes' homes go.")] = Path(".demo"),
    config: Annotated[Path | None, Parameter(help="A groove.toml for the nodes.")] = None,
    without: Annotated[str | None, Parameter(help="Leave a step out: the demo must fail.")] = None,
    patience: Annotated[float, Parameter(help="Seconds for something to cross the mesh.")] = 120.0,
) -> None:
    """Three nodes on this machine: capture, grow a leaf, share it, route to it, take it back."""
    out = Terminal(False)
    from node.demo import Demo, Plan

    for given in (from_, config):
        if given is not None and not given.is_file():
            raise MisuseError(f"{given}: no such file; nothing was started")
    if folder.is_dir() and {x.name for x in folder.iterdir()} - {"A", "B", "C"}:
        raise MisuseError(  # for the demo begins by emptying it
            f"{folder} holds other files than a demo's; give a new folder; nothing was removed"
        )
    plan = Plan(folder.resolve(), nodes, from_, steps, config, without, patience)
    if not Demo(plan, out.line).run():
        sys.exit(1)
