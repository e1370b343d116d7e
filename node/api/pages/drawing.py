"""Small drawings, made here and not in the browser: they are seen with JavaScript off."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from leaves.model import Interval

SPARK_WIDE, SPARK_HIGH = 84, 22
RANGE_WIDE, RANGE_LEFT = 560, 170
HIST_WIDE, HIST_HIGH, HIST_BINS = 240, 64, 40
STACK_WIDE, STACK_HIGH, STACK_LEFT = 960, 220, 44


def sparkline(counts: Sequence[int], label: str = "Sessions a week, the last twelve") -> Markup:
    """Bars as high as the counts, and for ears the figures; nothing if all are zero."""
    most = max(counts, default=0)
    if not most:
        return Markup()
    wide = SPARK_WIDE / len(counts)
    bars = "".join(
        f"M{at * wide:.1f} {SPARK_HIGH}v-{SPARK_HIGH * n / most:.1f}h{max(wide - 1.5, 1):.1f}"
        f"v{SPARK_HIGH * n / most:.1f}z"
        for at, n in enumerate(counts)
        if n
    )
    return Markup(
        '<svg width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}: {}">'
        '<path class="mark" d="{}"/></svg>'
    ).format(
        *(SPARK_WIDE, SPARK_HIGH, SPARK_WIDE, SPARK_HIGH, label),
        *(", ".join(map(str, counts)), bars),
    )


@dataclass(frozen=True, slots=True)
class Range:
    """A gain with its bounds. wanted: what its lower bound had to be above."""

    name: str
    interval: Interval
    wanted: float


def ranges(found: Sequence[Range]) -> Markup:
    """Each gain as a point on a line from bound to bound, with zero and what was wanted marked."""
    if not found:
        return Markup()
    ends = [
        0.0,
        *(x for each in found for x in (each.interval.low, each.interval.high, each.wanted)),
    ]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    low, high = low - span * 0.06, high + span * 0.06

    def across(value: float) -> float:
        return RANGE_LEFT + (RANGE_WIDE - RANGE_LEFT - 10) * (value - low) / (high - low)

    tall = 26 * len(found) + 22
    rows = Markup().join(_range(each, 18 + 26 * at, across) for at, each in enumerate(found))
    told = "; ".join(
        f"{x.name} {x.interval.mean:+.3f} from {x.interval.low:+.3f} to {x.interval.high:+.3f}"
        for x in found
    )
    zero = Markup(
        '<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="{1}"/>'
        '<text x="{0:.1f}" y="{2}" text-anchor="middle">0</text>'
    ).format(across(0.0), tall - 16, tall - 3)
    return Markup(
        '<svg class="chart" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="Gains in nats per token: {2}">{3}{4}</svg>'
    ).format(RANGE_WIDE, tall, told, zero, rows)


def _range(each: Range, y: int, across: Callable[[float], float]) -> Markup:
    won = each.interval.low > each.wanted
    return Markup(
        '<text x="0" y="{y4}">{name}</text>'
        '<line class="range{no}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
        '<line class="gate" x1="{wanted:.1f}" x2="{wanted:.1f}" y1="{top}" y2="{bottom}"/>'
        '<circle class="mark{no}" cx="{mean:.1f}" cy="{y}" r="4"/>'
    ).format(
        y=y,
        y4=y + 4,
        top=y - 7,
        bottom=y + 7,
        name=each.name,
        no="" if won else " no",
        low=across(each.interval.low),
        high=across(each.interval.high),
        mean=across(each.interval.mean),
        wanted=across(each.wanted),
    )


def histogram(
    values: Sequence[float],
    *,
    gate: float | None = None,
    wide: int = HIST_WIDE,
    high: int = HIST_HIGH,
    label: str = "Cosine of its sessions to its centroid",
) -> Markup:
    """How many values there are of each size from 0 to 1, with a gate drawn; nothing of none."""
    if not len(values):
        return Markup()
    counts = [0] * HIST_BINS
    for value in values:
        counts[min(max(int(value * HIST_BINS), 0), HIST_BINS - 1)] += 1
    most, step, floor = max(counts), wide / HIST_BINS, high - 14
    path = "".join(
        f"M{at * step:.1f} {floor}v-{floor * n / most:.1f}h{step - 1:.1f}v{floor * n / most:.1f}z"
        for at, n in enumerate(counts)
        if n
    )
    bars = Markup('<path class="mark" d="{}"/>').format(path)
    drawn = Markup()
    below = ""
    if gate is not None:
        share = sum(value < gate for value in values) / len(values)
        below = f"; gate {gate:.2f}, {share:.0%} below it"
        drawn = Markup('<line class="gate" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(
            gate * wide, floor
        )
    axis = Markup(
        '<line class="axis" x1="0" x2="{0}" y1="{1}" y2="{1}"/><text x="0" y="{2}">0</text>'
        '<text x="{0}" y="{2}" text-anchor="end">1</text>'
    ).format(wide, floor, high - 2)
    middle = sorted(values)[len(values) // 2]
    return Markup(
        '<svg class="chart" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="{2}: {3} values, median {4:.2f}{5}">{6}{7}{8}</svg>'
    ).format(wide, high, label, len(values), middle, below, bars, axis, drawn)


@dataclass(frozen=True, slots=True)
class Series:
    """One part of each bar of a chart. counts: of bars, all series of a chart alike."""

    name: str
    colour: str
    counts: tuple[int, ...]


def stacked(series: Sequence[Series], first_day: int, days_per_bar: int) -> Markup:
    """Bars of several parts over time, with a legend in words; nothing if there are none."""
    if not series:
        return Markup()
    bars = len(series[0].counts)
    most = max(sum(each.counts[bar] for each in series) for bar in range(bars)) or 1
    step = (STACK_WIDE - STACK_LEFT) / bars
    floor, tall = STACK_HIGH - 18, STACK_HIGH - 26
    base = [0] * bars
    drawn = Markup()
    for each in series:
        path = []
        for bar, count in enumerate(each.counts):
            if count:
                top = floor - tall * (base[bar] + count) / most
                left, high = STACK_LEFT + bar * step, tall * count / most
                width = max(min(step - 1, 40), 0.6)
                path.append(f"M{left:.1f} {top:.1f}h{width:.1f}v{high:.1f}h-{width:.1f}z")
                base[bar] += count
        drawn += Markup('<path fill="{}" d="{}"><title>{}: {:,}</title></path>').format(
            each.colour, "".join(path), each.name, sum(each.counts)
        )
    dates = Markup().join(
        Markup('<text x="{:.0f}" y="{}">{}</text>').format(
            STACK_LEFT + bar * step, STACK_HIGH - 3, _date(first_day + bar * days_per_bar)
        )
        for bar in range(0, bars, max(1, -(-bars // 7)))
    )
    axis = Markup(
        '<path class="axis" fill="none" d="M{0} 8V{1}H{2}"/>'
        '<text x="{3}" y="16" text-anchor="end">{4:,}</text>'
    ).format(STACK_LEFT, floor, STACK_WIDE, STACK_LEFT - 5, most)
    told = ", ".join(f"{each.name} {sum(each.counts):,}" for each in series)
    picture = Markup(
        '<svg class="chart" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="{2}">{3}{4}{5}</svg>'
    ).format(STACK_WIDE, STACK_HIGH, told, drawn, axis, dates)
    return picture + _legend(series)


def _legend(series: Sequence[Series]) -> Markup:
    items = Markup().join(
        Markup(
            '<li><svg width="10" height="10" aria-hidden="true"><rect width="10" height="10" '
            'rx="2" fill="{}"/></svg> {} <span class="soft">{:,}</span></li>'
        ).format(each.colour, each.name, sum(each.counts))
        for each in series
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _date(days: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=days)).isoformat()
