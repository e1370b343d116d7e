"""What the owner orders about leaves and peers; the running node carries it out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leaves import words
from leaves.model import Leaf
from leaves.ports import Progress, Report, silent
from router.starters import STARTERS

from . import overview
from .errors import MisuseError, OwnerError
from .foreign import Known, State
from .mailbox import Dial, Fetch, Retract

if TYPE_CHECKING:
    from .app import App

ANSWER_S = 600.0  # the longest that a command waits for the running node


class NotRunningError(OwnerError):
    """This needs the running node."""


class NotHadError(OwnerError):
    """No peer gave the bundle."""


def rename(app: App, name: str, to: str) -> Leaf:
    """Give an own leaf another name; it keeps it, and its parts are named after it."""
    if problem := words.problem(to):
        raise MisuseError(
            f"{to!r} cannot be a name: {problem}; expected up to {words.NAME_CHARS_MAX} letters "
            "and digits in lower case, words joined by -",
            unchanged="Nothing was renamed.",
        )
    if to == "chassis" or to in {f"{starter.key}-starter" for starter in STARTERS}:
        raise MisuseError(
            f"{to!r} is reserved: `groove-node route` names the chassis or a starter by it",
            unchanged="Nothing was renamed.",
        )
    leaf = overview.own_leaf(app, name)
    others = [other for other in app.forests.forest() if other.id != leaf.id]
    if any(other.name == to for other in others):
        raise MisuseError(f"another leaf is or was called {to!r}; nothing was renamed")
    if any(len(to) >= 4 and other.id.startswith(to) for other in others):
        raise MisuseError(f"{to!r} is how another leaf's id begins; nothing was renamed")
    renamed = replace(leaf, name=to, version=leaf.version + 1, named_by_owner=True)
    app.forests.change(renamed, "renamed", "by the owner", app.now())
    return renamed


def retract(app: App, name: str) -> str:
    """Withdraw an own leaf from all peers, for ever; durable once this returns.

    The registry follows, if there is one; out of reach, with the next round.
    """
    leaf = overview.own_leaf(app, name)
    app.mailbox.post(Retract(leaf.id), app.clock.now_s())
    if app.config.registry.url:
        from .registry import push_after_round

        push_after_round(app, app.events.tell)
    return leaf.id


def retracted(app: App) -> set[str]:
    """Own leaves that were retracted or are about to be; "" stands for all that there ever were."""
    from random import Random

    mesh = app.mesh_replica(Random(0))
    gone = {leaf.hex() if leaf else "" for leaf in mesh.view(app.origin).retracted}
    waiting = [letter.order for letter in app.mailbox.waiting()]
    return gone | {order.leaf or "" for order in waiting if isinstance(order, Retract)}


def add_peers(app: App, addresses: Sequence[str]) -> None:
    """Remember peers; a running node dials them at once."""
    from gossip.addresses import AddressError, peer_of

    try:
        for address in addresses:
            peer_of(address)
    except AddressError as problem:
        raise MisuseError(f"{problem}; nothing was remembered") from None
    for address in addresses:
        app.mailbox.post(Dial(address), app.clock.now_s())


def order_fetch(app: App, known: Known) -> int:
    """Have the running node fetch, check and judge a foreign leaf; the number of its letter."""
    app.require("fetch")
    if known.leaf.root is None:
        raise NotHadError(
            f"{known.name} is a {known.leaf.stage}: its origin offers no bundle of it yet",
            unchanged="Nothing was fetched.",
            next_step="`groove-node tree` lists the leaves that can be had.",
        )
    if overview.running(app) is None:
        raise NotRunningError(
            "no node is running in this home",
            unchanged="Nothing was fetched.",
            next_step="Start one with `groove-node run`, then fetch again.",
        )
    return app.mailbox.post(Fetch(known.leaf.origin, known.leaf.leaf), app.clock.now_s())


def fetch(app: App, name: str, report: Report = silent) -> dict[str, Any]:
    """Have the running node fetch, check and judge a foreign leaf; waits for what comes of it."""
    app.require("fetch")
    known = overview.foreign_leaf(app, name)
    letter = order_fetch(app, known)
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        report(Progress("fetch", 0, 0, "asked of the running node"))
        answer = app.mailbox.answer_to(letter)
        if answer is None:
            time.sleep(0.1)
            continue
        if "error" in answer or answer["state"] == State.HEARD:
            raise NotHadError(
                f"the bundle of {known.name} was not had: "
                + answer.get("error", "no connected peer gave it whole"),
                unchanged="Nothing was installed.",
                next_step="`groove-node peers list` shows who is connected; "
                "the running node asks again by itself.",
            )
        return answer
    raise NotRunningError(
        "the running node has not answered in ten minutes",
        unchanged="The order stands and is carried out when it can be.",
        next_step="`groove-node leaf show NAME` tells how far it is.",
    )
