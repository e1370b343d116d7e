"""Peers, and what they offer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from node import orders, overview, show_peers
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command, peers

_INVITATION_CHARS_MAX = 64 << 10  # with room for the blanks and breaks of a mail program
_NOT_JOINED = "Nothing was remembered."


@peers.command(name="list")
def peers_list(*, json: AsJson = False) -> None:
    """This node's addresses, connected peers and known addresses.

    NAMED BY tells who named an address: you, the peer itself, the local network, or the end of the
    name of the peer that introduced it. SCORE is what the dialer goes by: 4.00 worked just now,
    1.00 was not tried yet, and each failure halves it.
    """
    out = Terminal(json)
    app = App.open()
    result = overview.peers(app)
    rows = show_peers.rows(result, app.now())
    if show_peers.fits(rows, out.width):
        out.table(show_peers.HEADINGS, rows)
    else:
        for line in show_peers.lines(rows):
            out.line(line)
    out.done(result, show_peers.listed(result))


@peers.command(name="add")
def peers_add(addresses: Sequence[str], /, *, json: AsJson = False) -> None:
    """Remember peers' addresses (multiaddrs ending in /p2p/PEER) and dial them.

    For example: groove-node peers add /ip4/192.0.2.7/tcp/4021/p2p/12D3KooW…
    """
    out = Terminal(json)
    app = App.open()
    orders.add_peers(app, addresses)
    when = "dialled now" if overview.running(app) else "dialled when the node runs"
    out.done({"added": list(addresses)}, f"remembered, and {when}")


@peers.command(name="invite")
def peers_invite(
    *,
    private: Annotated[
        bool,
        Parameter(negative="", help="Into a private swarm: makes its key, if there is none yet."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Print one string by which another node finds this one: it is for `peers join` there.

    It holds this node's addresses, the name of its origin and the key of its private swarm, if it
    is in one. Whoever has the string can join.
    """
    from node import meeting

    out = Terminal(json)
    result = meeting.invite(App.open(), private=private)
    out.line(result["invite"])
    out.note(show_peers.invited(result))  # not to stdout: `join $(invite)` is meant to work
    out.done(result)


@peers.command(name="join")
def peers_join(
    invitation: Annotated[str, Parameter(name="INVITATION")] = "",
    /,
    *,
    file: Annotated[Path | None, Parameter(help="Take the invitation from this file.")] = None,
    switch: Annotated[
        bool, Parameter(negative="", help="Leave the private swarm that this node is in.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Take an invitation: the string that `groove-node peers invite` has printed elsewhere.

    One to a private swarm holds its key, and a command line is seen by `ps` and kept in the shell's
    history: give `-` and the string on standard input, or --file, or nothing, to be asked for it.

    For example: groove-node peers join groove1stmtimjsiqzuw33pk5iwmrtihf5do4tumuz…
    or, to a private swarm: groove-node peers join - < invitation
    """
    from node import meeting

    out = Terminal(json)
    result = meeting.join(App.open(), _invitation(invitation, file), switch=switch)
    out.done(result, show_peers.joined(result))


def _invitation(given: str, file: Path | None) -> str:
    """From the command line, a file, standard input, or the terminal without an echo."""
    from . import STDIN  # what `-` has become

    if given and file is not None:
        raise MisuseError("INVITATION and --file are one too many", unchanged=_NOT_JOINED)
    if given == STDIN or file == Path(STDIN):
        return sys.stdin.read(_INVITATION_CHARS_MAX)
    if file is not None:
        with file.expanduser().open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_INVITATION_CHARS_MAX)
    if given:
        return given
    if not sys.stdin.isatty():
        raise MisuseError(
            "an invitation is needed, and nobody is there to ask",
            unchanged=_NOT_JOINED,
            next_step="`groove-node peers join -` reads it from standard input, `--file FILE` from "
            "a file.",
        )
    import getpass

    return getpass.getpass("Invitation: ", sys.stderr)


@peers.command(name="remove")
def peers_remove(peer: str, /, *, json: AsJson = False) -> None:
    """Forget a peer: its id, the end of it, or an address. The link with it is ended.

    It may still dial this node, and another peer may introduce it again.
    """
    from node import meeting

    out = Terminal(json)
    result = meeting.remove(App.open(), peer)
    out.done(result, show_peers.removed(result))


@peers.command(name="leave")
def peers_leave(*, yes: Yes = False, json: AsJson = False) -> None:
    """Leave the private swarm, for the one that is open to all. Its key is deleted.

    Who invited you can invite you again: `groove-node peers join INVITATION`.
    """
    from node import meeting

    out = Terminal(json)
    app = App.open()
    if not yes and not out.ask("Leave the private swarm? Its peers are not reached any more."):
        raise MisuseError("the private swarm was not left; nothing was changed")
    result = meeting.leave(app)
    out.done(result, show_peers.left(result))


@command.command
def fetch(name: str, /, *, json: AsJson = False) -> None:
    """Get a foreign leaf's bundle now, check it and evaluate it on your own sessions."""
    out = Terminal(json)
    result = orders.fetch(App.open(), name, out.progress)
    out.facts([(key.replace("_", " "), str(value)) for key, value in result.items()])
    out.done(result)
