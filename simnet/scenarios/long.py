"""Thirty nights in the life of a mesh of laptops: asleep by day, and some of them for days."""

from __future__ import annotations

import hashlib
from collections import Counter
from random import Random

from gossip.ports import PeerId
from gossip.wire import Reason, Stage, Usage

from ..network import Network, Node
from .common import DAY_S, HOUR_S, Figures, Tree, link_up, settle

NIGHTS = 30
WINDOW_S = 2 * HOUR_S
AWAKE_S = 0.5 * HOUR_S
LEAVES_MAX = 8
WEEK_H = 168
ABSENCE = range(10, 20)  # nights for which one owner is away: longer than its head lives


def thirty_nights(net: Network) -> Figures:
    """A month: nodes wake by their own windows, publish what became of their leaves, and agree."""
    link_up(net)
    chance = Random(f"{net.seed}/nights")
    trees = {name: Tree(net, node) for name, node in net.nodes.items()}
    steady = list(net.nodes)[: max(2, len(net.nodes) // 8)]  # on all night
    last = list(net.nodes)[-1]
    away = dict.fromkeys(net.nodes, 0)  # nights for which a node sleeps on
    done: Counter[str] = Counter()
    for node in net.nodes.values():
        node.clock_ahead_s = chance.choice([0, 0, 0, -3600, 3600, 7])
        net.faults["F17 clock"] += node.clock_ahead_s != 0
        trees[node.name].grow(3, Stage.SEED)
    for night in range(NIGHTS):
        for name in net.nodes:
            away[name] = away[name] - 1 if away[name] > 0 else _nights_away(name, steady, chance)
            if name == last and night == ABSENCE.start:
                away[name] = len(ABSENCE)
            if away[name] <= 0:
                _plan(net, trees[name], night, chance.random(), done, all_night=name in steady)
            else:
                done["nights away"] += 1
        net.run(WINDOW_S)
        for name in net.nodes:
            net.suspend(name)
        done["expired"] += _expired(net)
        net.run(DAY_S - WINDOW_S)
    figures = settle(net)
    for event in ("split", "merge", "ended", "expired"):
        net.checker.require(done[event] > 0, "liveness", f"in a month nothing was {event}")
    return {**{name.replace(" ", "_"): n for name, n in sorted(done.items())}, **figures}


def _nights_away(name: PeerId, steady: list[PeerId], chance: Random) -> int:
    return chance.randint(1, 10) if name not in steady and chance.random() < 0.06 else 0


def _plan(
    net: Network, tree: Tree, night: int, luck: float, done: Counter[str], *, all_night: bool
) -> None:
    """Have a node wake in its own time of the night, do its round, and sleep."""
    name = tree.node.name
    spread = hashlib.sha256(f"{net.seed}/{name}/window".encode()).digest()
    offset = int.from_bytes(spread[:4], "big") / (1 << 32) * (WINDOW_S - AWAKE_S)
    wakes = 0.0 if all_night else offset
    chance = Random(f"{net.seed}/{name}/{night}/{luck}")
    net.at(wakes, f"wake {name}", lambda: net.resume(name))
    net.at(offset + 60, f"round {name}", lambda: _round(net, tree, chance, done))
    if not all_night:
        net.at(wakes + AWAKE_S, f"sleep {name}", lambda: net.suspend(name))


def _round(net: Network, tree: Tree, chance: Random, done: Counter[str]) -> None:
    """What a night's lifecycle may bring, under one head."""
    if not tree.node.awake:
        return
    change(tree, chance, done)
    tree.usage = _used(net, tree.node, chance)
    tree.publish(urgent=chance.random() < 0.3)
    done["rounds"] += 1


def change(tree: Tree, chance: Random, done: Counter[str]) -> None:
    """One event in a tree, if its leaves allow it."""
    live = sorted(tree.live)
    match chance.choice(("grow", "promote", "split", "merge", "end", "revive", "retract", "keep")):
        case "grow" if len(live) < LEAVES_MAX:
            tree.grow(1, Stage.SEED)
            done["grown"] += 1
        case "promote" if live:
            tree.promote(chance.choice(live))
            done["promoted"] += 1
        case "split" if live and len(live) < LEAVES_MAX:
            tree.split(chance.choice(live))
            done["split"] += 1
        case "merge" if len(live) >= 3:
            tree.merge(*chance.sample(live, 2))
            done["merge"] += 1
        case "end" if len(live) >= 2:
            tree.end(chance.choice(live), chance.choice((Reason.DORMANT, Reason.REGRESSED)))
            done["ended"] += 1
        case "revive" if tree.ended and len(live) < LEAVES_MAX:
            tree.revive(chance.choice(sorted(tree.ended)))
            done["revived"] += 1
        case "retract" if live and chance.random() < 0.3:
            tree.retract(chance.choice(live))
            done["retracted"] += 1


def _used(net: Network, node: Node, chance: Random) -> tuple[Usage, ...]:
    """Say how much of others' leaves was used, coarsely."""
    assert node.replica is not None
    week = net.now_s // 3600 // WEEK_H
    views = [node.replica.view(origin) for origin in node.replica.origins()]
    foreign = [(v.origin, c.leaf) for v in views if v.origin != node.origin for c in v.usable]
    used = chance.sample(foreign, min(3, len(foreign)))
    return tuple(Usage(*leaf, week, chance.randint(1, 9), chance.randint(0, 5)) for leaf in used)


def _expired(net: Network) -> int:
    """Over all machines, heads of others that stand and have expired."""
    hour, count = net.now_s // 3600, 0
    for node in net.nodes.values():
        if node.replica is not None:
            views = map(node.replica.view, node.replica.origins())
            count += sum(view.head is not None and view.head.exp_h < hour for view in views)
    return count
