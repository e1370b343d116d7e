"""Whether a leaf may be offered to others: what of its owner's could be read out of it, and the
owner's word for a topic that nobody else is known to have.

Three questions, each of which keeps a leaf back by itself: did a second scan find a secret in what
it was trained on (`screening`); does its adapter, or its style control's, give training texts away
(`audit`, of the figures that `examining.Gate` put on the label); and would its card alone tell
strangers of a topic that is this owner's alone. A leaf that is kept back goes on serving here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from leaves.bundle import BundleError, Privacy, read_label
from leaves.families import COSINE_SAME
from leaves.model import Forest, GrownFrom, Leaf, LeafId, Stage

from . import screening
from .foreign import Known, State
from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE = "publish.json"
NAMES_SHOWN = 5
EXPOSURE_MAX = 7.0  # bits of 9: half of all numbers seen so often rank in the first 4 of 512
GAP_MAX = 1.0  # nats per token, lower bound: each text is told from others of its kind at sight
RETRAIN = "it is looked at again when it is next trained"
# Cards cost nothing to make up. One that is shown near a guessed topic would answer whether the
# owner has it; that many have to agree on the topic first. Whoever makes up as many origins can
# still ask: only the owner's word, or a leaf that won here, is better.
ORIGINS_MIN = 3


@dataclass(frozen=True, slots=True)
class Audit:
    """The figures an adapter was judged by, and why it may not be offered, if so."""

    privacy: Privacy
    blocked: str | None  # the reason in words and numbers, and what changes it


def audit(privacy: Privacy) -> Audit:
    """Judge an adapter by what is on its label; what was not measured counts against it."""
    return Audit(privacy, _blocked(privacy))


def _blocked(privacy: Privacy) -> str | None:
    if privacy.probed is None:
        return f"nobody has looked yet whether it gives training texts away; {RETRAIN}"
    if privacy.verbatim:
        return (
            f"{privacy.verbatim:,} of {privacy.probed:,} training texts come out of it word for "
            f"word for {privacy.verbatim_tokens} tokens or more, the longest for "
            f"{privacy.longest_run:,}; {RETRAIN}: fewer steps, or more sessions, make it forget"
        )
    gap = privacy.loss_gap
    if gap is not None and gap.low > GAP_MAX:
        return (
            f"what it was trained on is {gap.mean:.2f} nats per token easier for it than other "
            f"texts of the kind, at most {GAP_MAX:.2f} may be; {RETRAIN}: fewer steps, or more "
            "sessions, make it forget"
        )
    if privacy.canary_exposure is None:
        return f"its recipe was not tried on canaries yet; {RETRAIN}"
    if privacy.canary_exposure >= EXPOSURE_MAX:
        return (
            f"its recipe remembers what it saw {_times(privacy.passes)}: canaries have an exposure "
            f"of {privacy.canary_exposure:.1f} bits of {privacy.exposure_bits_max or 0:.1f}, "
            f"below {EXPOSURE_MAX:.0f} is wanted; lower `steps` or `learning_rate` under "
            "[training] in groove.toml"
        )
    return None


def _times(count: int) -> str:
    return "once" if count <= 1 else f"{count} times"


# ---- the owner's word --------------------------------------------------------------------------


class Words(Struct, frozen=True):
    """What the owner said of leaves: True to publish, False to keep it here."""

    said: dict[LeafId, bool] = {}


def words(home: Path) -> Words:
    """What the owner said so far. A damaged file says nothing, so that the owner is asked again."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=Words)
    except FileNotFoundError:
        return Words()
    except (ValueError, RecursionError) as problem:  # whose words may quote the file
        why = type(problem).__name__
        log.warning("owner's words on publishing forgotten: %s is damaged why=%s", FILE, why)
        return Words()


def say(home: Path, leaves: Iterable[LeafId], publish: bool) -> None:
    """Keep the owner's word on some leaves; the last one counts."""
    said = words(home).said | dict.fromkeys(leaves, publish)
    write_atomic(home / FILE, msgspec.json.encode(Words(dict(sorted(said.items())))))


