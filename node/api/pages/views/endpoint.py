"""The endpoint: what it answered, what fell back and why, and what to paste into a tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from node import set_aside
from node.api.pages.desk import Desk
from node.api.pages.page import Ask, Page
from node.foreign import State

MODELS_MAX = 12
OF_PAGES = frozenset(
    ("page", "live", "static", "do", "export", "entry", "entry_link", "exit", "healthz")
)


def endpoint(desk: Desk, ask: Ask) -> Page:
    return shown(desk, ask, "")


def shown(desk: Desk, ask: Ask, secret: str) -> Page:
    """secret: the token, if the owner asked to see it; else a word that stands for it."""
    hub = desk.hub
    chassis = set_aside.tag(desk.app)
    trained = [
        x for x in desk.forest().live() if x.adapter and not set_aside.of_another(x, chassis)
    ]
    trained.sort(key=lambda leaf: (-leaf.sessions, leaf.id))
    theirs = [x.name for x in desk.foreign() if x.state is State.ACCEPTED]
    names = [leaf.name for leaf in trained] + theirs
    counts = hub.counts.facts()
    url = hub.url() or "http://127.0.0.1:4022"
    socket = url.removeprefix("unix:") if url.startswith("unix:") else ""
    facts = {
        "url": "http://localhost" if socket else url,
        "socket": socket,
        "listening": bool(hub.url()),
        "secret": secret,
        "token": secret or "TOKEN",
        "backend": hub.config.backend,
        "stands": dict(ask.back_end),
        "upstream": hub.config.upstream,
        "models": ["groove/auto", "groove/chassis", *(f"groove/{n}" for n in names[:MODELS_MAX])],
        "more": max(len(names) - MODELS_MAX, 0),
        "requests": list(_of_clients(counts["requests"])),
        "answered": sorted(counts["answered"].items()),
        "fallbacks": sorted(counts["fallbacks"].items()),
        "failures": sorted(counts["failures"].items()),
        "refused": sorted(counts["refused"].items()),
        "aborted": hub.counts.aborted,
        "streams": hub.counts.streams,
        "capture": hub.config.capture and "capture" in desk.scopes(),
        "home": str(desk.home),
    }
    return Page("endpoint.html", "Endpoint", facts, ("api", "forest", "foreign"))


def _of_clients(requests: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What programs asked, by route and status; what this dashboard asked, in one sum."""
    pages = 0
    for name, count in sorted(requests.items()):
        if name.split(" ", 1)[0] in OF_PAGES:
            pages += count
        else:
            yield name, count
    if pages:
        yield "this dashboard", pages
