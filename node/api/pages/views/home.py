"""The first page: what the node does now, how far the next leaf is, and what needs its owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leaves.lifecycle import training_threshold
from leaves.model import Leaf, Stage
from node import approvals, consenting, morning, publishing, set_aside, show, show_night, started
from node.api.pages.desk import Desk
from node.api.pages.events import last_events
from node.api.pages.page import Ask, Page, capital
from node.consent import disclosure
from node.foreign import State
from node.history import histories
from node.pictures import tree as words
from node.tally import Tally

SOON_MAX = 3  # leaves that are nearest to their next stage
EVENTS_SHOWN = 8
LOOK_S = 60  # between two looks at what other tools keep


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that waits for the owner. href: where it is seen to."""

    what: str
    why: str
    href: str
    label: str


def home(desk: Desk, ask: Ask) -> Page:
    app, forest, node = desk.app, desk.forest(), desk.running()
    live = [leaf for leaf in forest.live() if leaf.level > 1]
    night = show_night.standing(app, node)
    report = night["last"]
    facts = {
        "night": night,
        "doing": _doing(desk, night),
        "why": capital("; ".join(filter(None, (night["why"], night["until"])))),
        "needs": [*_paused(night), *_needs(desk, live, node)],
        "soon": _soon(desk, live),
        "stages": [(s.value, sum(x.stage is s for x in live)) for s in Stage if s.live],
        "sessions": desk.embedded(),
        "scopes": sorted(desk.scopes()),
        "peers": len(node["peers"]) if node else 0,
        "theirs": sum(known.state is State.ACCEPTED for known in desk.foreign()),
        "report": report,
        "headline": morning.headline(report) if report else "",
        "events": last_events(app.home, EVENTS_SHOWN),
        "empty": not live and not desk.embedded(),
    }
    topics = ("forest", "foreign", "consent", "night", "events", "embedded", "node")
    return Page("home.html", "Home", facts, topics)


def _doing(desk: Desk, night: dict[str, Any]) -> str:
    """What the node is at, in one sentence."""
    row = desk.app.forests.open_round()
    if row is not None and desk.app.is_locked("round"):
        return f"A round is running: {row.phase}."
    match night["state"]:
        case "paused":
            return "Paused: it does nothing by itself."
        case "works":
            return f"Working unattended{': ' + night['phase'] if night['phase'] else ''}."
    return "At rest. It answers and captures what you allow, and works when its night comes."


def _paused(night: dict[str, Any]) -> Iterator[Need]:
    if night["state"] == "paused":
        why = "It does nothing by itself until you let it, or the time that you gave is over."
        yield Need("Paused", why, "/resources", "Resume")


def _needs(desk: Desk, live: list[Leaf], node: dict[str, Any] | None) -> Iterator[Need]:
    app = desk.app
    stands = desk.kept("consent", desk.stamp("consent"), lambda: consenting.standing(app))
    if stands["undone"] or stands["standing"] != "in force":
        line = disclosure.standing_line(stands)
        yield Need("Consent", f"Allowed: {line}.", "/rights", "See what is asked")
    elif not stands["scopes"]:
        yield Need("Consent", "Nothing is allowed, so nothing grows.", "/rights", "Allow capture")
    if waiting := approvals.listed(app):
        open_ = [each for each in waiting if each["answer"] is None]
        if open_:
            kinds = ", ".join(f"{x['kind']} of {' and '.join(x['leaves'])}" for x in open_[:3])
            yield Need(show.counted(len(open_), "proposal"), kinds, "/rounds", "Decide")
    if asked := [each for each in publishing.kept_back(app) if each["asks"]]:
        names = ", ".join(str(each["name"]) for each in asked[: publishing.NAMES_SHOWN])
        why = f"Others are not known to have: {names}. Peers are shown nothing of it until you say."
        yield Need("A topic of yours alone", why, f"/leaves/{asked[0]['leaf_id']}", "Decide")
    row = app.forests.open_round()
    if row is not None and not app.is_locked("round"):
        why = f"A round stopped in {row.phase!r}. The next one goes on where it was."
        yield Need("A round was interrupted", why, "/rounds", "See it")
    if set_aside.changed(app) and any(leaf.adapter for leaf in live):
        yield Need("Another chassis", "Leaves are trained anew for it.", "/leaves", "See leaves")
    yield from _troubles(desk)
    for change in started.changes(app, node):
        yield Need("Start the node again", change, "/resources", "See what changed")


def _troubles(desk: Desk) -> Iterator[Need]:
    """What goes wrong, or is about to be lost."""
    if failures := desk.hub.counts.failures:
        told = ", ".join(
            f"{cause.replace('_', ' ')} {n:,}" for cause, n in sorted(failures.items())
        )
        yield Need("The endpoint had trouble", f"{told}.", "/endpoint", "See it")
    if "capture" not in desk.scopes():
        return  # nothing of capture is loaded for nothing
    minute = int(desk.app.clock.now_s() // LOOK_S)
    for each in desk.kept("histories", (minute,), lambda: _unsaved(desk)):
        yield Need("About to be lost", show.expiry_line(*each), "/rights", "See your sources")


def _unsaved(desk: Desk) -> list[tuple[str, int]]:
    found = histories(desk.app, Tally(desk.home).read())
    return [(each.source, each.expiring) for each in found if each.unsaved]


def _soon(desk: Desk, live: list[Leaf]) -> list[dict[str, Any]]:
    """The leaves that are nearest to their next stage, with how far they are."""
    rules, train = desk.app.config.rules, "train" in desk.scopes()
    found = []
    for leaf in live:
        match leaf.stage:
            case Stage.SEED:
                wanted = training_threshold(leaf.kind, rules)
            case Stage.SPROUT:
                wanted = rules.mature_sessions
            case _:
                continue
        found.append(
            {
                "leaf": leaf,
                "wanted": wanted,
                "share": min(leaf.sessions / wanted, 1.0),
                "missing": ", ".join(words.missing(leaf, rules, train)),
            }
        )
    found.sort(key=lambda each: (-each["share"], each["leaf"].id))  # type: ignore[operator,attr-defined]
    return found[:SOON_MAX]


def stop(desk: Desk, ask: Ask) -> Page:
    """How to stop everything, each thing by itself and for good."""
    app, node = desk.app, desk.running()
    facts = {
        "pid": node["pid"] if node else None,
        "scopes": sorted(desk.scopes()),
        "home": str(app.home),
        "night": show_night.standing(app, node),
    }
    return Page("stop.html", "Stop everything", facts, ("night", "consent"))
