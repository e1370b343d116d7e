"""The map as a picture for a slide or a report, by matplotlib (extra `map`)."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np

from node.errors import OwnerError
from node.show import counted

from .atlas import Atlas
from .marks import UNASSIGNED
from .page import note

MADE_BY = b"tEXtSoftware\0groove-node map"
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
DPI = 150
SERIES_MAX = 24
LINE_EM = 0.02  # height of a line of labels, in parts of the picture
CHAR_EM = 0.0085


class NoMatplotlibError(OwnerError):
    """The extra that draws png is not installed."""


def png(atlas: Atlas, *, growth: bool = False) -> bytes:
    """The map, and below it growth over time if asked for. It never holds a text of a prompt."""
    # It warns of glyphs that its font lacks, and tells when it first looks for fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise NoMatplotlibError(
                "a .png is drawn by matplotlib, which is not installed",
                unchanged="No file was written.",
                next_step="`pip install matplotlib`, or give a file that ends in .html.",
            ) from None
        figure = Figure(figsize=(11, 14 if growth else 10), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subplots(2, 1, height_ratios=(3, 1)) if growth else [figure.subplots()]
        _map(parts[0], atlas)
        if growth:
            _growth(parts[1], atlas)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": "groove-node map"})
    return out.getvalue()


def _map(axes: Any, atlas: Atlas) -> None:
    dots = atlas.dots
    size = 14 if len(dots.ids) < 2_000 else 6 if len(dots.ids) < 10_000 else 2
    leaves = np.array([leaf or "" for leaf in dots.leaves])
    for leaf in sorted(set(leaves.tolist())):  # the unassigned come first, below all others
        mark = atlas.marks.get(leaf, UNASSIGNED)
        x, y = dots.places[leaves == leaf].T
        axes.scatter(
            x, y, s=size, c=mark.colour, marker=MARKERS[mark.shape], linewidths=0,
            alpha=0.75 if leaf else 0.35,
        )  # fmt: skip
    _labels(axes, atlas)
    axes.set_title(f"{counted(atlas.standing.sessions, 'session')}. {note(atlas)}", fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[], yticks=[], aspect="equal")


def _labels(axes: Any, atlas: Atlas) -> None:
    """Names where their leaves are densest, the larger first; moved up or down past others."""
    from matplotlib.patheffects import withStroke

    leaves = atlas.standing.forest.leaves
    taken: list[tuple[float, float, float]] = []
    for leaf in sorted(atlas.spots, key=lambda id_: (-leaves[id_].sessions, id_)):
        x, y = atlas.spots[leaf]
        half = len(leaves[leaf].name) * CHAR_EM / 2
        for step in (0, 1, -1, 2, -2, 3, -3):
            at = y + step * LINE_EM
            if all(abs(at - b) >= LINE_EM or abs(x - a) >= half + w for a, b, w in taken):
                break
        else:
            continue  # no room: its colour is still there
        taken.append((x, at, half))
        # A dollar sign would begin a formula, and a bad formula raises.
        name = leaves[leaf].name.replace("$", r"\$")
        halo = [withStroke(linewidth=3, foreground="white")]
        axes.text(x, at, name, ha="center", va="center", fontsize=8, path_effects=halo)


def _growth(axes: Any, atlas: Atlas) -> None:
    """Stacked bars of the largest leaves; the rest and the unassigned in grey on top."""
    growth = atlas.growth
    names = {leaf.id: leaf.name.replace("$", r"\$") for leaf in atlas.standing.forest}
    first = np.datetime64("1970-01-01") + growth.first_day
    starts = first + np.arange(growth.counts.shape[1]) * growth.days_per_bar
    order = np.argsort(-growth.counts[:-1].sum(axis=1), kind="stable")
    base = np.zeros(growth.counts.shape[1])
    for row in order[:SERIES_MAX]:
        leaf = growth.leaves[row]
        axes.bar(
            starts, growth.counts[row], bottom=base, width=growth.days_per_bar * 0.9,
            align="edge", color=atlas.marks[leaf].colour, label=names[leaf],
        )  # fmt: skip
        base = base + growth.counts[row]
    rest = growth.counts[order[SERIES_MAX:]].sum(axis=0) + growth.counts[-1]
    width = growth.days_per_bar * 0.9
    axes.bar(starts, rest, bottom=base, width=width, align="edge", color=UNASSIGNED.colour)
    axes.set_ylabel(f"sessions in {growth.days_per_bar // 7} weeks")
    if growth.days_per_bar == 7:
        axes.set_ylabel("sessions per week")
    if len(order):
        axes.legend(fontsize=6, ncols=2, loc="upper left")
