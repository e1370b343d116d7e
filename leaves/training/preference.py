"""Which pairs move a leaf towards what was liked, which ones judge that, and the judgement.

Pure. The promises of `preprocess` hold for pairs as well, across both steps: an ask that the leaf
has learned an answer to never judges a preference, one that has judged the leaf never trains it,
and near-copies of one ask stand on the same side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..model import PreferenceEvaluation, Verdict
from ..ports import Example, Preference, Schedule
from .bounds import SHOWN, bootstrap, lower_bound
from .evaluate import HELD_OUT_MIN
from .near_copies import NearCopies
from .preprocess import normalised, stable

BETA = 5.0  # Tülu 3's, for means over tokens
_STEPS, _RATE_SHARE = 24, 0.5
LOSS_RISE_MAX = 0.02  # nats per token that the leaf's own answers may lose by it


def preference_schedule(schedule: Schedule) -> Schedule:
    """How pairs are trained on, given how sessions are: in more steps, at a lower rate.

    Measured on judged shell commands, 80 pairs that nothing trained: at a quarter of the rate the
    share told right rose by 0.06, at half by 0.09; at the whole by 0.13, but the liked answers
    became less likely by 0.10 nats per token.
    """
    rate = schedule.learning_rate * _RATE_SHARE
    return replace(schedule, steps=_STEPS, learning_rate=rate)


@dataclass(frozen=True, slots=True)
class PairRules:
    """How much is held out. `minimum` counts asks, for many answers to one ask are one witness."""

    fraction: float = 0.25
    minimum: int = HELD_OUT_MIN
    maximum: int = 200  # pairs: right or wrong tells less of each than a loss does


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """The two sides of a preference step."""

    train: tuple[Preference, ...]
    held_out: tuple[Preference, ...]
    groups: tuple[str, ...]  # of held_out: pairs about one ask, or near-copies of it, share it
    too_few: bool  # to be judged, or none to train on


def split_pairs(
    pairs: Iterable[Preference],
    held_before: Collection[str] = (),
    trained_before: Collection[str] = (),
    *,
    sessions: Iterable[Example] = (),
    days: Mapping[str, int] = {},
    samples: int = 256,
    rules: PairRules = PairRules(),
) -> PreparedPairs:
    """Split a leaf's pairs into those that train and those that judge, which are the newest.

    held_before: sessions that have judged the leaf or judge it in this round; their asks train
    nothing. trained_before: those that have trained it, this round's included; their asks do not
    judge. sessions: the leaf's own, which tell the asks of these two.
    days: session -> day of its ask; within a day a hash decides. samples: how many pairs the
    schedule can see (steps * batch); only those returned in `train` count as trained on.
    """
    kept, known = sound(pairs), list(sessions)
    every: list[Preference | Example] = [*kept, *known]
    asks = _Asks()
    for each in every:
        asks.join(*_marks(each))
    groups: dict[str, list[Preference]] = {}
    for pair in kept:
        groups.setdefault(asks.of(_marks(pair)[0]), []).append(pair)
    trained = {asks.of(_id(session)) for session in trained_before}
    held = {asks.of(_id(session)) for session in held_before}
    begun = {key: min(days.get(pair.session, 0) for pair in groups[key]) for key in groups}
    order = sorted(groups, key=lambda key: (-begun[key], stable(key)))
    learned = [one.prompt for one in known if asks.of(_marks(one)[0]) in trained]
    judging = _judging(order, groups, trained, held, learned, rules)
    free = [key for key in order if key not in judging and key not in held]
    train = [pair for key in free for pair in groups[key]]
    train.sort(key=lambda pair: stable("\0".join(pair_key(pair))))
    chosen = [(pair, key) for key in sorted(judging) for pair in groups[key]]
    return PreparedPairs(
        train=tuple(train[:samples]),
        held_out=tuple(pair for pair, _ in chosen),
        groups=tuple(key for _, key in chosen),
        too_few=len(judging) < rules.minimum or not train,
    )


def sound(pairs: Iterable[Preference]) -> list[Preference]:
    """The pairs that say something: no empty or equal sides, no repetition, no contradiction."""
    found: dict[tuple[str, str, str], Preference] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.session, pair.rejected_session)):
        sides = pair.prompt.strip(), pair.chosen.strip(), pair.rejected.strip()
        if all(sides) and sides[1] != sides[2]:
            found.setdefault(pair_key(pair), pair)
    return [
        pair
        for (ask, liked, other), pair in found.items()
        if liked == other or (ask, other, liked) not in found  # equal: they differ in spacing
    ]


def pair_key(pair: Preference) -> tuple[str, str, str]:
    """What pairs have in common that differ in spacing alone, or in the ask's case and marks.

    Case and marks of an answer stay: in a command they are what is liked or not.
    """
    chosen, rejected = (" ".join(answer.split()) for answer in (pair.chosen, pair.rejected))
    return normalised(pair.prompt), chosen, rejected


class _Asks:
    """Which asks are one: what is joined by an ask, a group or a session has one name."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, mark: str) -> str:
        """The name of what the mark belongs to: the first mark of all by sort order."""
        while (above := self._above.get(mark, mark)) != mark:
            mark = above
        return mark

    def join(self, *marks: str) -> None:
        tops = sorted({self.of(mark) for mark in marks})
        for top in tops:
            self._above[top] = tops[0]


