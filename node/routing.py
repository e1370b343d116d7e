"""What a routing table of this home is made of: who may be routed to, with which gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leaves.model import Forest, Leaf, LeafId, Matrix, Stage, Vector
from router.neighbours import Neighbours
from router.table import COSINE_SAME, Entry, Route, Table, own_entry

from .foreign import Known, State
from .set_aside import of_another
from .tables import RoutingError, Tables

if TYPE_CHECKING:
    from .app import App

__all__ = [
    "SAME_DOMAIN",
    "RoutingError",
    "Tables",
    "beside_starters",
    "entries",
    "leaves_of",
    "region",
    "rightful",
    "routing_record",
    "serving",
    "starters_of",
    "way",
]

SAME_DOMAIN = COSINE_SAME


def entries(forest: Forest, foreign: Iterable[Known], chassis: str | None = None) -> list[Entry]:
    """Return the leaves that can be routed to: own live ones, and accepted ones of peers.

    An own leaf answers for itself once it has won; until then its parent does, and again while its
    adapter is of another chassis than the one in use. A peer's of another chassis is not routed to.
    chassis: the tag of the one in use, if it is known.
    """
    own = [own_entry(leaf, servable=_serves(leaf, chassis)) for leaf in forest.live()]
    others = [
        Entry(
            known.leaf.leaf,
            known.name,
            2,
            known.leaf.stage,
            known.leaf.centroid,
            gate=known.detail.get("gate", 0.0),
            servable=True,
            origin=known.leaf.origin,
            bundle=known.leaf.root,
        )
        for known in foreign
        if known.state is State.ACCEPTED and chassis in (None, known.leaf.chassis)
    ]
    return own + others


def gates_in_force(app: App) -> dict[LeafId, float]:
    """The cosine below which the parent of an own leaf serves, by the table in force."""
    table = app.tables.load_sound()
    own = table.entries if table else ()
    return {entry.leaf: entry.threshold for entry in own if not entry.origin and not entry.system}


def rightful(
    table: Table, forest: Forest, now: Sequence[Entry], *, admit: bool = True
) -> list[Entry]:
    """Return the entries of a table that may still be routed to, each with the rights of today.

    now: the entries of today. Where an entry is in space, and how near a prompt must be, stay as
    they are in the table. What was archived, dissolved or retracted is gone; a leaf that was merged
    answers until a table with its heir is in force. admit: own leaves that the table lacks too.
    """
    today = {(entry.leaf, entry.origin): entry for entry in now}
    out: list[Entry] = []
    for entry in table.entries:
        fresh = today.pop((entry.leaf, entry.origin), None)
        if entry.system:
            out.append(entry)
        elif fresh is not None and entry.origin:
            out.append(replace(fresh, weight=entry.weight, hubness=entry.hubness))
        elif fresh is not None:
            out.append(_with_rights_of(entry, fresh))
        elif not entry.origin and (leaf := forest.leaves.get(entry.leaf)) and _merged(leaf):
            out.append(replace(entry, servable=entry.servable and leaf.adapter is not None))
    return out + [entry for entry in today.values() if admit or entry.origin]


def beside_starters(found: Iterable[Entry]) -> list[Entry]:
    """Return the entries that are routed to as long as starters stand below them.

    Not branches, which are for browsing: broad as they are, they would take what is the starters'
    and leave it to the bare chassis.
    """
    return [entry for entry in found if entry.level > 1 or entry.serves]


def leaves_of(found: Iterable[Entry]) -> list[Entry]:
    """The entries that are leaves: no starters, and no branches, which are for browsing."""
    return [entry for entry in found if entry.level > 1 and not entry.system]


def serving(found: Iterable[Entry]) -> int:
    """How many leaves answer for themselves."""
    return sum(entry.servable for entry in leaves_of(found))


def starters_of(table: Table) -> list[Entry]:
    """The starters of a table: entries that answer by a system prompt."""
    return [entry for entry in table.entries if entry.system]


def way(table: Table, vector: Vector, near: Neighbours | None) -> Route:
    """Return where a prompt goes, and who answers: a leaf; or a starter, if the leaf cannot yet.

    As long as there are starters, the system prompt of the one nearest to the prompt is better than
    the bare chassis.
    """
    found = table.route(vector, near)
    starters = starters_of(table)
    if found.served_by is not None or not starters:
        return found
    cosines = np.stack([starter.centroid for starter in starters]) @ vector
    nearest = int(cosines.argmax())
    if cosines[nearest] < starters[nearest].threshold:
        return found
    return replace(found, served_by=starters[nearest], fallback_used=True)


def routing_record(route: Route) -> dict[str, Any]:
    """The `routing` of a SESSION_CLOSE record, under the specification's names."""
    leaf = route.leaf
    return {
        "leaf_id": leaf.leaf if leaf else None,
        "leaf_lifecycle_stage": leaf.stage.value if leaf else None,
        "routing_confidence": round(route.score, 4),
        "fallback_used": route.fallback_used,
        "parent_leaf_id": leaf.parent if leaf else None,
    }


def region(
    ids: Sequence[str], vectors: Matrix, leaf: Vector, others: Sequence[Vector], cosine_min: float
) -> list[str]:
    """Sessions that stand nearer to a leaf than to any other centroid, and near enough to it.

    vectors: shape (n, d), row i of session ids[i]. Ties go to the leaf.
    """
    if not len(ids):
        return []
    own = vectors @ leaf
    near = own >= cosine_min
    if others:
        near &= own >= (vectors @ np.stack(others).T).max(axis=1)
    return [id_ for id_, inside in zip(ids, near, strict=True) if inside]


def _serves(leaf: Leaf, chassis: str | None) -> bool:
    won = leaf.adapter is not None and leaf.wins > 0 and leaf.stage is not Stage.SEED
    return won and not of_another(leaf, chassis)


def _merged(leaf: Leaf) -> bool:
    return leaf.stage is Stage.MERGED


def _with_rights_of(entry: Entry, fresh: Entry) -> Entry:
    return replace(
        entry,
        name=fresh.name,
        stage=fresh.stage,
        servable=fresh.servable,
        bundle=fresh.bundle,
    )
