"""The command line: `groove-node`. Alone prints; every command is a few lines over `app.App`."""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import msgspec
from cyclopts import App as Command
from cyclopts import Parameter

from . import asking, orders, overview, rights, show
from .app import App, prepare_models
from .errors import MisuseError, OwnerError
from .terminal import Terminal
from .told import Told

HELP = """A node that learns from your own AI work and shares what it learned, peer to peer.

First steps: `init`, then `consent grant capture train`, `import pydoc libp2p networkx`, `round`,
`tree`.
Everything stays on this machine until you grant `publish`. GROOVE_HOME (default ~/.groove) is
yours; GROOVE_CACHE holds converted models and can be deleted.
"""

command = Command(
    name="groove-node",
    help=HELP,
    version=lambda: version("groove-node"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what an interruption leaves
)
consent = Command(name="consent", help="What this node may do. Everything is off by default.")
leaf = Command(name="leaf", help="One leaf: show it, its history, its name, its retraction.")
peers = Command(name="peers", help="Who this node is connected to, and who it dials.")
for group in (consent, leaf, peers):
    command.command(group)

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document.")]
AsJsonLines = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON document per event.")
]
Yes = Annotated[bool, Parameter(name="--yes", negative="", help="Do not ask.")]
ScopeName = Literal["capture", "train", "publish", "fetch"]


@command.command
def init(
    *,
    models_only: Annotated[bool, Parameter(negative="", help="Only convert the models.")] = False,
    json: AsJson = False,
) -> None:
    """Make the home and its keys, and convert the packaged models once (about a minute)."""
    out = Terminal(json)
    ready = prepare_models(out.progress)
    if models_only:
        out.done(ready)
        return
    app = App.open(create=True)
    data = {"home": str(app.home), "user_id": app.user_id, "origin": app.origin.hex(), **ready}
    out.facts([(key, str(value)) for key, value in data.items()])
    out.done(data, "Nothing is captured until you allow it: `groove-node consent grant capture`.")


@command.command
def run(
    *,
    listen: Annotated[
        str | None,
        Parameter(help="TCP multiaddr; else that of groove.toml, else /ip4/0.0.0.0/tcp/4021."),
    ] = None,
    json: AsJsonLines = False,
) -> None:
    """Run the node in the foreground: mesh, fetching, retractions. Ctrl-C stops it."""
    out = Terminal(json)
    app = App.open()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    from .daemon import serve

    def tell(told: Told) -> None:
        out.stream(told)
        off = [scope for scope in ("publish", "fetch") if not app.allows(scope)]
        if told.event == "listening" and off:
            out.note(f"off until you grant it: {', '.join(off)}; peers' records are passed on")

    serve(app, listen, tell)


@command.command
def status(*, json: AsJson = False) -> None:
    """What is allowed, captured and grown; how far the next leaf is; what the node is doing."""
    out = Terminal(json)
    data = overview.status(App.open())
    out.facts(show.status_facts(data))
    out.done(data)


