"""The map as one file that opens from disk: no network, no other file, nothing it did not bring.

An own canvas of 400 lines, not plotly: plotly.js would add 4.8 MB to every map and 64 MB to an
installation, draws more than some thousand dots only by WebGL code that it compiles with
`Function`, which a content security policy without 'unsafe-eval' refuses, and cannot be used
without a pointer.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from leaves.model import LeafId
from node.show import counted, moment

from .atlas import Atlas
from .fragments import LEFT, bar_width, growth_html, tree_html
from .marks import UNASSIGNED

MADE_BY = b'<meta name="generator" content="groove-node map">'
ID_CHARS = 8
_MARK = re.compile(r"<!--([a-z]+)-->")


def page(atlas: Atlas) -> bytes:
    """The whole page. Texts of prompts are in it only if they are in the atlas."""
    folder = files(__package__)
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    pieces = parts(atlas) | {
        "csp": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        "title": f"Map of {counted(atlas.standing.sessions, 'session')}",
        "note": escape(note(atlas)),
        "warning": _warning(atlas),
        "style": style,
        "script": script,
    }
    template = (folder / "page.html").read_text("utf-8")
    return _MARK.sub(lambda found: pieces[found[1]], template).encode()


def parts(atlas: Atlas) -> dict[str, str]:
    """What the page is made of beyond its frame: markup, and the data of its script."""
    leaves = [leaf for leaf in atlas.standing.forest.live() if leaf.level > 1]
    index = {leaf.id: at for at, leaf in enumerate([*leaves, *atlas.former])}
    return {
        "first": str(_first_day(atlas)),
        "last": str(_last_day(atlas)),
        "tree": tree_html(atlas, index),
        "growth": growth_html(atlas),
        # In a script element, only "<" could end it or open a comment.
        "data": msgspec.json.encode(_data(atlas, index)).decode().replace("<", "\\u003c"),
    }


def note(atlas: Atlas) -> str:
    """How the picture came to be, in one sentence."""
    dots = atlas.dots
    shown, all_ = len(dots.ids), atlas.standing.sessions
    sample = f"; {shown:,} of {all_:,} sessions are shown, chosen by hash" if shown < all_ else ""
    why = f", as {dots.why}" if dots.why else ""
    return f"Made {moment(atlas.made)} UTC. Laid out by {dots.method}{why}{sample}."


def _warning(atlas: Atlas) -> str:
    if not atlas.dots.texts:
        return ""
    return '<p class="warn" role="note">This page holds texts of your prompts: do not share it.</p>'


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def _data(atlas: Atlas, index: dict[LeafId, int]) -> dict[str, Any]:
    """What the script draws. Places, leaves and days are little-endian 16-bit numbers, base64."""
    dots, growth = atlas.dots, atlas.growth
    none = len(index)
    leaf_of = [none if leaf is None else index[leaf] for leaf in dots.leaves]
    return {
        "total": atlas.standing.sessions,
        "first": _first_day(atlas),
        "last": _last_day(atlas),
        "unassigned": UNASSIGNED.colour,
        "leaves": [
            {
                "name": leaf.name,
                "stage": leaf.stage.value,
                "colour": atlas.marks[leaf.id].colour,
                "shape": atlas.marks[leaf.id].shape,
                "spot": atlas.spots.get(leaf.id),
                "life": [(x.day, x.stage.value, x.sessions) for x in atlas.lives[leaf.id]],
            }
            for leaf in (atlas.standing.forest.leaves[id_] for id_ in index)
        ],
        "places": _packed(np.rint(dots.places * 65535)),
        "leaf_of": _packed(np.array(leaf_of)),
        "days": _packed(np.array(dots.days)),
        "ids": [id_[:ID_CHARS] for id_ in dots.ids],
        "texts": list(dots.texts) or None,
        "bars": {
            "first": growth.first_day,
            "days": growth.days_per_bar,
            "count": growth.counts.shape[1],
            "left": LEFT,
            "width": bar_width(growth),
        },
    }


def _first_day(atlas: Atlas) -> int:
    return min(atlas.dots.days)


def _last_day(atlas: Atlas) -> int:
    """The last day on which anything happened; a round may follow the last session by days."""
    return max([*atlas.dots.days, *(then[-1].day for then in atlas.lives.values() if then)])


def _packed(values: NDArray[Any]) -> str:
    clipped = np.clip(values, 0, 65535)
    return base64.b64encode(clipped.astype("<u2").tobytes()).decode()
