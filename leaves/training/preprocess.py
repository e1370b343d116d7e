"""Which sessions train a leaf, which ones judge it, and what the style control is trained on.

Pure. Three promises: what has judged a leaf never trains it, what has trained it never judges it,
and of near-copies, by group or by their words, none trains where another judges.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..ports import Example
from .near_copies import NearCopies

_GROUPS_WANTED = 10  # among the judges: a group of more than a tenth of them is large
_SPACE = re.compile(r"\s+")


def plain(text: str) -> str:
    """Break up the chassis' own marks in a text, so that a prompt cannot end its own turn."""
    return text.replace("<|", "< |")


def render(prompt: str) -> str:
    """The one form in which a prompt meets a chassis: in training, evaluation and serving alike.

    Without the default system message, which would cost 21 tokens in each session.
    """
    return f"<|im_start|>user\n{plain(prompt)}<|im_end|>\n<|im_start|>assistant\n"


def normalised(prompt: str) -> str:
    """What two prompts have in common if they differ in case, spacing or closing marks alone."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return _SPACE.sub(" ", folded).strip(" .?!")


def stable(text: str) -> str:
    """An order that depends on the text alone: the same on each machine and in each round."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How much is held out. Below `minimum` no verdict is given (20 refuses, 100 is wanted).

    A later round replays what it has trained on, so it can spare half of what is new to judge: of
    100 new sessions 50 do, where a quarter would leave 25.
    """

    fraction: float = 0.25
    later_fraction: float = 0.5
    minimum: int = 20
    maximum: int = 100


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many sessions stand on neither side, by reason."""

    empty: int = 0  # no ask, or no answer
    copies: int = 0  # of another's ask, but for case, spacing and closing marks
    near_copies: int = 0  # nearly the text of a session on the other side
    judged_before: int = 0  # or are in a group of which one did
    over: int = 0  # more than the schedule can see: they wait for a later round


