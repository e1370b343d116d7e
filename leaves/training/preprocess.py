"""Which sessions train a leaf, which ones judge it, and what the style control is trained on.

Pure. Three promises: what has judged a leaf never trains it, what has trained it never judges it,
and near-copies of one session stand on the same side.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..ports import Example

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
    """How much is held out. Below `minimum` no verdict is given (20 refuses, 100 is wanted)."""

    fraction: float = 0.25
    minimum: int = 20
    maximum: int = 100


@dataclass(frozen=True, slots=True)
class Prepared:
    """The two sides of a round. Fresh: neither trained on nor held out in an earlier round."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]  # fresh ones only
    too_few: bool  # fewer held out than a verdict needs


def preprocess(
    sessions: Iterable[Example],
    *,
    held_before: Collection[str] = (),
    trained_before: Collection[str] = (),
    samples: int = 128,
    rules: SplitRules = SplitRules(),
) -> Prepared:
    """Split a leaf's sessions into those that train and those that judge.

    samples: how many sessions the schedule can see (steps * batch). In a later round half of them
    are replayed from earlier ones: new data alone would push the old out.
    Only the sessions returned in `train` count as trained on; the rest may be held out later.
    """
    groups = _groups(sessions)
    held_ids, trained_ids = set(held_before), set(trained_before)
    fresh: list[str] = []
    replay: list[str] = []
    for key in sorted(groups, key=stable):
        ids = {example.session for example in groups[key]}
        if ids & held_ids:
            continue
        (replay if ids & trained_ids else fresh).append(key)
    held_out, used = _held_out(fresh, groups, rules)
    train_new = [example for key in fresh if key not in used for example in groups[key]]
    train_old = [example for key in replay for example in groups[key]]
    for side in (train_new, train_old):  # not by group: a cut must leave some of each group
        side.sort(key=lambda each: stable(each.session))
    train = _mixed(train_new, train_old, samples)
    return Prepared(tuple(train), tuple(held_out), len(held_out) < rules.minimum)


def _groups(sessions: Iterable[Example]) -> dict[str, list[Example]]:
    """Sessions by group; of those whose prompts are copies of one another, the first by id."""
    kept: dict[str, Example] = {}
    for example in sorted(sessions, key=lambda each: each.session):
        if example.prompt.strip() and example.completion.strip():
            kept.setdefault(normalised(example.prompt), example)
    groups: dict[str, list[Example]] = {}
    for prompt, example in kept.items():
        groups.setdefault(example.group or prompt, []).append(example)
    return groups


def _held_out(
    fresh: Sequence[str], groups: dict[str, list[Example]], rules: SplitRules
) -> tuple[list[Example], set[str]]:
    available = sum(len(groups[key]) for key in fresh)
    wanted = min(rules.maximum, max(rules.minimum, round(available * rules.fraction)))
    wanted = min(wanted, available // 2)  # never the larger part: it could not train
    chosen: list[Example] = []
    used: set[str] = set()
    for key in fresh:
        if len(chosen) + len(groups[key]) <= wanted:
            chosen += groups[key]
            used.add(key)
    return sorted(chosen, key=lambda each: each.session), used


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
