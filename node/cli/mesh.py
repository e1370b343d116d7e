"""Peers, and what they offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from node import orders, overview, show_peers
from node.app import App
from node.terminal import Terminal

from .base import AsJson, command, peers


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
    out.table(show_peers.HEADINGS, show_peers.rows(result, app.now()))
    note = (
        "" if result["running"] else "no node runs here, so nobody is connected: `groove-node run`"
    )
    out.done(result, note)


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
    invitation: Annotated[str, Parameter(name="INVITATION")],
    /,
    *,
    switch: Annotated[
        bool, Parameter(negative="", help="Leave the private swarm that this node is in.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Take an invitation: the string that `groove-node peers invite` has printed elsewhere.

    For example: groove-node peers join groove1stmtimjsiqzuw33pk5iwmrtihf5do4tumuz…
    """
    from node import meeting

    out = Terminal(json)
    result = meeting.join(App.open(), invitation, switch=switch)
    out.done(result, show_peers.joined(result))


@peers.command(name="remove")
def peers_remove(peer: str, /, *, json: AsJson = False) -> None:
    """Forget a peer: its id, the end of it, or an address. The link with it is ended.

    It may still dial this node, and another peer may introduce it again.
    """
    from node import meeting

    out = Terminal(json)
    removed = meeting.remove(App.open(), peer)
    out.done({"removed": removed}, f"{removed} is forgotten")


@command.command
def fetch(name: str, /, *, json: AsJson = False) -> None:
    """Get a foreign leaf's bundle now, check it and evaluate it on your own sessions."""
    out = Terminal(json)
    result = orders.fetch(App.open(), name, out.progress)
    out.facts([(key.replace("_", " "), str(value)) for key, value in result.items()])
    out.done(result)
