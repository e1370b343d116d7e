"""One run as a picture: how news spread, what the tree did, and what it cost each node.

Three panels. Above, for each head that was published, the share of nodes that hold it, over
simulated time; in the middle, how many leaves of all origins stand where in their life; below,
what each node sent, on the urgent plane and in bulk. What went wrong meanwhile is shaded.
"""

from __future__ import annotations

import importlib.util
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

    figure = Figure(figsize=(9, 10), layout="constrained", dpi=130)
    spread, life, cost = figure.subplots(3, 1, height_ratios=(5, 4, 3))
    verdict = f"broken: {run.broken.invariant}" if run.broken else "every invariant held"
    figure.suptitle(
        f"{run.scenario}, seed {run.seed}, {run.nodes} nodes: {verdict}", fontsize=13, weight="bold"
    )
    start, unit, word = _scale(record)
    for axes in (spread, life):
        _shade(axes, record, start, unit)
        axes.set_xlim(0, max((record.net.now - start) / unit, 1e-9))
    _draw_spread(spread, record, start, unit)
    _draw_life(life, record, start, unit)
    life.set_xlabel(f"simulated time, {word}")
    life.sharex(spread)
    _draw_cost(cost, record)
    for axes in (spread, life, cost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    figure.savefig(path)


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
    if points:
        times = [(at - start) / unit for at, _ in points]
        used = [stage for stage in STAGES if any(counts[stage] for _, counts in points)]
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
                alpha=0.12 + 0.3 * share,
                linewidth=0,
                zorder=0,
            )
        if spans:
            shown.append(Patch(color=colours[name], alpha=0.4, label=name))
    if shown and axes.get_subplotspec().is_first_row():
        axes.legend(handles=shown, loc="lower right", fontsize=8.5, framealpha=0.9)


def _steps(points: Sequence[tuple[float, float]], end: float) -> list[Span]:
    """Turn values and since when they hold into spans of those above nothing."""
    following = [at for at, _ in points[1:]] + [end]
    spans = zip(points, following, strict=True)
    return [(at, until, share) for (at, share), until in spans if share > 0 and until > at]


def _scale(record: Recorder) -> tuple[float, float, str]:
    """When the axis of time begins, its unit in seconds, and the unit's name."""
    end = record.net.now
    first = min(_times(record), default=0.0)
    start = max(0.0, first - 0.04 * (end - first))
    span = end - start
    for unit, word in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if span >= 3 * unit:
            return start, unit, word
    return start, 1.0, "seconds"


def _times(record: Recorder) -> Iterable[float]:
    for heads in record.news.values():
        for news in heads:
            yield news.steps[0][0]
    for spans in record.spans().values():
        for since, _, _ in spans:
            yield since
