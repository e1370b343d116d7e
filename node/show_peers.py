"""How peers look on a terminal: values in, lines out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from leaves.model import Instant

from .show import ago, counted, size

HEADINGS: Final = ("PEER", "ADDRESS", "STATE", "NAMED BY", "REACHED", "SCORE", "IN", "OUT")
_REACHES = {
    "loopback": "It works on this machine alone: this node listens on loopback.",
    "private": "It works within your local network. For others, forward a port of your router to "
    "this node and name it by `announce` under [mesh.transport], or use a relay.",
    "nowhere": "Its addresses are of a range for examples, which leads nowhere: mend `announce` "
    "under [mesh.transport].",
    "public": "It works from anywhere, if no firewall is in between.",
}

_LEFT_OPEN: Final = (
    "; peers of the open swarm are not reached any more: `groove-node peers leave` goes back to it"
)


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
        failed = f", failed {counted(entry['failures'], 'time')}" if entry["failures"] else ""
        why = f": {entry['why']}" if entry["why"] else ""
        state = f"not connected{why}{failed}"
        table.append((entry["peer"], entry["address"], state, *_known(entry, now), "-", "-"))
    return table


def fits(table: list[Sequence[str]], width: int | None) -> bool:
    """True if no cell of the table would be broken. width: None where there is no edge."""
    columns = list(zip(HEADINGS, *table, strict=True))
    return width is None or sum(max(map(len, column)) + 2 for column in columns) - 2 <= width


def lines(table: list[Sequence[str]]) -> list[str]:
    """The table for a narrow terminal: each peer's name and state, then its address whole."""
    found = []
    for peer, address, state, named, reached, score, came, went in table:
        told = [state]
        if named != "-":
            told += [f"named by {named}", f"reached: {reached}", f"score {score}"]
        if came != "-":
            told.append(f"{came} in, {went} out")
        found += [f"…{peer[-8:]}  {', '.join(told)}", f"  {address}"]
    return found


def listed(result: dict[str, Any]) -> str:
    """What to do about the peers of a list."""
    if not result["running"]:
        return "no node runs here, so nobody is connected: `groove-node run`"
    if any(entry["why"] for entry in result["book"]):
        return "`groove-node doctor` says what to do about those that are not connected"
    return ""


def status_facts(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The line of `status` on the network, and what the running node does not know yet."""
    facts = [("network", status["network"])] if status["network"] else []
    return [*facts, *(("restart", text) for text in status["changed"])]


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
        parts.append(
            "There `groove-node peers join` without it asks for it: a command line is seen by "
            "`ps` and kept in the shell's history."
        )
    if result["restart"]:
        parts.append("The swarm is new: end the running node and start it again.")
    if not result["running"]:
        parts.append("It works only while this node runs, and now it does not: `groove-node run`.")
    return " ".join(parts)


def joined(result: dict[str, Any]) -> str:
    """What comes of an invitation that was taken."""
    left = _LEFT_OPEN if result["left_open"] else ""
    if result["restart"]:
        return (
            "remembered; the swarm is another one, so end the running node and start it again: "
            f"it then dials at once{left}"
        )
    when = "dialled now" if result["running"] else "dialled when the node runs: `groove-node run`"
    return f"remembered, and {when}; `groove-node peers list` shows when it is connected{left}"


def removed(result: dict[str, Any]) -> str:
    """What comes of a peer that was forgotten."""
    text = f"{result['removed']} is forgotten"
    if not result["was_connected"]:
        return text
    return (
        f"{text}, and the link with it ended; if it dials this node, it is connected again: only a "
        "private swarm keeps a peer out, `groove-node peers invite --private`"
    )


def left(result: dict[str, Any]) -> str:
    """What comes of a private swarm that was left."""
    text = "this node belongs to the swarm that is open to all"
    if result["restart"]:
        text += ", once you have ended the running node and started it again"
    return text


def _tail(address: str) -> str:
    return address.rpartition("/p2p/")[2]
