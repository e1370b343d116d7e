"""Peers, and what they offer."""

from __future__ import annotations

from collections.abc import Sequence

from node import orders, overview, show
from node.app import App
from node.terminal import Terminal

from .base import AsJson, command, peers


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
