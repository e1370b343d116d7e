"""Goals among the hostile: G11 a third of the nodes lies, G12 floods, G13 a bundle under fire.

Each function plays one seed, and returns its figures.
"""

from __future__ import annotations

import sys
from random import Random

from mesh_kit import (
    ROUND_S,
    URGENT_STEP_S,
    Sample,
    chosen,
    heard_retraction,
    holds_head,
    lossy,
    network,
    out_of_step,
    preloaded,
    publish,
    rounds,
    table,
)

from simnet.bundles import fetch_under_fire
from simnet.byzantine import LIARS, Flooder, turn
from simnet.byzantine import chosen as hostile_of
from simnet.invariants import InvariantError
from simnet.network import Node

AUTHORS = 10
PATIENCE_S = 20 * ROUND_S
FLOODERS = 0.05  # of the nodes


def byzantine(nodes: int, seed: int, *, share: float) -> Sample:
    """A share of the nodes lies, each in one of all ways but the flood; the honest stay linked.

    (A flood, which is G12's, is of strangers of whom every node then tells every other.)
    invalid: 1 if anything was believed that its origin did not sign, or any other invariant broke.
    converged: share of the honest nodes at which all that ten honest authors published meanwhile
    stands within 20 rounds. rounds: until that is all of them.
    """
    net = network(nodes, seed)
    hostile = hostile_of(net, round(share * nodes))
    turn(net, hostile, [liar for liar in LIARS if liar is not Flooder])
    lossy(net)
    authors = Random(f"{seed}/authors").sample(net.honest(), min(AUTHORS, nodes // 3))
    try:
        net.run(2 * ROUND_S)
        for author in authors:
            publish(net, author, table(author, 3))
        holds = [holds_head(author) for author in authors]

        def agrees(node: Node) -> bool:
            return all(one(node) for one in holds)

        took_s = net.run_until(agrees, PATIENCE_S, step_s=1.0)
        net.check()
    except InvariantError as error:
        if error.invariant == "liveness":
            raise
        print(error, *error.tail, sep="\n", file=sys.stderr)
        return {"invalid": 1.0, "converged": None, "rounds": None}
    honest = net.honest()
    converged = sum(map(agrees, honest)) / len(honest)
    return {"invalid": 0.0, "converged": converged, "rounds": rounds(took_s)}


def flood_delay(nodes: int, seed: int) -> Sample:
    """How much longer a retraction and a table take to 99.9 % of the honest under a flood.

    A twentieth of the nodes sends each peer a hundred frames a round: heads of its own, strangers'
    keys, questions. Without it the same nodes are there, and honest.
    """
    calm, flooded = (_spread_s(nodes, seed, flood=flood) for flood in (False, True))
    return {
        "urgent": _ratio(flooded[0], calm[0]),
        "bulk": _ratio(flooded[1], calm[1]),
        "urgent_s": flooded[0],
        "bulk_s": flooded[1],
    }


def _spread_s(nodes: int, seed: int, *, flood: bool) -> tuple[float | None, float | None]:
    net = network(nodes, seed)
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], 5)
    names = hostile_of(net, round(FLOODERS * nodes))
    out_of_step(net)
    lossy(net)
    if flood:
        turn(net, [node for node in names if node is not author], [Flooder])
    net.run(ROUND_S)
    leaf = table(author, 5)[0].leaf
    net.retract(author.name, leaf)
    heard = heard_retraction(author, leaf)
    urgent_s = net.run_until(heard, PATIENCE_S, step_s=URGENT_STEP_S, share=0.999)
    if not publish(net, author, table(author, 6)):
        return urgent_s, None
    return urgent_s, net.run_until(holds_head(author), PATIENCE_S, step_s=0.25, share=0.999)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def bundle(nodes: int, seed: int) -> Sample:
    """Fetch 50 MB from four holders, of which one lies and one stalls, killed five times.

    A kill ends the process between two of its effects; what it wrote stays. ratio: bytes of chunks
    that arrived and were no lies, by the bundle's size. exact: 1 if every byte is right.
    chunks_per_lie: false chunks that arrived for each time that the liar was believed.
    """
    fetched = fetch_under_fire(seed, kills=5)
    return {
        "exact": float(fetched.exact),
        "ratio": fetched.ratio,
        "lies": fetched.lies,
        "kills": fetched.kills,
        "took_s": fetched.took_s,
    }
