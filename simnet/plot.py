"""One run as a picture: how news spread, what the tree did, and what it cost each node.

Three panels. Above, for each head that was published, the share of nodes that hold it, over
simulated time; in the middle, how many leaves of all origins stand where in their life; below,
what each node sent, on the urgent plane and in bulk. What went wrong meanwhile is shaded, and a
red line is where an invariant broke. Where news went on after the last fault was taken away, one
panel more shows that time alone, for beside six hours of a partition it is no wider than a line.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossip.core import OriginView
from gossip.events import Effect, Event, OriginChanged
from gossip.ports import PeerId
from gossip.wire import Op
from node.errors import MisuseError, OwnerError

from .runs import Observe, Plan, Run
from .watch import Change, Watcher

if TYPE_CHECKING:
    from .network import Network, Node

SUFFIXES = (".png", ".svg", ".pdf")
STAGES = {  # from the bottom up
    "live": "#3b7a57",
    "live, from a split": "#8fbf6a",
    "live, from a merge": "#c9b458",
    "ended": "#b9a7c9",
    "retracted": "#a8443f",
}
URGENT, BULK = "#c8642d", "#4a6fa5"
CUT, DOWN, LOSSY = "#e0a458", "#7a7a7a", "#9fb8d8"
BROKE = "#c1121f"
ROOM = 0.05  # of the axis of time, after the end
NARROW = 0.25  # of the axis: what took less of it after the heal is shown by itself

Span = tuple[float, float, float]  # from, until, how much of it, from 0 to 1
Version = tuple[int, int]


def drawing(plan: Plan, path: Path) -> tuple[Observe, Callable[[Run], None]]:
    """Return what has to look on at the run, and what draws it afterwards. Raises OwnerError."""
    if path.suffix not in SUFFIXES:
        raise MisuseError(f"--plot {str(path)!r} must end in {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OwnerError(
            "--plot needs matplotlib, which is not installed",
            unchanged="Nothing was played.",
            next_step="`pip install 'groove-node[map]'`, or leave --plot out.",
        )
    records: list[Recorder] = []

    def look_on(net: Network) -> Recorder:
        records.append(Recorder(net))
        return records[-1]

    def draw(run: Run) -> None:
        draw_run(records[0], run, path)

    return look_on, draw


@dataclass(slots=True)
class _News:
    """One published head: when how many nodes held it."""

    version: Version
    steps: list[tuple[float, int]]


class Recorder(Watcher):
    """Remembers of a run what the picture shows."""

    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self.news: dict[bytes, list[_News]] = {}  # by origin, as published
        self.life: list[tuple[float, Counter[str]]] = []
        self.urgent: Counter[PeerId] = Counter()  # bytes sent
        self.bulk: Counter[PeerId] = Counter()
        self.cut: list[Span] = []
        self.down: list[tuple[float, int]] = [(net.now, 0)]
        self.healed: float | None = None  # when last all faults were taken away
        self.lossy: list[tuple[float, float]] = [(net.now, net.links.loss)]
        self._cut_since: float | None = None
        self._held: dict[tuple[PeerId, bytes], int] = {}  # heads of an origin, held at a node
        self._stages: dict[tuple[bytes, bytes], str] = {}
        self._off: dict[PeerId, None] = {}

    def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
        if self.net.links.loss != self.lossy[-1][1]:
            self.lossy.append((self.net.now, self.net.links.loss))
        for effect in effects:
            if isinstance(effect, OriginChanged) and node.replica is not None:
                view = node.replica.view(effect.origin)
                if node.origin == effect.origin:
                    self._published(view)
                self._heard(node.name, view)

    def carried(self, src: PeerId, dst: PeerId, size_bytes: int, urgent: bool) -> None:
        (self.urgent if urgent else self.bulk)[src] += size_bytes

    def changed(self, kind: Change, name: PeerId | None) -> None:
        if name is None:
            if self._cut_since is not None:
                self.cut.append((self._cut_since, self.net.now, 1.0))
            self._cut_since = self.net.now if kind == "partition" else None
            if kind == "heal":
                self.healed = self.net.now
        else:
            self._off.pop(name, None)
            if kind == "crash":
                self._off[name] = None
            self.down.append((self.net.now, len(self._off)))

    def spans(self) -> dict[str, list[Span]]:
        """What went wrong when, by name."""
        end, size = self.net.now, len(self.net.nodes)
        cut = list(self.cut)
        if self._cut_since is not None:
            cut.append((self._cut_since, end, 1.0))
        return {
            "partition": [span for span in cut if span[1] > span[0]],
            "nodes down": _steps([(at, count / size) for at, count in self.down], end),
            "frames lost": _steps(self.lossy, end),
        }

    def late(self) -> bool:
        """True if nodes heard of news after the heal, and so soon that it would not be seen."""
        if self.healed is None:
            return False
        after, whole = self.net.now - self.healed, self.net.now - _first(self)
        steps = (at for heads in self.news.values() for news in heads for at, _ in news.steps)
        return 0 < after < NARROW * whole and any(at > self.healed for at in steps)

    def _published(self, view: OriginView) -> None:
        heads = self.news.setdefault(view.origin, [])
        if view.head is not None:
            version = (view.head.epoch, view.head.seq)
            if not heads or version > heads[-1].version:
                heads.append(_News(version, [(self.net.now, 0)]))
        for leaf in [leaf for origin, leaf in self._stages if origin == view.origin]:
            self._stages[view.origin, leaf] = "ended"  # what is absent under a newer head is gone
        for card in view.cards:
            self._stages[view.origin, card.leaf] = {
                Op.SPLIT: "live, from a split",
                Op.MERGE: "live, from a merge",
            }.get(card.op, "live")
        for origin, leaf in self._stages:
            if origin == view.origin and (leaf in view.retracted or None in view.retracted):
                self._stages[origin, leaf] = "retracted"
        self.life.append((self.net.now, Counter(self._stages.values())))

    def _heard(self, name: PeerId, view: OriginView) -> None:
        heads = self.news.get(view.origin, [])
        held = self._held.get((name, view.origin), 0)
        if view.head is None:
            return
        version = (view.head.epoch, view.head.seq)
        while held < len(heads) and heads[held].version <= version:
            news = heads[held]
            news.steps.append((self.net.now, news.steps[-1][1] + 1))
            held += 1
        self._held[name, view.origin] = held


def draw_run(record: Recorder, run: Run, path: Path) -> None:
    """Write the picture of a run."""
    from matplotlib.figure import Figure

    late = record.late()
    heights = (5, 4, 4, 3) if late else (5, 4, 3)
    figure = Figure(figsize=(9, 2.3 + 0.64 * sum(heights)), layout="constrained", dpi=130)
    spread, *zoom, life, cost = figure.subplots(len(heights), 1, height_ratios=heights)
    verdict = f"broken: {run.broken.invariant}" if run.broken else "every invariant held"
    figure.suptitle(
        f"{run.scenario}, seed {run.seed}, {run.nodes} nodes: {verdict}", fontsize=13, weight="bold"
    )
    start, end = _first(record), record.net.now
    unit, word = _scale(end - start)
    for axes in (spread, life):
        _along(axes, record, run, start, end, unit)
    _draw_spread(spread, record, start, unit)
    _draw_life(life, record, start, unit)
    for axes in (spread, life):
        axes.set_xlabel(f"{word} since the first head was signed, or the first fault")
    if late and record.healed is not None:
        unit, word = _scale(end - record.healed)
        _along(zoom[0], record, run, record.healed, end, unit)
        _draw_spread(zoom[0], record, record.healed, unit)
        zoom[0].set_title("The same, from the end of all faults", loc="left", fontsize=10.5)
        zoom[0].set_xlabel(f"{word} since all faults were taken away")
    _draw_cost(cost, record)
    for axes in (spread, *zoom, life, cost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    figure.savefig(path)


def _along(axes: Any, record: Recorder, run: Run, start: float, end: float, unit: float) -> None:
    """What is along the axis of time: what went wrong, where it broke, and some room after it."""
    span = max((end - start) / unit, 1e-9)
    _shade(axes, record, start, unit)
    axes.set_xlim(-0.02 * span, (1 + ROOM) * span)
    if run.broken is None:
        return
    axes.axvline(span, color=BROKE, linewidth=1.6, zorder=5)
    if axes.get_subplotspec().is_first_row():
        text = textwrap.shorten(f"{run.broken.invariant}: {run.broken.text}", 90)
        axes.annotate(
            text,
            (span, 52),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            color=BROKE,
            fontsize=8.5,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2},
            zorder=6,
        )


def _draw_spread(axes: Any, record: Recorder, start: float, unit: float) -> None:
    from matplotlib import colormaps

    size, end = len(record.net.nodes), record.net.now
    every = [news for heads in record.news.values() for news in heads]
    every.sort(key=lambda news: news.steps[0][0])
    shades = colormaps["viridis"].resampled(len(every) + 1)
    for nth, news in enumerate(every):
        times = [(at - start) / unit for at, _ in news.steps] + [(end - start) / unit]
        shares = [100 * count / size for _, count in news.steps]
        axes.step(
            times,
            [*shares, shares[-1]],
            where="post",
            color=shades(nth),  # from dark to bright in the order of publication
            linewidth=1.3,
            alpha=max(0.3, min(0.9, 30 / max(1, len(every)))),
        )
    axes.set_ylim(0, 104)
    axes.set_ylabel("nodes that had it or a newer, %")
    plural = "head" if len(every) == 1 else "heads"
    axes.set_title(f"Spread of {len(every):,} published {plural}", loc="left", fontsize=10.5)


def _draw_life(axes: Any, record: Recorder, start: float, unit: float) -> None:
    points = [*record.life, (record.net.now, record.life[-1][1])] if record.life else []
    used = [stage for stage in STAGES if any(counts[stage] for _, counts in points)]
    if used:
        times = [(at - start) / unit for at, _ in points]
        axes.stackplot(
            times,
            [[counts[stage] for _, counts in points] for stage in used],
            labels=used,
            colors=[STAGES[stage] for stage in used],
            step="post",
            alpha=0.9,
        )
        axes.legend(loc="upper left", fontsize=8.5, framealpha=0.9)
        axes.set_ylim(0, 1.3 * max(sum(counts.values()) for _, counts in points) or 1)
    axes.set_ylabel("leaves")
    axes.set_title("The tree's life, as its origins signed it", loc="left", fontsize=10.5)


def _draw_cost(axes: Any, record: Recorder) -> None:
    names = sorted(record.net.nodes, key=lambda name: -(record.urgent[name] + record.bulk[name]))
    most = max((record.urgent[name] + record.bulk[name] for name in names), default=0)
    unit, word = next(
        (u, w) for u, w in ((1e6, "MB"), (1e3, "KB"), (1.0, "bytes")) if most >= u or u == 1.0
    )
    bulk = [record.bulk[name] / unit for name in names]
    urgent = [record.urgent[name] / unit for name in names]
    places = range(len(names))
    wide = 0.8 if len(names) <= 60 else 1.0
    axes.bar(places, bulk, width=wide, color=BULK, label="bulk")
    axes.bar(places, urgent, width=wide, bottom=bulk, color=URGENT, label="urgent")
    if len(names) <= 24:
        axes.set_xticks(list(places), names, rotation=45, ha="right")
    else:
        axes.set_xlabel("nodes, by what they sent")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1.15 * (most / unit) or 1)
    axes.set_ylabel(f"sent, {word}")
    axes.legend(loc="upper right", fontsize=8.5, ncols=2)
    axes.set_title("What each node sent", loc="left", fontsize=10.5)


def _shade(axes: Any, record: Recorder, start: float, unit: float) -> None:
    """Shade what went wrong; the darker, the more of it."""
    from matplotlib.patches import Patch

    colours = {"partition": CUT, "nodes down": DOWN, "frames lost": LOSSY}
    shown = []
    for name, spans in record.spans().items():
        for since, until, share in spans:
            axes.axvspan(
                (since - start) / unit,
                (until - start) / unit,
                color=colours[name],
                alpha=0.1 + 0.2 * share,
                linewidth=0,
                zorder=0,
            )
        if spans:
            shown.append(Patch(color=colours[name], alpha=0.3, label=name))
    if shown and axes.get_subplotspec().is_first_row():
        axes.legend(handles=shown, loc="lower right", fontsize=8.5, framealpha=0.9)


def _steps(points: Sequence[tuple[float, float]], end: float) -> list[Span]:
    """Turn values and since when they hold into spans of those above nothing."""
    following = [at for at, _ in points[1:]] + [end]
    spans = zip(points, following, strict=True)
    return [(at, until, share) for (at, share), until in spans if share > 0 and until > at]


def _first(record: Recorder) -> float:
    """When the first news or the first fault was."""
    return min(_times(record), default=0.0)


def _scale(span: float) -> tuple[float, str]:
    """The unit of a span of seconds, and its name."""
    for unit, word in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if span >= 3 * unit:
            return unit, word
    return 1.0, "seconds"


def _times(record: Recorder) -> Iterable[float]:
    for heads in record.news.values():
        for news in heads:
            yield news.steps[0][0]
    for spans in record.spans().values():
        for since, _, _ in spans:
            yield since
