"""The parts of the page that need no script: the tree as nested lists, growth as a drawing.

Every name is escaped here: it is made of the owner's words, or is a peer's.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from leaves.model import Leaf, LeafId, Stage
from node.foreign import Known
from node.show import counted, day, evaluation_line

from .atlas import Atlas
from .growth import Event, Growth
from .marks import UNASSIGNED, Mark
from .tree import Branch, Standing, grown, missing, pace

PATHS = {  # of a shape, in a box of 12 by 12
    "circle": "M6 1a5 5 0 1 0 .01 0z",
    "square": "M1.5 1.5h9v9h-9z",
    "triangle": "M6 .5L11.5 11H.5z",
    "diamond": "M6 0L11.5 6L6 12L.5 6z",
}
SERIES_MAX = 24  # of a chart; a thinner part of a bar cannot be told from its neighbour
EVENTS_MAX = 500
WIDE, HIGH, LEFT, TOP, BOTTOM = 960, 260, 48, 26, 24


def swatch(mark: Mark) -> str:
    return (
        f'<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">'
        f'<path d="{PATHS[mark.shape]}" fill="{mark.colour}"/></svg>'
    )


def tree_html(atlas: Atlas, index: Mapping[LeafId, int]) -> str:
    """Nested lists. `data-leaf`: a leaf's index in the page's data; one past the last is none."""
    parts = [_branch(branch, atlas, index) for branch in grown(atlas.standing.forest)]
    for name in atlas.standing.starters:
        parts.append(
            f'<li data-name="{escape(name)}"><span class="soft">{escape(name)} (starter)'
            "</span></li>"
        )
    parts += [
        _of_peer(known) for known in atlas.standing.foreign if known.leaf.stage is Stage.MATURE
    ]
    if atlas.standing.unassigned:
        parts.append(_unassigned(atlas.standing, len(index)))
    if atlas.former:
        former = "".join(_leaf(leaf, (), atlas, index) for leaf in atlas.former)
        parts.append(
            f'<li data-name=""><details><summary>Former leaves</summary><ul>{former}</ul>'
            "</details></li>"
        )
    return f"<ul>{''.join(parts)}</ul>" if parts else '<p class="soft">No leaves yet.</p>'


def _branch(branch: Branch, atlas: Atlas, index: Mapping[LeafId, int]) -> str:
    children = tuple(_branch(child, atlas, index) for child in branch.children)
    leaf = branch.leaf
    if leaf.level > 1:
        return _leaf(leaf, children, atlas, index)
    return (
        f'<li data-name="{escape(leaf.name)}"><details open><summary><b>{escape(leaf.name)}</b> '
        f'<span class="sessions">{leaf.sessions:,}</span></summary>'
        f"<ul>{''.join(children)}</ul></details></li>"
    )


def _leaf(leaf: Leaf, children: Sequence[str], atlas: Atlas, index: Mapping[LeafId, int]) -> str:
    name, at = escape(leaf.name), index[leaf.id]
    box = button = ""
    if leaf.stage.live:
        box = f'<input type="checkbox" checked data-show="{at}" aria-label="Show {name}">'
        button = f'<button type="button" data-find="{at}">Find on the map</button>'
    facts = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
        for key, value in _facts(leaf, atlas.standing)
    )
    below = f"<ul>{''.join(children)}</ul>" if children else ""
    return (
        f'<li data-leaf="{at}" data-name="{name}"><div class="row">{box}'
        f"<details{' open' if children else ''}><summary>{swatch(atlas.marks[leaf.id])}{name} "
        f'<span class="stage" data-stage="{leaf.stage}">{leaf.stage}</span> '
        f'<span class="sessions">{leaf.sessions:,}</span></summary>'
        f"<dl>{facts}</dl>{button}{below}</details></div></li>"
    )


def _facts(leaf: Leaf, standing: Standing) -> list[tuple[str, str]]:
    """Figures alone: a leaf's notes and reasons stay in the terminal."""
    gate = standing.gates.get(leaf.id)
    facts = [
        ("next", ", ".join(missing(leaf, standing.rules, standing.train))),
        ("pace", pace(leaf)),
        ("gate", f"{gate:.2f}" if gate else ""),
        ("born", day(leaf.created)),
        (f"{leaf.stage} since", day(leaf.stage_since)),
        ("trained", f"{leaf.trainings} times, {leaf.wins} won" if leaf.trainings else ""),
        ("measured", evaluation_line(leaf.evaluation) if leaf.evaluation else ""),
        ("id", leaf.id[:8]),
    ]
    return [(key, value) for key, value in facts if value]


def _of_peer(known: Known) -> str:
    name = escape(known.name)
    return (
        f'<li data-name="{name}"><span>{name} <span class="soft">(of a peer, '
        f"{escape(known.leaf.origin[:8])}; {known.state})</span></span></li>"
    )


def _unassigned(standing: Standing, at: int) -> str:
    what = counted(standing.unassigned, "unassigned session")
    return (
        f'<li data-leaf="{at}" data-name="unassigned"><div class="row"><input type="checkbox" '
        f'checked data-show="{at}" aria-label="Show unassigned sessions"><span>'
        f'{swatch(UNASSIGNED)} {what} <span class="soft">(noise, or newer than the last round)'
        "</span></span></div></li>"
    )


