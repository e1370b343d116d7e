"""What an adapter says by heart: the texts it was trained on that come out of it word for word.

A leaf is an owner's sessions, pressed into a few megabytes that strangers load. So before one is
offered, each text that it was trained on is looked for in it: with the text's own beginning given,
does it go on word for word? One forward over the text answers that for all beginnings at once,
because as long as the likeliest token is the next one, greedy decoding would have said the same.

`probe` runs in the child. The rest is pure.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..model import Interval
from ..ports import Example, Probed, ProbeJob, Progress, Report
from .encode import Encoded, Encoder, chunks
from .preprocess import stable

if TYPE_CHECKING:
    from .backend import Backend

# Carlini et al. 2023 (arXiv 2202.07646) call 50 tokens memorised; below it, phrases that anybody
# would write begin to count.
RUN_TOKENS = 50
TEXTS_MAX = 128  # looked for in one adapter: a third of the sessions of the default training
GAP_TEXTS_MAX = 40  # of each side: the gap's interval is then about ± 0.05 nats
COPIED_TOKENS = 4  # in a row, that stand earlier in the same session: enough to look them up by
PHRASE_WORDS = 8
_RESAMPLES = 4_000
_CONFIDENCE = 0.95


def probe(
    job: ProbeJob, backend: Backend, bind: Callable[[Path | None], None], report: Report
) -> Probed:
    """Look for the job's texts in its adapter; the chassis is asked only about what was found."""
    sessions = Encoder(job.chassis).encode_all(job.examples, tokens_max=job.tokens_max)
    learned: list[list[bool]] = [[] for _ in sessions]
    bind(job.adapter)
    done = 0
    for part in chunks(sessions):
        for index, hits in zip(part, backend.recalls([sessions[i] for i in part]), strict=True):
            learned[index] = hits
        done += len(part)
        report(Progress("look for training texts", done, len(sessions)))
    said = [copied(session) for session in sessions]
    longest = [longest_run(*pair) for pair in zip(learned, said, strict=True)]
    found = [index for index, length in enumerate(longest) if length >= job.run_tokens]
    bind(None)
    for part in chunks([sessions[index] for index in found]):
        at = [found[each] for each in part]
        for index, known in zip(at, backend.recalls([sessions[i] for i in at]), strict=True):
            before = known_by_itself(known, job.run_tokens)
            both = [one or other for one, other in zip(said[index], before, strict=True)]
            longest[index] = longest_run(learned[index], both)
    return Probed(tuple(longest), tuple(session.completion for session in sessions))


def longest_run(learned: Sequence[bool], owed: Sequence[bool] = ()) -> int:
    """Tokens of the longest unbroken run in `learned`, not counting those owed to something else.

    owed: tokens that are in the session's own beginning, or that the chassis knew. They do not
    break a run, for a text is given away around them too.
    """
    free = {at for at, each in enumerate(owed) if each}
    return max((sum(at not in free for at in run) for run in _runs(learned)), default=0)


def known_by_itself(known: Sequence[bool], run_tokens: int = RUN_TOKENS) -> list[bool]:
    """Tokens in runs of the chassis' own of `run_tokens` or more: the text was out before this.

    known: for each token, whether the chassis says it.
    """
    before = [False] * len(known)
    for run in _runs(known):
        if len(run) >= run_tokens:
            before[run.start : run.stop] = [True] * len(run)
    return before


def copied(session: Encoded) -> list[bool]:
    """For each completion token, whether it ends a few tokens that stand earlier in the session.

    Who gives the beginning of a text has these already. Answers that repeat the ask, or their own
    words, come out of adapters that never saw them: 2 of 70 SQL answers for 50 tokens and more.
    """
    seen: set[tuple[int, ...]] = set()
    found = []
    for end in range(COPIED_TOKENS, len(session.tokens) + 1):
        gram = session.tokens[end - COPIED_TOKENS : end]
        found.append(gram in seen)
        seen.add(gram)
    short = [False] * (len(session.tokens) - len(found))
    return (short + found)[session.prompt :]


def _runs(hits: Sequence[bool]) -> Iterator[range]:
    at = 0
    for hit, group in groupby(hits):
        length = sum(1 for _ in group)
        if hit:
            yield range(at, at + length)
        at += length


@dataclass(frozen=True, slots=True)
class Sought:
    """The texts to look for, out of those that are long enough to be found."""

    examples: tuple[Example, ...]
    eligible: int


def sought(
    examples: Sequence[Example], encoder: Encoder, tokens_max: int, limit: int = TEXTS_MAX
) -> Sought:
    """Which training texts to look for: all that have a run's length, or `limit` of them.

    Of more than `limit`, half are those most likely to stay: of the largest groups of near-copies,
    the longest first. The others are drawn by the hash of their ids, so that no kind is left out.
    """
    sizes = Counter(each.group or each.session for each in examples)
    encoded = zip(examples, encoder.encode_all(examples, tokens_max=tokens_max), strict=True)
    eligible = [(each, said.completion) for each, said in encoded if said.completion >= RUN_TOKENS]
    if len(eligible) <= limit:
        return Sought(tuple(each for each, _ in eligible), len(eligible))
    likely = sorted(
        eligible,
        key=lambda pair: (
            -sizes[pair[0].group or pair[0].session],
            -pair[1],
            stable(pair[0].session),
        ),
    )
    first, rest = likely[: limit // 2], likely[limit // 2 :]
    rest.sort(key=lambda pair: stable(pair[0].session))
    chosen = [each for each, _ in first + rest[: limit - len(first)]]
    return Sought(tuple(chosen), len(eligible))


def drawn(examples: Iterable[Example], count: int = GAP_TEXTS_MAX) -> tuple[Example, ...]:
    """A sample that depends on the sessions' ids alone."""
    return tuple(sorted(examples, key=lambda each: stable(each.session))[:count])


def gap(trained: Sequence[float], unseen: Sequence[float]) -> Interval:
    """By how much an adapter helps more on what it was trained on than on what it never saw.

    trained, unseen: by session, nats per token that the adapter takes off the chassis' loss, so
    that a text which is easy anyhow tells nothing. A gap of zero leaves no way to tell by losses
    whether a session was in the training. One-sided bounds at 95 %, by a bootstrap of both sides.
    """
    if not trained or not unseen:
        return Interval(0.0, 0.0, 0.0)
    seed = hashlib.sha256(b"groove/gap/1" + repr((len(trained), len(unseen))).encode()).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:8], "big")))
    ours, theirs = _means(random, trained), _means(random, unseen)
    low, high = np.quantile(ours - theirs, [1 - _CONFIDENCE, _CONFIDENCE])
    return Interval(float(np.mean(trained) - np.mean(unseen)), float(low), float(high))


def _means(random: np.random.Generator, values: Sequence[float]) -> NDArray[np.float64]:
    drawn_ = random.integers(0, len(values), size=(_RESAMPLES, len(values)))
    means: NDArray[np.float64] = np.asarray(values, dtype=np.float64)[drawn_].mean(axis=1)
    return means


def repeated(examples: Sequence[Example]) -> float:
    """The share of the texts in which the commonest eight words in a row stand.

    A flood of near-copies, or one phrase planted as a trigger, shows here whatever the prompts are.
    """
    phrases: Counter[tuple[str, ...]] = Counter()
    for example in examples:
        words = re.findall(r"\w+", example.completion.casefold())
        ends = range(PHRASE_WORDS, len(words) + 1)
        phrases.update({tuple(words[end - PHRASE_WORDS : end]) for end in ends})
    most = phrases.most_common(1)
    return most[0][1] / len(examples) if most else 0.0
