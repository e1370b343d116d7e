"""What the owner asks of the node: how it stands, its leaves, who is connected. Reads only."""

from __future__ import annotations

import itertools
import os
import socket
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from leaves.lifecycle import training_threshold
from leaves.model import Forest, Leaf, Stage

from . import (
    consenting,
    deploying,
    leaf_facts,
    next_import,
    past,
    publishing,
    routing,
    set_aside,
    show,
    show_api,
    show_night,
    show_routes,
    started,
    swarm,
    transition,
)
from .errors import OwnerError
from .foreign import Known, State
from .history import History, histories
from .rights import rescan_due
from .shelf import Pin, Shelf
from .tally import Tally

if TYPE_CHECKING:
    from .app import App


T = TypeVar("T")
RUN_FILE = "run.json"  # who runs here, where it listens, whom it is connected to


class _Peer(msgspec.Struct):
    peer: str
    address: str
    bytes_in: int
    bytes_out: int
    refused: dict[str, int]


class _Running(msgspec.Struct):
    """The run file, as far as it must be right to be shown at all."""

    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    addresses: list[str]
    peers: list[_Peer]
    links: dict[str, Any] = {}
    night: dict[str, Any] = {}
    transport: dict[str, Any] = {}
    read: dict[str, str] = {}
    api: dict[str, Any] = {}


class UnknownLeafError(OwnerError):
    """No leaf has this name or id, or several have."""


def status(app: App) -> dict[str, Any]:
    """Everything `status` shows, without loading a model."""
    forest = app.forests.forest()
    live = [leaf for leaf in forest.live() if leaf.level > 1]
    grown = [leaf for leaf in forest if leaf.level > 1]
    stages = {stage.value: sum(x.stage is stage for x in grown) for stage in Stage}
    seeds = [leaf for leaf in live if leaf.stage is Stage.SEED]
    open_round, last = app.forests.open_round(), app.forests.last_round()
    foreign = app.foreign.all()
    counts = Tally(app.home).read()
    sources = histories(app, counts)
    node = running(app)
    return {
        "home": str(app.home),
        "origin": app.origin.hex(),
        "scopes": sorted(app.consent.scopes(app.user_id)),
        "consent": consenting.standing(app),
        "captured_bytes": app.corpus.size_bytes(),
        "torn_lines": app.corpus.torn_lines(),
        "rescan_due": rescan_due(app),
        "queue": counts.queue,
        "sources": [_source(each, app.config.training.restricted_outputs) for each in sources],
        "embedded": len(app.embeddings),
        "leaves": {stage: count for stage, count in stages.items() if count},
        "chassis_changed": set_aside.changed(app) and any(leaf.adapter for leaf in live),
        "branches": sum(leaf.level == 1 for leaf in forest.live()),
        "next": [
            show.next_step(
                leaf, training_threshold(leaf.kind, app.config.rules), app.allows("train")
            )
            for leaf in sorted(seeds, key=lambda x: -x.sessions)
        ],
        "routing": transition.standing(app),
        "round": {
            "open": open_round.phase if open_round else None,
            "running": open_round is not None and app.is_locked("round"),
            "last_finished": last.finished if last else None,
        },
        "foreign": {state.value: sum(known.state is state for known in foreign) for state in State},
        "proposals": len(app.forests.proposals.waiting()),
        "kept_back": publishing.kept_back(app),
        "node": node,
        "changed": started.changes(app, node),
        "network": _network(node),
        "night": show_night.standing(app, node),
        "endpoint": show_api.standing(node),
        "imports": next_import.suggestions(sources, len(app.embeddings), app.allows("capture")),
    }


def _source(history: History, restricted_outputs: bool) -> dict[str, Any]:
    """One source as `status` tells it: names and figures."""
    counts = history.counts
    return {
        "source": history.source,
        "allowed": history.allowed,
        "transcripts": history.transcripts,
        "sessions": counts.sessions,
        "records": counts.records,
        "last": int(counts.last) or None,
        "expiring": history.expiring if history.allowed else 0,
        "malformed": counts.malformed,
        "dropped": counts.dropped,
        "left_out": counts.left_out,
        "unknown": counts.unknown,
        "untrainable": {} if restricted_outputs else counts.untrainable,
        "growing": history.growing,
        "allowed_folders": history.folders,
    }


def running(app: App) -> dict[str, Any] | None:
    """What the running node says of itself; None if none is running.

    A node runs while its lock is held: a process of the number in the file may be any by now. Of
    one whose file cannot be read, `damaged` says so, its process is None, and the rest is empty.
    """
    if not app.is_locked("run"):
        return None
    try:
        told = msgspec.json.decode((app.home / RUN_FILE).read_bytes(), type=_Running)
    except FileNotFoundError:
        return None  # it is being started
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        return {"pid": None, "damaged": str(problem), "addresses": [], "peers": []}
    try:
        os.kill(told.pid, 0)
    except ProcessLookupError:
        return None  # the lock is another's, who puts keys back or is about to start
    except PermissionError:
        pass
    addresses = [reached for address in told.addresses for reached in _reachable(address)]
    return {**msgspec.to_builtins(told), "addresses": addresses}