@command.command(name="round")
def round_(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print what would be done, and change nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Embed, cluster, detect, train, evaluate, deploy. A killed round is taken up again."""
    out = Terminal(json)
    app = App.open()
    if dry_run:
        plan = app.plan(out.progress)
        out.table(("WHAT", "LEAF", "WHY"), [*plan.transitions, *plan.trainings])
        out.done(msgspec.to_builtins(plan), plan.note)
        return
    row = app.round(out.event, out.progress)
    out.done({"round": row.id, "events": out.events})


@command.command(name="import")
def import_(
    source: Literal["pydoc", "jsonl"],
    what: Annotated[
        Sequence[str], Parameter(help="pydoc: package names; jsonl: files (.jsonl, .jsonl.gz).")
    ],
    /,
    *,
    share: Annotated[
        str, Parameter(help="Only this part of the groups (modules), by their hash: 0.0:0.5.")
    ] = "0:1",
    part: Annotated[str, Parameter(help="Of those only this part of the sessions.")] = "0:1",
    dry_run: Annotated[
        bool, Parameter(negative="", help="Count what would be imported, and write nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Import sessions: `pydoc` (docstrings of installed packages) or `jsonl` (prompt, completion).

    A second import of the same adds nothing.
    """
    out = Terminal(json)
    app = App.open()
    result = rights.import_sessions(app, source, what, share, part, dry_run, out.progress)
    out.facts([(key.replace("_", " "), f"{value:,}") for key, value in result.items()])
    out.done(result)


@consent.command(name="show")
def consent_show(*, json: AsJson = False) -> None:
    """The scopes in force."""
    out = Terminal(json)
    app = App.open()
    scopes = app.consent.scopes(app.user_id)
    out.table(("SCOPE", "", "MEANING"), show.scope_rows(scopes))
    out.done({"scopes": sorted(scopes)})


@consent.command(name="grant")
def consent_grant(
    scopes: Sequence[ScopeName], /, *, yes: Yes = False, json: AsJson = False
) -> None:
    """Allow one or more of capture, train, publish, fetch, after showing what each means."""
    out = Terminal(json)
    app = App.open()
    if not yes:
        out.line(show.DISCLOSURE)
        if not out.ask(f"Allow {', '.join(scopes)}?"):
            out.done({"granted": False}, "Nothing was changed.")
            return
    allowed = rights.grant(app, scopes)
    out.done({"scopes": allowed}, f"allowed: {', '.join(allowed)}")


@consent.command(name="revoke")
def consent_revoke(scopes: Sequence[ScopeName] = (), /, *, json: AsJson = False) -> None:
    """Withdraw scopes, or all of them. Nothing is deleted: that is `data --delete`."""
    out = Terminal(json)
    left = rights.revoke(App.open(), scopes)
    out.done({"scopes": left}, f"still allowed: {', '.join(left) or 'nothing'}")


@consent.command(name="log")
def consent_log(*, json: AsJson = False) -> None:
    """Every decision, with its date and the version of the terms."""
    out = Terminal(json)
    records = rights.consent_log(App.open())
    out.table(("WHEN", "TERMS", "ALLOWED"), [(r["at"], r["version"], r["scopes"]) for r in records])
    out.done({"records": records})


@command.command
def data(
    *,
    stats: Annotated[bool, Parameter(negative="", help="What is stored.")] = False,
    export: Annotated[Path | None, Parameter(help="Write all records to this JSONL file.")] = None,
    delete: Annotated[
        bool, Parameter(negative="", help="Delete everything, and retract what was trained on it.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Your data: what is there, a copy of it, or its deletion."""
    out = Terminal(json)
    app = App.open()
    if stats + (export is not None) + delete > 1:
        raise MisuseError("one of --stats, --export and --delete at a time; nothing was done")
    if export is not None:
        count = rights.export(app, export)
        out.done({"exported": count, "file": str(export)}, f"{count:,} records in {export}")
    elif delete:
        if not yes and not out.ask("Delete all captured data, and retract every leaf made of it?"):
            out.done({"deleted": False}, "Nothing was deleted.")
            return
        result = rights.delete(app)
        out.facts([(key.replace("_", " "), str(value)) for key, value in result.items()])
        out.done(result)
    else:
        summary = rights.stats(app)
        out.facts(show.stats_facts(summary))
        out.done(summary)


@command.command
def tree(
    *, at: Annotated[str | None, Parameter(help="A day, 2026-11-22.")] = None, json: AsJson = False
) -> None:
    """The leaves of this node, and those of peers."""
    out = Terminal(json)
    app = App.open()
    forest, foreign = overview.tree(app, at)
    columns, rows = show.tree_rows(forest, foreign, app.now())
    if rows:
        out.table(columns, rows)
    leaves = [show.as_json(x) for x in forest.live()]
    document = {"leaves": leaves, "foreign": [show.foreign_json(k) for k in foreign]}
    out.done(document, "" if rows else f"no leaves {'yet' if at is None else f'on {at}'}")


@leaf.command(name="show")
def leaf_show(name: str, /, *, json: AsJson = False) -> None:
    """One leaf, own or foreign, by name, id or start of an id."""
    out = Terminal(json)
    facts, details = overview.describe(App.open(), name)
    out.facts(facts)
    out.done(details)


@leaf.command(name="history")
def leaf_history(name: str, /, *, json: AsJson = False) -> None:
    """Every change of one own leaf, with its reason."""
    out = Terminal(json)
    entries = overview.history(App.open(), name)
    out.table(("WHEN", "ROUND", "WHAT", "STAGE", "WHY"), [tuple(e.values()) for e in entries])
    out.done({"history": entries})


@leaf.command(name="rename")
def leaf_rename(name: str, to: str, /, *, json: AsJson = False) -> None:
    """Give an own leaf another name; re-clustering keeps it."""
    out = Terminal(json)
    renamed = orders.rename(App.open(), name, to)
    out.done({"leaf_id": renamed.id, "name": renamed.name}, f"{renamed.id[:8]} is now {to}")


@leaf.command(name="retract")
def leaf_retract(name: str, /, *, yes: Yes = False, json: AsJson = False) -> None:
    """Withdraw an own leaf from all peers, for ever."""
    out = Terminal(json)
    app = App.open()
    found = overview.own_leaf(app, name)
    if not yes and not out.ask(f"Retract {found.name}? Peers will drop it for ever."):
        out.done({"retracted": None}, "Nothing was retracted.")
        return
    retracted = orders.retract(app, found.id)
    told = "now" if overview.running(app) else "when the node runs: `groove-node run`"
    out.done({"retracted": retracted}, f"retracted {found.name}; peers are told {told}")


@command.command
def route(
    prompt: str,
    /,
    *,
    explain: Annotated[bool, Parameter(negative="", help="Show the candidates.")] = False,
    answer: Annotated[
        str | None, Parameter(help="A known answer: its loss under leaf and chassis is measured.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Which leaf would serve a prompt, and how sure the router is."""
    out = Terminal(json)
    result = asking.route(App.open(), prompt, answer, out.progress)
    out.facts(show.route_facts(result))
    if explain:
        out.table(("LEAF", "LEVEL", "COSINE", "GATE", "PASSES"), show.candidate_rows(result))
    out.done(result)


@peers.command(name="list")
def peers_list(*, json: AsJson = False) -> None:
    """This node's addresses, connected peers and known addresses."""
    out = Terminal(json)
    result = overview.peers(App.open())
    out.table(("PEER", "ADDRESS", "STATE", "IN", "OUT"), show.peer_rows(result))
    note = (
        "" if result["running"] else "no node runs here, so nobody is connected: `groove-node run`"
    )
    out.done(result, note)


@peers.command(name="add")
def peers_add(addresses: Sequence[str], /, *, json: AsJson = False) -> None:
    """Remember peers' addresses (multiaddrs ending in /p2p/PEER) and dial them."""
    out = Terminal(json)
    app = App.open()
    orders.add_peers(app, addresses)
    when = "dialled now" if overview.running(app) else "dialled when the node runs"
    out.done({"added": list(addresses)}, f"remembered, and {when}")


@command.command
def fetch(name: str, /, *, json: AsJson = False) -> None:
    """Get a foreign leaf's bundle now, check it and evaluate it on your own sessions."""
    out = Terminal(json)
    result = orders.fetch(App.open(), name, out.progress)
    out.facts([(key.replace("_", " "), str(value)) for key, value in result.items()])
    out.done(result)


@command.command
def doctor(*, json: AsJson = False) -> None:
    """Check this machine, the home, the models and the mesh; say what to do about each finding."""
    out = Terminal(json)
    from .doctor import examine

    findings = examine()
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
    from .demo import Demo, Plan

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    try:
        command(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as problem:
        words = " ".join(("groove-node", *(problem.command_chain or ())))
        Terminal.error(
            MisuseError(
                str(problem),
                unchanged="Nothing was done.",
                next_step=f"`{words} --help` shows what it takes.",
            )
        )
        sys.exit(2)
    except OwnerError as problem:
        Terminal.error(problem)
        sys.exit(problem.exit_code)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(0)
    except (OSError, sqlite3.OperationalError) as problem:  # a full disk, a read-only home
        Terminal.error(
            OwnerError(
                str(problem),
                unchanged="What was written before stands, and is whole.",
                next_step="Mend the file or the disk, and run the command again; "
                "`groove-node doctor` looks at both.",
            )
        )
        sys.exit(1)
    except KeyboardInterrupt:
        Terminal.interrupted()
        sys.exit(130)


if __name__ == "__main__":
    main()
