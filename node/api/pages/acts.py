"""The buttons. Each does what a command does, by the same function, and says what the command says.

What cannot be taken back has a page of its own that asks first, or a word to be typed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from node import approvals, consenting, night_book, orders, overview, publishing
from node.cli.night import seconds
from node.errors import MisuseError
from node.foreign import Known
from node.shelf import Shelf

from . import map_page
from .desk import Desk
from .page import PLACES, Ask, Page
from .views.endpoint import shown
from .views.rights import asked

SURE = "delete everything"  # to be typed


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a button: where to go on, and what to say there."""

    to: str
    said: str = ""
    trouble: bool = False


Act = Callable[[Desk, Ask], Done | Page]


def back(ask: Ask) -> str:
    """The page that a form came from, if it is one of these pages."""
    to = ask.form.get("back", "/")
    known = any(to == path or to.startswith((f"{path}/", f"{path}?")) for path, *_ in PLACES[1:])
    plain = to.isascii() and to.isprintable() and "//" not in to and "\\" not in to
    return to if plain and (known or to in ("/", "/stop")) else "/"


def pause(desk: Desk, ask: Ask) -> Done:
    """`groove-node pause`."""
    span = ask.form.get("for", "")
    for_s = seconds(span) if span else None
    night_book.pause(desk.home, desk.app.now(), for_s)
    until = f"for {span}" if span else "until you resume"
    return Done(back(ask), f"Paused {until}. What runs stops where it is, and goes on later.")


def resume(desk: Desk, ask: Ask) -> Done:
    """`groove-node resume`."""
    was = night_book.resume(desk.home)
    said = "The node works by itself again when its night and the machine allow it."
    return Done(back(ask), said if was else "It was not paused.")


def approve(desk: Desk, ask: Ask) -> Done:
    """`groove-node approve`."""
    return _answer(desk, ask, True)


def refuse(desk: Desk, ask: Ask) -> Done:
    """`groove-node approve --refuse`."""
    return _answer(desk, ask, False)


def _answer(desk: Desk, ask: Ask, yes: bool) -> Done:
    found = approvals.find(desk.app, ask.form.get("proposal", ""))
    kept = approvals.answer(desk.app, found, yes)
    return Done("/rounds", f"{kept.kind.capitalize()}: {approvals.stands(kept)}.")


