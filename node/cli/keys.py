"""`keys`: what this node signs with: shown, kept safe, put back, replaced."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App as Command
from cyclopts import Parameter

from node.app import App
from node.errors import MisuseError
from node.home import check_private
from node.terminal import Terminal

from .base import AsJson, Yes, command

if TYPE_CHECKING:
    from node.rekeying import Restored

keys = Command(
    name="keys",
    help="""The keys of this node: a copy of them, and a new one for an old one.

The root key is who you are in the mesh. Without it a stolen key can never be replaced, nor a fork
healed: `keys export` writes a copy, sealed under a passphrase, to keep on another machine.

Example: `groove-node keys export /media/stick/groove.keys`.
""",
)
command.command(keys)

VARIABLE = "GROOVE_PASSPHRASE"
PassphraseFile = Annotated[
    Path | None,
    Parameter(help=f"Its first line is the passphrase; else ${VARIABLE}, else it is asked for."),
]


@keys.command
def show(*, json: AsJson = False) -> None:
    """Origin, epoch, what the mesh makes of the key, where the root key is, the last copy."""
    out = Terminal(json)
    from node import rekeying

    found = rekeying.standing(App.open())
    kept, until = found["exported"], rekeying.moment_of(found["valid_until"])
    out.facts(
        [
            ("origin", found["origin"]),
            ("peer", found["peer"]),
            ("epoch", f"{found['epoch']}, until {until} UTC"),
            ("standing", found["standing"] + rekeying.advice(found)),
            ("root key", found["folder"] if found["root"] == "here" else "kept elsewhere"),
            ("swarm key", "of a private swarm" if found["swarm_key"] else "none: the open mesh"),
            ("last copy", _last_copy(kept, found["epoch"])),
        ]
    )
    out.done(found)


def _last_copy(kept: dict[str, Any] | None, epoch: int) -> str:
    from node.rekeying import moment_of

    if kept is None:
        return "never: `keys export FILE`"
    at = f"{moment_of(kept['at'])} UTC"
    if kept["root_only"]:
        return f"{at}, of the root key alone"
    return at if kept["epoch"] == epoch else f"{at}, with the key of epoch {kept['epoch']}"


@keys.command
def export(
    file: Path,
    /,
    *,
    passphrase_file: PassphraseFile = None,
    root_only: Annotated[
        bool, Parameter(negative="", help="The root key alone, to be kept where nothing runs.")
    ] = False,
    take_out: Annotated[
        bool, Parameter(negative="", help="With --root-only: then remove it from this machine.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Write a copy of the keys to a new file, sealed under a passphrase.

    Whoever has the file and the passphrase is this node. No file is ever overwritten.

    Example: `groove-node keys export /media/stick/groove.keys`.
    """
    out = Terminal(json)
    from node import rekeying

    if take_out and not root_only:
        raise MisuseError("--take-out goes with --root-only", unchanged="Nothing was exported.")
    app, path = App.open(), file.expanduser().absolute()
    passphrase = _passphrase(out, passphrase_file, twice=True)
    rekeying.export(app, path, passphrase, root_only=root_only, take_out=take_out)
    near = " It lies in the home itself: move it to another disk." * path.is_relative_to(app.home)
    gone = " The root key is no longer on this machine." * take_out
    out.done(
        {"file": str(path), "holds": "root" if root_only else "all", "taken_out": take_out},
        f"written to {path}, and read back.{gone}{near} The passphrase is nowhere: keep it.",
    )


@keys.command
def restore(
    file: Path,
    /,
    *,
    passphrase_file: PassphraseFile = None,
    replace: Annotated[
        bool, Parameter(negative="", help="Give the keys that are in the home up for these.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Put the keys of an export into this home: all of them, or none.

    One machine at a time: two nodes with the same keys sign two histories, and peers freeze both.

    Example: `GROOVE_HOME=~/new groove-node keys restore /media/stick/groove.keys`.
    """
    out = Terminal(json)
    from node import rekeying

    app = App.open(create=True)
    here = rekeying.origin_here(app)
    if here and replace and not yes:
        out.note(
            f"The keys of origin {here[:16]}… in {app.home / 'keys'} will be gone for ever unless "
            "you have a copy: its leaves can then never be retracted, and no fork of it healed. "
            "If the file holds another origin, peers' records move aside and consent is off."
        )
        if not out.ask("Replace them?"):
            raise MisuseError("not confirmed: add --yes", unchanged="Nothing was changed.")
    done = rekeying.restore(
        app, file.expanduser(), _passphrase(out, passphrase_file, twice=False), replace=replace
    )
    out.done(
        {"origin": done.origin.hex(), "epoch": done.epoch, "replaced": done.replaced or None},
        _restored_note(done),
    )


def _restored_note(done: Restored) -> str:
    lines = [
        f"origin {done.origin.hex()[:16]}…, epoch {done.epoch}, is this home's now.",
        "Before it signs anything the node asks peers for its own last head, and goes on from "
        "there; alone it signs nothing.",
        "Consent is not in the copy: what was granted is asked again, here, or as soon as peers "
        "show later words of this node.",
        "The machine that had these keys must not run a node with them any more.",
    ]
    return "\n".join(lines)


@keys.command
def rotate(
    *,
    revoke: Annotated[
        bool, Parameter(negative="", help="The key in use was stolen: tell everybody at once.")
    ] = False,
    root_file: Annotated[
        Path | None, Parameter(help="The export with the root key, if that was taken out.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    unheard: Annotated[
        bool, Parameter(negative="", help="After a restore: there is no later key than the copy's.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Begin a new epoch: a new op key, signed by the root key. It heals a frozen origin.

    Leaves stay as they are and are signed anew. What a thief retracted stays retracted.

    Example: `groove-node keys rotate --revoke`.
    """
    out = Terminal(json)
    from node import overview, rekeying

    app = App.open()
    root = None
    if root_file is not None:
        passphrase = _passphrase(out, passphrase_file, twice=False)
        root = rekeying.root_in(root_file.expanduser(), passphrase)
    doc = rekeying.rotate(app, revoke=revoke, root=root, unheard=unheard).doc
    runs = overview.running(app) is not None
    told = "the running node tells peers now" if runs else "peers hear of it when the node runs"
    out.done(
        {"epoch": doc.epoch, "revoked": list(doc.revoked), "node_runs": runs},
        f"epoch {doc.epoch} has begun; {told}. A copy from before has the old key: "
        "`groove-node keys export FILE`.",
    )


def _passphrase(out: Terminal, file: Path | None, *, twice: bool) -> str:
    """From a file, the environment or the terminal; never from the command line, where `ps` and
    the shell's history show it."""
    if file is not None:
        found = file.expanduser()
        if stat.S_ISREG(found.stat().st_mode):
            check_private(found)
        with found.open(encoding="utf-8") as lines:
            return lines.readline().rstrip("\r\n")
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise MisuseError(
            "a passphrase is needed, and nobody is there to ask",
            unchanged="Nothing was done.",
            next_step=f"`--passphrase-file FILE`, or ${VARIABLE}.",
        )
    import getpass

    given = getpass.getpass("Passphrase: ", sys.stderr)
    if twice and getpass.getpass("Once more: ", sys.stderr) != given:
        raise MisuseError("the two are not the same", unchanged="Nothing was done.")
    return given
