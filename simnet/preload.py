"""Signed tables put into replicas as if they had been replicated long ago.

A night at a thousand nodes begins with a million tables in place. They are signed once, and all
nodes share them: what is held of an origin never changes, it is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gossip.author import Author
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.keys import Keys
from gossip.origin import Claims
from gossip.records import Held, changes
from gossip.table import build
from gossip.wire import Card

from .machine import Node

AGE_S = 3 * 3600  # of what is preloaded: nobody takes it for news


def signed(keys: Keys, cards: Sequence[Card], config: GossipConfig, now_s: int) -> Held:
    """Return what a node holds of an origin that has signed this table some hours ago."""
    table = build(cards, (), ())
    head = Author(keys, config).head(table, now_s - AGE_S, urgent=False)
    return Held(Claims(keys.origin).with_key(keys.doc).with_head(head), table)


def put(nodes: Iterable[Node], tables: Mapping[bytes, Held]) -> None:
    """Have nodes hold these tables, by origin; one that is down has them on its disk."""
    orders = {
        name: order
        for name, held in tables.items()
        if (order := changes(Held(Claims(name)), held, durable=True)) is not None
    }
    for node in nodes:
        if node.disk.keeps:
            for order in orders.values():
                node.disk.write(order.puts, order.deletes, durable=True)
        if node.replica is not None:
            _hold(node.replica, tables, node.origin)


def _hold(replica: Replica, tables: Mapping[bytes, Held], own: bytes) -> None:
    for held in tables.values():
        replica._held.put(held)
    if own in tables and (head := tables[own].claims.head) is not None:
        replica._author.heard(head)