def _reachable(address: str) -> list[str]:
    """What to tell a peer: of a node that listens everywhere, the addresses of this machine."""
    everywhere = "/ip4/0.0.0.0/"
    if not address.startswith(everywhere):
        return [address]
    import psutil  # 20 ms that only this case pays

    found = [
        each.address
        for each in itertools.chain.from_iterable(psutil.net_if_addrs().values())
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    return [address.replace("0.0.0.0", ip, 1) for ip in sorted(set(found)) or ["127.0.0.1"]]


def _network(node: dict[str, Any] | None) -> str:
    if node is None or node["pid"] is None:
        return ""
    from . import reach

    return reach.summary(node)


def peers(app: App) -> dict[str, Any]:
    """Connected peers, own addresses, and the address book."""
    from . import peerbook  # only this one needs the gossip package

    node = running(app)
    book = peerbook.expected(app)
    links = node.get("links", {}) if node else {}
    connected = {each["peer"] for each in node["peers"]} if node else set()
    why = {
        each["peer"]: each["why"] or ""
        for each in links.get("reach", {}).get("dialled", ())
        if each["peer"] not in connected
    }
    return {
        "running": node is not None,
        "addresses": node["addresses"] if node else [],
        "peers": node["peers"] if node else [],
        "links": links,
        "private_swarm": bool(swarm.load(app.home)),
        "known": [entry.address for entry in book],
        "book": [
            {
                "peer": peerbook.peer_of(entry.address),
                "address": entry.address,
                "named_by": peerbook.named_by(entry),
                "score": round(book.score(entry), 3),
                "last_reached": int(entry.last_ok_s) or None,
                "failures": entry.failures,
                "why": why.get(peerbook.peer_of(entry.address), ""),
            }
            for entry in book
        ],
    }


def tree(app: App, at: str | None) -> tuple[Forest, list[Known]]:
    """The forest now, or at the end of a day; with it the foreign leaves of now."""
    if at is None:
        return app.forests.forest(), app.foreign.all()
    return app.forests.forest_at(past.past_day(app, at)), []


def own_leaf(app: App, name: str) -> Leaf:
    """The own leaf of this name, id or start of an id."""
    found = _matching([(x.name, x.id, x) for x in app.forests.forest()], name)
    return _only(found, name)


def any_leaf(app: App, name: str) -> Leaf | Known:
    """An own or a foreign leaf of this name, id or start of an id; own ones come first."""
    own: list[tuple[str, str, Leaf | Known]] = [(x.name, x.id, x) for x in app.forests.forest()]
    foreign: list[tuple[str, str, Leaf | Known]] = [
        (k.name, k.leaf.leaf, k) for k in app.foreign.all()
    ]
    return _only(_matching(own, name) or _matching(foreign, name), name)


def foreign_leaf(app: App, name: str) -> Known:
    found = _matching([(k.name, k.leaf.leaf, k) for k in app.foreign.all()], name)
    return _only(found, name)


def describe(
    app: App, name: str, texts: bool = False
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """One leaf, own or foreign: facts to read, and the same for a program."""
    found = any_leaf(app, name)
    if isinstance(found, Leaf):
        facts = show.leaf_facts(found, len(app.forests.members(found.id)))
        votes = deploying.votes_of(app, found.id)
        more, details = leaf_facts.about(app, found, texts)
        facts += [*more, *show_routes.votes_facts(votes)]
        shared, sharing = publishing.about(app, found)
        gates = routing.gates_in_force(app)
        return facts + shared, {**show.as_json(found, gates), **details, **votes, **sharing}
    region = app.region(found.leaf)
    stays = Shelf.of(app).is_pinned(found)
    details = {**show.foreign_json(found), "pinned": stays, "sessions_here": len(region)}
    if region:  # one of the owner's own, for the owner's eyes
        vectors = app.embeddings.vectors()
        nearest = max(sorted(region), key=lambda id_: float(vectors[id_] @ found.leaf.centroid))
        session = app.sessions()[nearest]
        details["sample"] = {"prompt": session.prompt, "completion": session.completion}
    return [*show.foreign_facts(found), ("pinned", "yes" if stays else "no")], details


def history(app: App, name: str) -> list[dict[str, Any]]:
    """Every change of one own leaf."""
    return leaf_facts.history(app, own_leaf(app, name))


def pinned(app: App, name: str) -> Pin:
    """The pin on a leaf of this name, id or start of an id, which may be gone by now."""
    found = _matching([(pin.name, pin.leaf, pin) for pin in Shelf.of(app).pins()], name)
    return _only(found, name)


def _matching(leaves: list[tuple[str, str, T]], name: str) -> list[T]:
    exact = [leaf for called, id_, leaf in leaves if name in (called, id_)]
    started = [leaf for _, id_, leaf in leaves if len(name) >= 4 and id_.startswith(name)]
    return exact or started


def _only(found: list[T], name: str) -> T:
    if len(found) == 1:
        return found[0]
    what = (
        f"no leaf is called {name!r}" if not found else f"{len(found)} leaves are called {name!r}"
    )
    raise UnknownLeafError(
        what,
        unchanged="Nothing was done.",
        next_step="`groove-node tree` lists the leaves; an id, or its first digits, is exact.",
    )
