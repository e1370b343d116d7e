"""What a view gives back and a template is filled with; how it becomes the bytes of a page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from leaves.model import DAY_S
from node import show

from . import drawing

MOMENTS_S = ((DAY_S * 2, DAY_S, "days"), (7200, 3600, "hours"), (120, 60, "minutes"))

# Path, name, and what one finds there: the navigation of every page.
PLACES = (
    ("/", "Home", "What the node does, and what needs you"),
    ("/leaves", "Leaves", "What grew from your sessions"),
    ("/map", "Map", "Your sessions on a plane"),
    ("/routing", "Routing", "How sure the router is, and how leaves changed"),
    ("/rounds", "Rounds", "What was decided and why, and what waits for you"),
    ("/mesh", "Mesh", "Peers, their leaves, and bundles"),
    ("/rights", "Data and rights", "What is allowed, what leaves this machine"),
    ("/resources", "Resources", "When the node works, and why it waits"),
    ("/endpoint", "Endpoint", "How tools use your leaves"),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as far as a view may know of it. query: the last value of each name."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # parts of the path
    back_end: Mapping[str, Any] = field(default_factory=dict)  # what the back end says of itself
    form: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # all values of each name

    def number(self, name: str, least: int, most: int, otherwise: int) -> int:
        """A number of the query within bounds; what is none counts as not given."""
        text = self.query.get(name, "")
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            return otherwise
        return min(max(int(text), least), most)


@dataclass(frozen=True, slots=True)
class Page:
    """What a template is filled with. topics: of `desk.FILES`, those that change the page."""

    template: str
    title: str
    facts: Mapping[str, Any]
    topics: tuple[str, ...] = ()
    status: int = 200
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around each page: where one is, what is told, the word that forms carry."""

    path: str
    now_s: float
    token: str = ""
    said: str = ""
    trouble: bool = False
    paused: bool = False


def rendered(page: Page, frame: Frame) -> bytes:
    """The whole page."""
    template = _environment().get_template(page.template)
    text = template.render(
        **page.facts,
        title=page.title,
        topics=" ".join(page.topics),
        wide=page.wide,
        frame=frame,
        places=PLACES,
        form=frame.token,
    )
    return text.encode("utf-8", "replace")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("node.api.pages", "templates"),
        autoescape=True,  # names of leaves are words of prompts, or a peer's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "counted": show.counted,
        "size": show.size,
        "day": show.day,
        "moment": show.moment,
        "ago": _ago,
        "until": _until,
        "clean": clean,
        "ticks": ticks,
        "drawn": drawing.ranges,
        "local": local,
        "capital": capital,
        "gain": lambda value: f"{value:+.3f}",
        "share": lambda value: f"{value:.0%}",
        "leaves": lambda count: f"{count:,} {'leaf' if count == 1 else 'leaves'}",
    }
    return environment


def clean(text: object) -> str:
    """A text without what only terminals obey, and without what turns the direction of others."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}"
        for each in str(text)
    )


def ticks(text: object) -> Markup:
    """Words of the commands, in which `this` is to be typed: shown as such."""
    parts = clean(text).split("`")
    if len(parts) % 2 == 0:
        return escape(clean(text))
    return Markup().join(
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part)
        for at, part in enumerate(parts)
    )


def _ago(then: float | None, now_s: float) -> str:
    """3 hours ago; a moment of the future, by a clock that was set, is just now."""
    if then is None:
        return "never"
    return f"{passed} ago" if (passed := _span(now_s - then)) else "just now"


def _until(then: float, now_s: float) -> str:
    return f"in {span}" if (span := _span(then - now_s)) else "now"


def _span(seconds: float) -> str:
    for least, unit, word in MOMENTS_S:
        if seconds >= least:
            return f"{int(seconds // unit):,} {word}"
    return "a minute" if seconds >= 60 else ""


def capital(text: str) -> str:
    """The first letter alone: what follows may be a name."""
    return text[:1].upper() + text[1:]


def local(at: float) -> str:
    """Local time: nights are the owner's."""
    return datetime.datetime.fromtimestamp(at).strftime("%a %Y-%m-%d %H:%M")