def _marks(one: Preference | Example) -> list[str]:
    marks = [f"ask {stable(normalised(one.prompt))}"]
    marks += [f"group {one.group}"] if one.group else []
    ids = (one.session, one.rejected_session) if isinstance(one, Preference) else (one.session,)
    return marks + [_id(session) for session in ids if session]


def _id(session: str) -> str:
    return f"session {session}"


def _judging(
    order: Sequence[str],
    groups: Mapping[str, Sequence[Preference]],
    trained: Collection[str],
    held: Collection[str],
    learned: Iterable[str],
    rules: PairRules,
) -> set[str]:
    """The groups that judge: those that may not train, then the first of the others in `order`.

    learned: asks that have trained the leaf; a near-copy of one does not judge.
    """
    texts = {key: [f"{key} {n}" for n in range(len(groups[key]))] for key in order}
    examples = [
        Example(id_, pair.prompt, "")
        for key in order
        for id_, pair in zip(texts[key], groups[key], strict=True)
    ]
    before = [Example(f"learned {n}", prompt, "") for n, prompt in enumerate(learned)]
    copies = NearCopies([*examples, *before])
    learners = {each.session for each in before}
    learners |= {id_ for key in order if key not in held for id_ in texts[key]}
    fresh = [key for key in order if key not in trained and key not in held]
    idle = [key for key in order if key not in trained and key in held]
    available = sum(len(groups[key]) for key in fresh)
    waiting = sum(len(groups[key]) for key in idle)  # as judges they cost no training
    wanted = min(rules.maximum, max(rules.minimum, round(available * rules.fraction), waiting))
    spare = sum(len(groups[key]) for key in order if key not in held) // 2
    judging: set[str] = set()
    count = 0
    for key in idle + fresh:
        own = set(texts[key])
        others = learners - own
        costs = len(own & learners)
        if costs > spare or (count + len(own) > wanted and len(judging) >= rules.minimum):
            continue
        if any(copies.near(id_, others) for id_ in own):
            continue
        judging.add(key)
        learners = others
        count += len(own)
        spare -= costs
    return judging


class PairLosses(NamedTuple):
    """Nats per token of both answers."""

    chosen: float
    rejected: float


def answers(pairs: Sequence[Preference]) -> tuple[Example, ...]:
    """What an evaluation measures of pairs: all chosen answers, then all rejected ones."""
    return (
        *(Example(pair.session, pair.prompt, pair.chosen, pair.group) for pair in pairs),
        *(Example(pair.rejected_session, pair.prompt, pair.rejected, pair.group) for pair in pairs),
    )


def paired(losses: Sequence[float]) -> list[PairLosses]:
    """The losses of `answers`, by pair."""
    half = len(losses) // 2
    return [PairLosses(*both) for both in zip(losses[:half], losses[half:], strict=True)]


def judge_preferences(
    before: Sequence[PairLosses],
    after: Sequence[PairLosses],
    sft_losses: Sequence[float],
    dpo_losses: Sequence[float],
    groups: Sequence[str],
    *,
    session_groups: Sequence[str] | None = None,
    confidence: float = SHOWN,
) -> PreferenceEvaluation:
    """Judge a preference step by held-out pairs, and by the sessions that judged the step before.

    before, after: of each pair, under the supervised adapter and the one after it. groups: of the
    pairs, as `split_pairs` gives them. sft_losses, dpo_losses: of the leaf's held-out sessions.

    It wins if more of the pairs are told right, with the lower bound at `confidence` above 0, and
    the sessions' loss rises by less than 0.02 at its upper bound of 95 %. Right is who gives the
    chosen answer the smaller loss per token. The margin between the two losses is no measure: any
    training that makes an adapter more sure of what it knew widens it.
    """
    gains = [_right(now) - _right(then) for then, now in zip(before, after, strict=True)]
    rises = [now - then for then, now in zip(sft_losses, dpo_losses, strict=True)]
    rise = bootstrap(rises, session_groups).high
    if len(set(groups)) < HELD_OUT_MIN or len(rises) < HELD_OUT_MIN:
        verdict = Verdict.TOO_FEW
    elif lower_bound(gains, groups, confidence=confidence) > 0 and rise < LOSS_RISE_MAX:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.NOT_BETTER
    return PreferenceEvaluation(
        pairs=len(gains),
        accuracy_before=_share(before),
        accuracy_after=_share(after),
        gain=bootstrap(gains, groups),
        loss_rise=rise,
        verdict=verdict,
    )


def _right(pair: PairLosses) -> float:
    return 0.5 * (1 + float(np.sign(pair.rejected - pair.chosen)))  # a tie is half right


def _share(pairs: Sequence[PairLosses]) -> float:
    return sum(map(_right, pairs)) / len(pairs) if pairs else 0.0