def rename(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf rename`."""
    leaf = orders.rename(desk.app, ask.form.get("leaf", ""), ask.form.get("to", "").strip())
    return Done(f"/leaves/{leaf.id}", f"It is called {leaf.name} now.")


def retract(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf retract`."""
    leaf = orders.retract(desk.app, ask.form.get("leaf", ""))
    when = "now" if overview.running(desk.app) else "when the node runs"
    return Done(f"/leaves/{leaf}", f"Retracted; peers are told {when}.")


def publish(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf publish`."""
    return _say(desk, ask, True, "Peers are shown it.")


def withhold(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf withhold`."""
    return _say(desk, ask, False, "It is kept here: peers are shown nothing of it.")


def _say(desk: Desk, ask: Ask, yes: bool, said: str) -> Done:
    desk.app.require("publish")
    leaf = overview.own_leaf(desk.app, ask.form.get("leaf", ""))
    publishing.say(desk.home, [leaf.id], yes)
    return Done(f"/leaves/{leaf.id}", said)


def grant(desk: Desk, ask: Ask) -> Done:
    """`groove-node consent grant`, after the page that shows its words."""
    scopes, sources, folders = asked(ask)
    consenting.check_grant(desk.app, scopes, sources, folders)
    allowed = consenting.grant(desk.app, scopes, sources, folders)
    return Done("/rights", f"Allowed now: {_listed(allowed)}.")


def revoke(desk: Desk, ask: Ask) -> Done:
    """`groove-node consent revoke` of what is named."""
    scopes, sources, folders = asked(ask)
    if not (scopes or sources or folders):
        raise MisuseError("nothing was named", unchanged="Nothing was withdrawn.")
    left = consenting.revoke(desk.app, scopes, sources, folders)
    return Done(back(ask), _withdrawn(desk, left, sources or folders or "capture" in scopes))


def revoke_all(desk: Desk, ask: Ask) -> Done:
    """`groove-node consent revoke`."""
    left = consenting.revoke(desk.app, ())
    return Done(back(ask), _withdrawn(desk, left, True))


def _withdrawn(desk: Desk, left: dict[str, list[str]], of_capture: object) -> str:
    lines = [f"Withdrawn. Still allowed: {_listed(left)}."]
    if of_capture and any((desk.home / "training_data").glob("training_*.jsonl")):
        lines.append("What was captured stays until you delete it, on the page of data and rights.")
    if outside := desk.app.consent.unnoted():
        lines.append(
            "It stands, but could not be noted outside the home: a backup that is put back would "
            f"not know of it. Make {outside} writable, and withdraw again."
        )
    return "\n".join(lines)


def _listed(allowed: dict[str, list[str]]) -> str:
    return ", ".join(word for words in allowed.values() for word in words) or "nothing"


def fetch(desk: Desk, ask: Ask) -> Done:
    """`groove-node fetch`, without waiting for what comes of it: the page shows that."""
    known = _known(desk, ask)
    orders.order_fetch(desk.app, known)
    return Done(back(ask), f"{known.name} is asked for; what comes of it is shown here.")


def pin(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf pin`."""
    known = _known(desk, ask)
    Shelf.of(desk.app).pin(known)
    return Done(back(ask), f"{known.name} stays on disk.")


def unpin(desk: Desk, ask: Ask) -> Done:
    """`groove-node leaf unpin`."""
    known = _known(desk, ask)
    Shelf.of(desk.app).unpin(known.leaf.origin, known.leaf.leaf)
    return Done(back(ask), f"{known.name} makes room when it has to.")


def _known(desk: Desk, ask: Ask) -> Known:
    known = desk.app.foreign.get(ask.form.get("origin", ""), ask.form.get("leaf", ""))
    if known is None:
        raise MisuseError("this leaf is not known any more", unchanged="Nothing was done.")
    return known


def make_map(desk: Desk, ask: Ask) -> Done:
    """`groove-node map`, into the page."""
    map_page.start(desk, texts=ask.form.get("texts") == "1")
    return Done("/map")


def rescan(desk: Desk, ask: Ask) -> Done:
    """`groove-node data --rescan`, in a child."""
    desk.errands.start("rescan", "Scrubbing anew", ["node.cli", "data", "--rescan"])
    return Done("/rights", "What is stored is being scrubbed by the rules of today.")


def delete(desk: Desk, ask: Ask) -> Done:
    """`groove-node data --delete --yes`, in a child; the sentence was typed, not clicked."""
    if " ".join(ask.form.get("sure", "").lower().split()) != SURE:
        raise MisuseError(f"“{SURE}” was not typed", unchanged="Nothing was deleted.")
    desk.errands.start("delete", "The deletion", ["node.cli", "data", "--delete", "--yes"])
    return Done("/rights", "Everything that was captured is being deleted.")


def token(desk: Desk, ask: Ask) -> Page:
    """Shows the token: by a button, so that it is in no address and no history."""
    return shown(desk, ask, desk.hub.secret())


ACTS: Final[Mapping[str, Act]] = {
    "pause": pause,
    "resume": resume,
    "approve": approve,
    "refuse": refuse,
    "leaf/rename": rename,
    "leaf/retract": retract,
    "leaf/publish": publish,
    "leaf/withhold": withhold,
    "consent/grant": grant,
    "consent/revoke": revoke,
    "consent/revoke-all": revoke_all,
    "mesh/fetch": fetch,
    "mesh/pin": pin,
    "mesh/unpin": unpin,
    "map": make_map,
    "data/rescan": rescan,
    "data/delete": delete,
    "endpoint/token": token,
}
