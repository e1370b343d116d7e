"""How peers look on a terminal: values in, lines out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from leaves.model import Instant

from .show import ago, size

HEADINGS: Final = ("PEER", "ADDRESS", "STATE", "NAMED BY", "REACHED", "SCORE", "IN", "OUT")
_REACHES = {
    "loopback": "It works on this machine alone: this node listens on loopback.",
    "private": "It works within your local network. For others, forward a port of your router to "
    "this node and name it by `announce` under [mesh.transport], or use a relay.",
    "public": "It works from anywhere, if no firewall is in between.",
}


def rows(result: dict[str, Any], now: Instant) -> list[Sequence[str]]:
    """This node's addresses, then who is connected, then who is known, best first."""
    table: list[Sequence[str]] = [
        (_tail(address), address, "this node", *5 * ("-",)) for address in result["addresses"]
    ]
    book = {entry["address"]: entry for entry in result["book"]}
    of_peer = {entry["peer"]: entry for entry in result["book"]}
    for peer in result["peers"]:
        known = book.get(peer["address"]) or of_peer.get(peer["peer"])
        traffic = size(peer["bytes_in"]), size(peer["bytes_out"])
        named, _, score = _known(known, now)
        state = "connected"
        table.append((peer["peer"], peer["address"], state, named, "now", score, *traffic))
    connected = {peer["peer"] for peer in result["peers"]}
    strangers = [entry for entry in result["book"] if entry["peer"] not in connected]
    for entry in sorted(strangers, key=lambda entry: -entry["score"]):
        failed = f", failed {entry['failures']} times" if entry["failures"] else ""
        state = f"not connected{failed}"
        table.append((entry["peer"], entry["address"], state, *_known(entry, now), "-", "-"))
    return table


def _known(entry: dict[str, Any] | None, now: Instant) -> tuple[str, str, str]:
    if entry is None:
        return "itself", "-", "-"  # it has dialled, and nobody has named it
    last = entry["last_reached"]
    named = entry["named_by"]
    shown = named[-8:] if len(named) > 20 else named
    return shown, ago(Instant(last) if last else None, now), f"{entry['score']:.2f}"


def invited(result: dict[str, Any]) -> str:
    """What to know about an invitation that was made."""
    parts = [_REACHES[result["reach"]]]
    if result["private_swarm"]:
        parts.append("It holds the key of your private swarm: give it to whom you trust alone.")
    if result["restart"]:
        parts.append("The swarm is new: end the running node and start it again.")
    return " ".join(parts)


def joined(result: dict[str, Any]) -> str:
    """What comes of an invitation that was taken."""
    if result["restart"]:
        return (
            "remembered; the swarm is another one, so end the running node and start it again: "
            "it then dials at once"
        )
    when = "dialled now" if result["running"] else "dialled when the node runs: `groove-node run`"
    return f"remembered, and {when}; `groove-node peers list` shows when it is connected"


def _tail(address: str) -> str:
    return address.rpartition("/p2p/")[2]
