"""The life of a leaf as a page: the diagram of its stages, and what has to be so for each change.

Drawn from `leaves.transitions.LEGAL`, which is also what the lifecycle itself goes by; so the page
cannot say anything else. docs/lifecycle.md is this page with the rules as shipped.
"""

from __future__ import annotations

from itertools import groupby

from leaves.lifecycle import LEGAL, Rules
from leaves.model import Stage
from leaves.transitions import Arrow

COLUMNS = ("FROM", "WHAT", "TO", "WHEN")
_STEADY = ("drifted", "missed")  # said of a leaf at nearly every look: noise in a picture
_INTRODUCTION = """\
# The life of a leaf

A leaf is in exactly one stage at any time. What follows is all that can happen to it: whatever is
not in the table is refused. `groove-node lifecycle --markdown` prints this page, and
`groove-node lifecycle` the table with the rules of your own `groove.toml`.
"""
_NOTES = """\
A leaf may pass several rows in one round, in this order: births, drift and revivals; misses and
endings; splits; merges; then at most one training, and what its verdict earns. Each is journaled
with its reason: `groove-node leaf history LEAF`.

With `approve = "ask"` under `[rules]`, a split or a merge is proposed first, and carried out after
`groove-node approve`. A proposal changes no leaf.

When a leaf ends, the leaves below it go to its parent, and so do its sessions; two leaves that
merge leave both to the new one.

Three words of a leaf's history are acts of the owner alone, and no round comes to them. `restored`:
`groove-node restore DATE` puts leaves back as they were on that day, by no row of the table, and
the next round goes on from there; a leaf that sessions were withdrawn from since stays as it is.
`renamed`: `groove-node leaf rename` gives another name, and the stage stays. `withdrawn`: sessions
were deleted, and with them goes what was made of them.

A starter is not a leaf and has no stage: it is an entry of the routing table, deprecated once
leaves that grew from sessions take {starters_leave:.0%} of the last {starters_sessions:,} sessions
above their gates.
"""


def rows(rules: Rules) -> list[tuple[str, str, str, str]]:
    """The table: stages that share a change and its condition share a row."""
    out = []
    for (kind, when), group in groupby(LEGAL, key=lambda arrow: (arrow.kind, arrow.when)):
        arrows = list(group)
        sources = ", ".join(_stage(arrow.source) for arrow in arrows)
        stays = all(arrow.source is arrow.to for arrow in arrows)
        to = "the same" if stays and len(arrows) > 1 else _stage(arrows[0].to)
        out.append((sources, kind, to, _said(when, rules)))
    return out


def page(rules: Rules) -> str:
    """The whole page, in Markdown."""
    lines = [_INTRODUCTION, "```mermaid", "stateDiagram-v2", *_edges(), "```", ""]
    titles = [title.capitalize() for title in COLUMNS]
    lines += [f"| {' | '.join(titles)} |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(rules)]
    return "\n".join([*lines, "", _said(_NOTES, rules)])


def _edges() -> list[str]:
    """One line of the diagram for each pair of stages: all that leads from the one to the other."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for arrow in LEGAL:
        if arrow.kind in _STEADY or (arrow.kind == "withdrawn" and arrow.source is arrow.to):
            continue
        at = (_node(arrow.source), _node(arrow.to))
        if arrow.kind not in kinds.setdefault(at, []):
            kinds[at].append(arrow.kind)
    edges = [f"    {one} --> {other}: {', '.join(said)}" for (one, other), said in kinds.items()]
    return [*edges, *(f"    {stage.name} --> [*]" for stage in _ends(LEGAL))]


def _ends(arrows: tuple[Arrow, ...]) -> list[Stage]:
    """The stages that nothing but a withdrawal leads out of."""
    leaves = {arrow.source for arrow in arrows if arrow.kind != "withdrawn"}
    return [stage for stage in Stage if stage not in leaves]


def _node(stage: Stage | None) -> str:
    return stage.name if stage else "[*]"


def _stage(stage: Stage | None) -> str:
    return stage.name if stage else "–"


def _said(when: str, rules: Rules) -> str:
    values = {name: getattr(rules, name) for name in rules.__struct_fields__}
    return when.format_map(values)
