"""What `leaf show` and `leaf history` tell of an own leaf, beyond what the leaf itself holds.

Its terms and its medoid are read from the sessions that it has now, and kept nowhere: what is
deleted is then in no terms either.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from leaves import names
from leaves.descent import named
from leaves.model import Leaf, LeafId
from leaves.ports import Cluster, Clustering
from leaves.store import HistoryEntry

from . import set_aside, show

if TYPE_CHECKING:
    from .app import App

TERMS_SHOWN = 8
TEXT_CHARS = 200  # of the medoid's ask

Facts = list[tuple[str, str]]


def about(app: App, leaf: Leaf, texts: bool) -> tuple[Facts, dict[str, Any]]:
    """The leaf's terms, its medoid, and how sure its cluster is: to read, and for a program."""
    terms, medoid = _terms(app, leaf), _medoid(app, leaf)
    facts: Facts = []
    details: dict[str, Any] = {
        "terms": terms,
        "medoid": medoid,
        "stability": leaf.stability,
        "cohesion": leaf.cohesion,
        "set_aside": None,
    }
    if terms:
        facts.append(("terms", ", ".join(terms)))
    if leaf.adapter is not None and set_aside.of_another(leaf, set_aside.tag(app)):
        details["set_aside"] = leaf.adapter.chassis
        facts.append(("set aside", "its adapter is of another chassis: what is above it answers"))
    if medoid:
        facts.append(("medoid", medoid))
        if texts:
            session = app.sessions().get(medoid)
            details["medoid_text"] = session.prompt if session else None
            facts.append(("", _one_line(session.prompt) if session else "its text is gone"))
    if leaf.stability is not None:
        facts.append(("stability", f"{leaf.stability:.2f} of 1 in subsamples"))
    if leaf.cohesion is not None:
        facts.append(("cohesion", f"{leaf.cohesion:.2f}, median cosine to the centroid"))
    return facts, details


def _terms(app: App, leaf: Leaf) -> list[str]:
    """The terms of a leaf's sessions, told from those of the other leaves of its level."""
    groups: dict[LeafId, list[str]] = defaultdict(list)
    forest = app.forests.forest()
    for session, holder in sorted(app.forests.assignment().items()):
        if holder == leaf.id or forest.leaves[holder].level == leaf.level:
            groups[holder].append(session)
    if leaf.id not in groups:
        return []
    clusters = tuple(Cluster(2, tuple(members), None) for members in groups.values())
    clustering = Clustering(((), clusters, ()), ())
    prompts = {id_: session.prompt for id_, session in app.sessions().items()}
    said = names.said_by(clustering, prompts)
    return names.ranked_terms(clustering, said, 1, list(groups).index(leaf.id))[:TERMS_SHOWN]


def _medoid(app: App, leaf: Leaf) -> str | None:
    vectors = app.embeddings.vectors()
    members = [session for session in app.forests.members(leaf.id) if session in vectors]
    return names.medoid(members, vectors) if members else None


def _one_line(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= TEXT_CHARS else line[: TEXT_CHARS - 1] + "…"


def history(app: App, leaf: Leaf) -> list[dict[str, Any]]:
    """Every change of one leaf with its reason; leaves are called as they are called today."""
    forest = app.forests.forest()
    entries = app.forests.history(leaf.id)
    rows = []
    before: HistoryEntry | None = None
    for entry in entries:
        why = named(entry.reason, forest)
        if before is not None and before.leaf.name != entry.leaf.name:
            why += f": {before.leaf.name} is now {entry.leaf.name}"
        rows.append(
            {
                "when": show.moment(entry.at),
                "round": entry.round,
                "what": entry.kind,
                "stage": entry.leaf.stage.value,
                "why": why,
            }
        )
        before = entry
    return rows