def growth_html(atlas: Atlas) -> str:
    """The chart, and what happened when as a table, for those who cannot see the chart."""
    growth = atlas.growth
    names = {leaf.id: leaf.name for leaf in atlas.standing.forest}
    span = "week" if growth.days_per_bar == 7 else f"{growth.days_per_bar // 7} weeks"
    rows = "".join(
        f"<tr><td>{_date(event.day)}</td><td>{escape(event.name)}</td>"
        f"<td>{escape(_told(event))}</td></tr>"
        for event in atlas.events[: -EVENTS_MAX - 1 : -1]
    )
    more = len(atlas.events) - EVENTS_MAX
    earlier = f'<p class="soft">{more:,} earlier ones are left out.</p>' if more > 0 else ""
    table = (
        f"<details><summary>{counted(len(atlas.events), 'event')}</summary><table><thead><tr>"
        "<th>Day</th><th>Leaf</th><th>What</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{earlier}</details>"
    )
    return (
        f'<p class="soft">Sessions per {span}, by the leaf that holds them today. '
        "\N{BLACK UP-POINTING TRIANGLE} a birth, \N{BLACK STAR} a promotion, "
        "\N{BLACK DOWN-POINTING TRIANGLE} an end.</p>"
        f'<div class="scroll">{_chart(growth, atlas, names)}</div>{table}'
    )


def bar_width(growth: Growth) -> float:
    bars: int = growth.counts.shape[1]
    return (WIDE - LEFT) / bars


def _chart(growth: Growth, atlas: Atlas, names: Mapping[LeafId, str]) -> str:
    """Stacked bars: the largest leaves below, then the others together, the unassigned on top."""
    totals = growth.counts.sum(axis=1)
    largest = sorted(range(len(growth.leaves)), key=lambda row: (-totals[row], row))
    kept, others = largest[:SERIES_MAX], largest[SERIES_MAX:]
    series = [
        (names[growth.leaves[row]], atlas.marks[growth.leaves[row]].colour, growth.counts[row])
        for row in kept
    ]
    if others:
        many = f"{len(others)} smaller leaves"
        series.append((many, "#b5b5b5", growth.counts[others].sum(axis=0)))
    series.append(("unassigned", UNASSIGNED.colour, growth.counts[-1]))
    most = max(int(growth.counts.sum(axis=0).max()), 1)
    wide, tall = bar_width(growth), HIGH - TOP - BOTTOM
    base = [0] * growth.counts.shape[1]
    drawn = []
    for name, colour, counts in series:
        path = []
        for bar, count in enumerate(counts.tolist()):
            if count:
                top = HIGH - BOTTOM - tall * (base[bar] + count) / most
                width = max(wide - 0.8, 0.5)
                high = tall * count / most
                left = LEFT + bar * wide
                path.append(f"M{left:.1f} {top:.1f}h{width:.1f}v{high:.1f}h-{width:.1f}z")
                base[bar] += count
        total = counted(int(counts.sum()), "session")
        drawn.append(
            f'<path fill="{colour}" d="{"".join(path)}"><title>{escape(name)}: {total}</title>'
            "</path>"
        )
    axis = _axis(growth, most)
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="Sessions over time">'
        f"{''.join(drawn)}{axis}{_events(growth, atlas.events)}"
        f'<line id="now" class="cursor" x1="{WIDE}" x2="{WIDE}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>'
        "</svg>"
    )


def _axis(growth: Growth, most: int) -> str:
    bars, wide = growth.counts.shape[1], bar_width(growth)
    step = max(1, -(-bars // 10))
    dates = "".join(
        f'<text x="{LEFT + bar * wide:.1f}" y="{HIGH - 8}">'
        f"{_date(growth.first_day + bar * growth.days_per_bar)}</text>"
        for bar in range(0, bars, step)
    )
    floor = HIGH - BOTTOM
    return (
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDE}" fill="none"/>{dates}'
        f'<text x="{LEFT - 6}" y="{TOP + 6}" text-anchor="end">{most:,}</text>'
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">0</text>'
    )


def _events(growth: Growth, events: Iterable[Event]) -> str:
    """One mark a kind and bar, with all of its names; those before the first bar are left out."""
    found: dict[tuple[int, str], list[Event]] = {}
    for event in events:
        bar = (event.day - growth.first_day) // growth.days_per_bar
        if event.day >= growth.first_day and (sign := _SIGNS.get(event.what)):
            found.setdefault((min(bar, growth.counts.shape[1] - 1), sign), []).append(event)
    wide = bar_width(growth)
    return "".join(
        f'<text class="event" x="{LEFT + (bar + 0.5) * wide:.1f}" y="{_HEIGHTS[sign]}" '
        f'text-anchor="middle">{sign}<title>'
        f"{escape('; '.join(f'{x.name}: {_told(x)}, {_date(x.day)}' for x in together[:20]))}"
        "</title></text>"
        for (bar, sign), together in sorted(found.items())
    )


_SIGNS = {
    "born": "\N{BLACK UP-POINTING TRIANGLE}",
    Stage.MATURE.value: "\N{BLACK STAR}",
    Stage.ARCHIVED.value: "\N{BLACK DOWN-POINTING TRIANGLE}",
    Stage.DISSOLVED.value: "\N{BLACK DOWN-POINTING TRIANGLE}",
    Stage.MERGED.value: "\N{BLACK DOWN-POINTING TRIANGLE}",
}
_HEIGHTS = {sign: 10 + 8 * n for n, sign in enumerate(dict.fromkeys(_SIGNS.values()))}


def _told(event: Event) -> str:
    return {"sprout": "a sprout: trained", "mature": "promoted to mature"}.get(
        event.what, event.what
    )


def _date(days: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=days)).isoformat()