@dataclass(frozen=True, slots=True)
class Prepared:
    """The two sides of a round. Fresh: neither trained on nor held out in an earlier round."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]  # fresh ones only
    too_few: bool  # fewer held out than a verdict needs
    dropped: Dropped = Dropped()


def preprocess(
    sessions: Iterable[Example],
    *,
    held_before: Collection[str] = (),
    trained_before: Collection[str] = (),
    may_judge: Collection[str] = (),
    days: Mapping[str, int] = {},
    samples: int = 128,
    rules: SplitRules = SplitRules(),
) -> Prepared:
    """Split a leaf's sessions into those that train and those that judge, which are the newest.

    held_before: have judged this adapter, and do nothing any more. trained_before: by it or by one
    that it starts from; they never judge. may_judge: held out from adapters that it replaces or
    starts from, but not yet asked about it; they train nothing.
    days: session -> day of its ask. Within a day a hash decides: sessions imported together are not
    to be judged by whichever file came last. A group is as new as its first session.
    samples: how many sessions the schedule can see (steps * batch). In a later round half of them
    are replayed from earlier ones: new data alone would push the old out.
    Only the sessions returned in `train` count as trained on; the rest may be held out later.
    """
    given = list(sessions)
    full = [each for each in given if each.prompt.strip() and each.completion.strip()]
    used = (set(trained_before), set(held_before), set(may_judge))
    groups = _groups(full, *used)
    sides = _sides(groups, *used, days)
    held_out, spent, near = _held_out(sides, groups, rules)
    train_new = [each for key in sides.fresh if key not in spent for each in groups[key]]
    train_old = [each for key in sides.replay for each in groups[key]]
    for side in (train_new, train_old):  # not by group: a cut must leave some of each group
        side.sort(key=lambda each: stable(each.session))
    train = _mixed(train_new, train_old, samples)
    kept = sum(map(len, groups.values()))
    dropped = Dropped(
        empty=len(given) - len(full),
        copies=len(full) - kept,
        near_copies=near,
        judged_before=kept - sum(len(groups[key]) for side in sides for key in side),
        over=len(train_new) + len(train_old) - len(train),
    )
    return Prepared(tuple(train), tuple(held_out), len(held_out) < rules.minimum, dropped)


def _groups(
    sessions: Iterable[Example], trained: set[str], held: set[str], may_judge: set[str]
) -> dict[str, list[Example]]:
    """Sessions by group; of copies of one ask, the first by id, but what was used comes first.

    Were a new copy kept in the place of one that has trained, it could come to judge.
    """

    def rank(each: Example) -> tuple[bool, bool, str]:
        id_ = each.session
        return id_ not in trained, id_ not in held and id_ not in may_judge, id_

    kept: dict[str, Example] = {}
    for example in sorted(sessions, key=rank):
        kept.setdefault(normalised(example.prompt), example)
    groups: dict[str, list[Example]] = {}
    for prompt, example in sorted(kept.items(), key=lambda item: item[1].session):
        groups.setdefault(example.group or prompt, []).append(example)
    return groups


class _Sides(NamedTuple):
    """Groups by what they can still do, the newest first."""

    fresh: list[str]  # train or judge
    replay: list[str]  # train
    judges: list[str]  # judge


def _sides(
    groups: Mapping[str, Sequence[Example]],
    trained: set[str],
    held: set[str],
    may_judge: set[str],
    days: Mapping[str, int],
) -> _Sides:
    """Sort the groups out; one in which a session has judged this adapter is in none."""
    sides = _Sides([], [], [])
    begun = {key: min(days.get(each.session, 0) for each in groups[key]) for key in groups}
    for key in sorted(groups, key=lambda key: (-begun[key], stable(key))):
        ids = {example.session for example in groups[key]}
        if ids & held or (ids & trained and ids & may_judge):
            continue
        side = sides.replay if ids & trained else sides.judges if ids & may_judge else sides.fresh
        side.append(key)
    return sides


def _held_out(
    sides: _Sides, groups: Mapping[str, Sequence[Example]], rules: SplitRules
) -> tuple[list[Example], set[str], int]:
    """Who judges, the groups that cannot train then, and how many sessions likeness idles.

    Who is near to what has trained does not judge. What is near to a judge and new does not train:
    there is no way to keep both, and most are near to one or two others at most. Large groups come
    last: whole groups are what a verdict counts, and of three of them it could say nothing.
    """
    available = sum(len(groups[key]) for key in sides.fresh)
    fraction = rules.later_fraction if sides.replay else rules.fraction
    idle = sum(len(groups[key]) for key in sides.judges)  # as judges they cost no training
    wanted = min(rules.maximum, max(rules.minimum, round(available * fraction), idle))
    spare = available // 2  # never the larger part: it could not train
    copies = NearCopies(each for side in sides for key in side for each in groups[key])
    home = {each.session: key for key in sides.fresh for each in groups[key]}
    trained = {each.session for key in sides.replay for each in groups[key]}
    fresh = set(sides.fresh)
    chosen: list[Example] = []
    taken: set[str] = set()
    near = 0
    for key in sorted(
        sides.judges + sides.fresh, key=lambda each: len(groups[each]) > wanted // _GROUPS_WANTED
    ):
        members = groups[key]
        if key in taken or len(chosen) + len(members) > wanted:
            continue
        sound = [each for each in members if not copies.near(each.session, trained)]
        like = {home[id_] for each in sound for id_ in copies.of(each.session, home)}
        like -= taken | {key}
        beside = sum(len(groups[other]) for other in like)
        cost = beside + (len(members) if key in fresh else 0)
        if sound and cost > spare:
            continue
        near += beside + len(members) - len(sound)
        spare -= cost if sound else 0
        chosen += sound
        taken |= {key, *like} if sound else set()
    return sorted(chosen, key=lambda each: each.session), taken, near


def _mixed(new: list[Example], old: list[Example], samples: int) -> list[Example]:
    if len(new) + len(old) <= samples:
        return new + old
    replayed = min(len(old), max(samples // 2, samples - len(new)))
    return new[: samples - replayed] + old[:replayed]


def style_control(
    train: Sequence[Example], outside: Iterable[Example], source_of: dict[str, str]
) -> tuple[Example, ...]:
    """Pick what a style control is trained on: as many sessions, as long, as the leaf's `train`.

    outside: sessions from outside the leaf's branch. source_of: session id -> source. Each of the
    leaf's sessions is paired with the one nearest in completion length, of its own source while
    there is one, so that form and amount are equal and only the subject differs.
    """
    pools: dict[str, list[tuple[int, str, Example]]] = {}
    for example in {normalised(each.prompt): each for each in outside}.values():
        source = source_of.get(example.session, "")
        pools.setdefault(source, []).append(
            (len(example.completion), stable(example.session), example)
        )
    for pool in pools.values():
        pool.sort(key=lambda entry: entry[:2])
    chosen = []
    for example in sorted(train, key=lambda each: stable(each.session)):
        pool = pools.get(source_of.get(example.session, "")) or max(
            pools.values(), key=len, default=[]
        )
        if not pool:
            break
        at = bisect.bisect_left(pool, len(example.completion), key=lambda entry: entry[0])
        chosen.append(pool.pop(min(at, len(pool) - 1))[2])
    return tuple(chosen)