def stamp(home: Path) -> int:
    """Changes whenever the owner's word does; reads nothing of it."""
    try:
        return (home / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def unspoken(
    forest: Forest,
    shown: Iterable[LeafId],
    others: Sequence[Known],
    said: Mapping[LeafId, bool],
) -> frozenset[LeafId]:
    """Leaves of which not even a card is to be shown, for want of the owner's word.

    A card's centroid tells what a leaf is about. So the first showing of a topic that others are
    not known to have is the owner's to decide; one that is shown already is no news.
    others: leaves of other origins, of the same encoder; one within COSINE_SAME is of the topic.
    Others have a topic if a leaf of it was accepted here, or if `ORIGINS_MIN` origins show it.
    """
    known = set(shown) | said.keys()
    asked = [
        leaf
        for leaf in forest.live()
        if leaf.level > 1 and leaf.grown_from is GrownFrom.DATA and leaf.id not in known
    ]
    if not others or not asked:
        return frozenset(leaf.id for leaf in asked)
    theirs = np.stack([other.leaf.centroid for other in others])
    near = np.stack([leaf.centroid for leaf in asked]) @ theirs.T >= COSINE_SAME
    return frozenset(
        leaf.id
        for leaf, row in zip(asked, near, strict=True)
        if not _common([other for other, is_near in zip(others, row, strict=True) if is_near])
    )


def _common(near: Sequence[Known]) -> bool:
    """True if leaves of one topic show that others have it."""
    accepted = any(other.state is State.ACCEPTED for other in near)
    return accepted or len({other.leaf.origin for other in near}) >= ORIGINS_MIN


def _shown(app: App) -> Iterable[LeafId]:
    """Leaves that peers were shown before; none if nobody can tell, so that the owner is asked."""
    try:
        return app.shown()
    except (ValueError, RecursionError):
        log.warning("what was shown is not known: shown.json is damaged")
        return ()


def _waits(leaf: Leaf) -> str:
    return (
        "others are not known to have this topic: waits for your word: "
        f"`groove-node leaf publish {leaf.name}`"
    )


def _kept(leaf: Leaf) -> str:
    return f"you keep it here; `groove-node leaf publish {leaf.name}` shows it"


# ---- all of it together ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why leaves are kept back: `hidden` ones wholly, of the others only the bundle.

    asked: those of the hidden ones that wait for the owner's word.
    """

    hidden: dict[LeafId, str]
    asked: frozenset[LeafId]
    unoffered: dict[LeafId, str]

    @property
    def reasons(self) -> dict[LeafId, str]:
        """Of a leaf that is kept back for several reasons, the one the owner can do most about."""
        return self.unoffered | self.hidden


class Judge:
    """Says what of a home is withheld. Labels are read once: a bundle's address is its content."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._judged: dict[str, str | None] = {}
        self._last: tuple[tuple[int, ...], Withheld] | None = None

    def withheld(self) -> Withheld:
        """What may not be shown or offered now, and why; costs a few stats if nothing changed."""
        app = self._app
        seen = (
            app.forests.revision(),
            app.foreign.revision(),
            screening.stamp(app.home),
            stamp(app.home),
        )
        if self._last is None or self._last[0] != seen:
            self._last = seen, self._now()
        return self._last[1]

    def _now(self) -> Withheld:
        app = self._app
        forest = app.forests.forest()
        trained = [leaf for leaf in forest.live() if leaf.adapter]
        unoffered = {leaf.id: why for leaf in trained if (why := self._leaking(leaf))}
        unoffered |= screening.withheld(app.home, app.forests, [leaf.id for leaf in trained])
        own = app.origin.hex()
        others = [known for known in app.foreign.all() if known.leaf.origin != own]
        said = words(app.home).said
        asked: frozenset[LeafId] = frozenset()
        if app.config.publish.novel == "ask":
            asked = unspoken(forest, _shown(app), others, said)
        hidden = {
            leaf.id: _waits(leaf) if leaf.id in asked else _kept(leaf)
            for leaf in forest.live()
            if leaf.id in asked or said.get(leaf.id) is False
        }
        return Withheld(hidden, asked, unoffered)

    def _leaking(self, leaf: Leaf) -> str | None:
        """Only what is offered has to pass: the adapter of a mature leaf, and its control."""
        if leaf.stage is not Stage.MATURE or leaf.adapter is None:
            return None
        if reason := self._judge(leaf.adapter.bundle):
            return reason
        reason = self._judge(leaf.adapter.control)
        return f"its style control: {reason}" if reason else None

    def _judge(self, root: str) -> str | None:
        if root not in self._judged:
            path = self._app.bundles.path(root)
            try:
                if path is None:
                    return "its bundle is not here"
                self._judged[root] = audit(read_label(path).privacy).blocked
            except BundleError as problem:
                return f"its bundle cannot be read: {problem}"
        return self._judged[root]


# ---- as the owner reads it ---------------------------------------------------------------------


def kept_back(app: App) -> list[dict[str, str | bool]]:
    """Live leaves that are kept back, by name; none while nothing may be published anyway."""
    if not app.allows("publish"):
        return []
    withheld, leaves = app.withheld(), app.forests.forest().leaves
    return sorted(
        (
            {
                "leaf_id": id_,
                "name": leaves[id_].name,
                "reason": reason,
                "asks": id_ in withheld.asked,
            }
            for id_, reason in withheld.reasons.items()
        ),
        key=lambda each: str(each["name"]),
    )


def lines(kept: Sequence[Mapping[str, str | bool]]) -> list[str]:
    """What `status` and `tree` say of leaves that are kept back."""
    asked = [str(each["name"]) for each in kept if each["asks"]]
    said = [f"{each['name']}: {each['reason']}" for each in kept if not each["asks"]]
    if asked:
        names = ", ".join(asked[:NAMES_SHOWN]) + (", …" if len(asked) > NAMES_SHOWN else "")
        topics = "1 topic" if len(asked) == 1 else f"{len(asked):,} topics"
        said.append(
            f"{topics} that others are not known to have: {names}; waits for your word: "
            f"`groove-node leaf publish {asked[0] if len(asked) == 1 else 'NAME'}`"
        )
    return said


def about(app: App, leaf: Leaf) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The privacy card of a leaf's adapter, and why it is kept back: to read, and for a program."""
    facts: list[tuple[str, str]] = []
    path = app.bundles.path(leaf.adapter.bundle) if leaf.adapter else None
    card: Privacy | None = None
    if path is not None:
        with suppress(BundleError):  # which is then the reason why it is kept back
            card = read_label(path).privacy
    if card is not None and card.probed is not None:
        facts.append(("by heart", by_heart(card)))
        if card.exposures:
            facts.append(("canaries", exposed(card)))
    reason = app.withheld().reasons.get(leaf.id) if app.allows("publish") else None
    if reason:
        facts.append(("kept back", reason))
    return facts, {"privacy": msgspec.to_builtins(card), "kept_back": reason}


def by_heart(card: Privacy) -> str:
    """What of its training texts an adapter gives away."""
    if not card.probed:
        return f"not tested: no training text has {card.verbatim_tokens} tokens"
    said = (
        f"{card.verbatim:,} of {card.probed:,} training texts for {card.verbatim_tokens} tokens or "
        f"more, the longest run is {card.longest_run:,}"
    )
    if card.loss_gap:
        said += f"; what it saw is told from what it did not by {card.loss_gap.mean:+.3f} nats"
    if card.repeated:
        said += f"; {card.repeated:.0%} of the texts have one phrase in common"
    return said


def exposed(card: Privacy) -> str:
    """What the recipe remembers of random numbers, by how often it saw them."""
    from leaves.training.canaries import LEVELS

    levels = ", ".join(f"{each.repeats} x {each.bits:.1f}" for each in card.exposures)
    said = f"exposure in bits of {card.exposure_bits_max or 0:.0f}, by repeats: {levels}"
    tried = {each.repeats for each in card.exposures}
    untried = [str(repeats) for repeats, _ in LEVELS if repeats not in tried]
    return said + (f"; not tried, {' and '.join(untried)}: too few steps" if untried else "")
