"""How two people's nodes meet: an invitation is made here, taken there; and how they part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gossip.addresses import AddressError
from gossip.invites import Invite, InviteError, read, worth_telling, written
from gossip.keys import private_key, public_bytes
from gossip.multiaddrs import Reach, expand, parse, peer_of_key
from gossip.ports import PeerId
from gossip.wakefulness import interfaces

from . import overview, peerbook, started, swarm
from .errors import MisuseError, OwnerError
from .mailbox import Dial, Forget
from .reach import is_example

if TYPE_CHECKING:
    from .app import App


class MeetingError(OwnerError):
    """There is nothing to invite to, or nothing to join."""


def invite(app: App, *, private: bool = False) -> dict[str, Any]:
    """The string that `join` takes elsewhere, and what is in it.

    private: with the key of a private swarm, which is made if there is none.
    """
    addresses = _own_addresses(app)
    if not addresses:
        raise MeetingError(
            "this node is not running, and it listens at another port each time",
            unchanged="No invitation was made.",
            next_step="Start it with `groove-node run`, then invite again.",
        )
    if private and not swarm.load(app.home):
        swarm.store(app.home, swarm.make())
    key = swarm.load(app.home)
    text = written(Invite(tuple(addresses), app.origin, bytes.fromhex(key)))
    node = overview.running(app)
    return {
        "invite": text,
        "addresses": addresses,
        "reach": _reach(addresses),
        "origin": app.origin.hex(),
        "private_swarm": bool(key),
        "running": node is not None,
        "restart": started.swarm_changed(app, node),
    }


def join(app: App, text: str, *, switch: bool = False) -> dict[str, Any]:
    """Take an invitation: its addresses are the owner's from now on, its swarm key this node's.

    switch: leave the private swarm that this node is in, if the invitation is of another.
    """
    unchanged = "Nothing was remembered."
    try:
        found = read(text)
    except InviteError as problem:
        raise MisuseError(
            f"this is no invitation: {problem}",
            unchanged=unchanged,
            next_step="`groove-node peers invite`, on the node that invites, prints one.",
        ) from None
    if found.peer == own_peer(app):
        raise MisuseError(
            "this is this node's own invitation",
            unchanged=unchanged,
            next_step="Run `groove-node peers join` with it on another machine or in another home.",
        )
    key = found.swarm_key.hex()
    try:
        here = swarm.load(app.home)
    except swarm.SwarmKeyError:
        here = ""  # damaged: the invitation's takes its place
    if here and here != key and not switch:
        other = "another private swarm" if key else "the swarm that is open to all"
        raise MeetingError(
            f"the invitation is to {other}, and this node belongs to a private one",
            unchanged=unchanged,
            next_step="A node is in one swarm at a time. `groove-node peers join STRING --switch` "
            "leaves the one that it is in; its peers there are not reached any more.",
        )
    swarm.store(app.home, key)
    for address in found.addresses:
        app.mailbox.post(Dial(address), app.clock.now_s())
    node = overview.running(app)
    return {
        "peer": found.peer,
        "addresses": list(found.addresses),
        "origin": found.origin.hex(),
        "private_swarm": bool(key),
        "left_open": bool(key) and not here,
        "running": node is not None,
        "restart": started.swarm_changed(app, node),
    }


def leave(app: App) -> dict[str, Any]:
    """Go from the private swarm back to the one that is open to all."""
    if not swarm.store(app.home, ""):
        raise MeetingError(
            "this node is in the swarm that is open to all", unchanged="Nothing was changed."
        )
    node = overview.running(app)
    return {"running": node is not None, "restart": started.swarm_changed(app, node)}


def remove(app: App, who: str) -> dict[str, Any]:
    """Forget a peer, by its id, the end of it, or an address; a running node ends the link."""
    unchanged = "Nothing was forgotten."
    book = peerbook.expected(app)
    linked = [each["peer"] for each in (overview.running(app) or {"peers": []})["peers"]]
    named = _peer_in(who)
    known = dict.fromkeys([*book.peers(), *linked])
    found = [peer for peer in known if peer == named or (len(who) >= 4 and peer.endswith(who))]
    if len(found) != 1:
        raise MisuseError(
            f"{len(found)} peers end in {who!r}" if found else f"no known peer ends in {who!r}",
            unchanged=unchanged,
            next_step="`groove-node peers list` shows their names.",
        )
    for address in app.config.mesh.peers:
        if peerbook.peer_of(address) == found[0]:
            raise MeetingError(
                f"{address} stands in groove.toml, and would be remembered again",
                unchanged=unchanged,
                next_step="Take it out of `peers` under [mesh] in groove.toml first.",
            )
    forgotten = str(found[0])
    app.mailbox.post(Forget(forgotten), app.clock.now_s())
    return {"removed": forgotten, "was_connected": forgotten in linked}


def own_peer(app: App) -> PeerId:
    """The name of this node's transport."""
    return peer_of_key(public_bytes(private_key(app.identity.transport)))


def _own_addresses(app: App) -> list[str]:
    """Where a guest may reach this node; loopback only if there is nothing else."""
    peer, config = own_peer(app), app.config.mesh.transport
    node = overview.running(app)
    if node is not None:
        listening = node["addresses"]
    else:
        listening = [f"{config.listen}/p2p/{peer}"] if parse(config.listen).port else []
    hosts, _ = interfaces()
    addresses = expand(listening, ("127.0.0.1", *hosts))
    told = worth_telling([*peerbook.announced(config.announce, peer), *addresses])
    wide = [address for address in told if parse(address).reach is not Reach.LOOPBACK]
    return wide or told


def _reach(addresses: list[str]) -> str:
    """From how far away a guest can come, in a word."""
    real = [parse(address).reach for address in addresses if not is_example(address)]
    return max(real).name.lower() if real else "nowhere"


def _peer_in(who: str) -> str:
    try:
        return peerbook.peer_of(who)
    except AddressError:
        return who
