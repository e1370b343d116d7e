"""Preference pairs: of two answers to the same ask, the one that the owner liked better.

Two kinds. An accepted edit: what the owner made of an answer is chosen over that answer. An A and a
C answer to near-equal asks: the A answer is chosen. Only what may be trained on is paired; a
rejected answer is trained on too, so the terms of both count.

Memory holds ids and hashes of asks. Texts are read again for the sessions that are paired, a block
at a time, so that a hundred thousand sessions fit on any machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np

from leaves.model import Matrix, Vector
from leaves.training.preprocess import normalised

from .quality import GOOD, POOR
from .sessions import Session
from .terms import LeftOut, trainable, why_left_out

COSINE_MIN: Final = 0.95  # of MiniLM: below it, asks differ in what is asked and not in its wording
PER_CHOSEN_MAX: Final = 4  # pairs with one chosen answer; more would teach that one answer alone
_READ_PAIRS = 4_000  # whose texts are in memory together
_ROWS = 2_048  # of a block of vectors: two blocks and their product take 23 MB at d = 384

Read = Callable[[Collection[str] | None], Iterable[Session]]


class PairKind(StrEnum):
    """Where a pair comes from."""

    EDIT = "edit"
    TIERS = "tiers"


@dataclass(frozen=True, slots=True)
class Pair:
    """One ask, the answer that was liked and the one that was not."""

    kind: PairKind
    prompt: str = field(repr=False)
    chosen: str = field(repr=False)
    rejected: str = field(repr=False)
    chosen_session: str
    rejected_session: str
    cosine: float  # of the two asks; 1 if they say the same


@dataclass(frozen=True, slots=True)
class _Match:
    chosen: str
    rejected: str
    cosine: float


def preference_pairs(
    read: Read,
    vectors: Mapping[str, Vector] | None = None,
    *,
    cosine_min: float = COSINE_MIN,
    restricted_outputs: bool = False,
    flagged: Collection[str] = frozenset(),
) -> Iterator[Pair]:
    """Yield the edits in the order of the corpus, then the A/C pairs by the C answer's id.

    read: `TrainingCorpus.sessions`; called once for all, then for blocks of ids.
    vectors: session id -> shape (d,), float32, unit length, all of one encoder. Without them, or
    for sessions that lack one, asks must be equal but for case, spacing and closing marks.
    cosine_min: in (0, 1]. flagged: ids that the second scan left out.

    Each C answer is in one pair: with the A answer of an equal ask, the best of them first, else
    with the nearest. Of two equals it is the one whose id sorts first. A cosine within a rounding
    error of the limit may fall either way on another kind of processor.
    """
    good: list[tuple[str, int, bytes]] = []  # id, quality, hash of the ask
    poor: list[tuple[str, bytes]] = []
    for session in read(None):
        if pair := _edit(session, restricted_outputs, flagged):
            yield pair
        reason = why_left_out(session, restricted_outputs=restricted_outputs, flagged=flagged)
        if session.tier == GOOD and reason is None:
            good.append((session.session_id, session.quality or 0, _hash(session.prompt)))
        elif session.tier == POOR and reason is LeftOut.POOR:
            poor.append((session.session_id, _hash(session.prompt)))
    used: Counter[str] = Counter()
    matches = _equal(good, poor, used)
    if vectors is not None:
        paired = {match.rejected for match in matches}
        rest = [id_ for id_, _ in poor if id_ not in paired]
        matches += _near([id_ for id_, _, _ in good], rest, vectors, cosine_min, used)
    yield from _texts(sorted(matches, key=lambda match: match.rejected), read)


def _edit(session: Session, restricted: bool, flagged: Collection[str]) -> Pair | None:
    liked, disliked = session.edited, session.edited_from
    allowed = trainable(session.edited_terms, restricted_outputs=restricted)
    if not allowed or session.session_id in flagged or liked.strip() == disliked.strip():
        return None
    if not liked.strip() or not disliked.strip():
        return None
    id_ = session.session_id
    return Pair(PairKind.EDIT, session.edited_ask, liked, disliked, id_, id_, 1.0)


def _equal(
    good: list[tuple[str, int, bytes]], poor: list[tuple[str, bytes]], used: Counter[str]
) -> list[_Match]:
    by_ask: defaultdict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for id_, quality, ask in good:
        by_ask[ask].append((-quality, id_))
    for choices in by_ask.values():
        choices.sort()
    out: list[_Match] = []
    for id_, ask in sorted(poor):
        for _, chosen in by_ask.get(ask, ()):
            if used[chosen] < PER_CHOSEN_MAX:
                used[chosen] += 1
                out.append(_Match(chosen, id_, 1.0))
                break
    return out


def _near(
    good: list[str],
    poor: list[str],
    vectors: Mapping[str, Vector],
    cosine_min: float,
    used: Counter[str],
) -> list[_Match]:
    """Each poor session with the good one nearest to it, the nearest of all first."""
    good = sorted(id_ for id_ in good if id_ in vectors)
    poor = sorted(id_ for id_ in poor if id_ in vectors)
    found: list[_Match] = []
    for start in range(0, len(poor), _ROWS):
        ids = poor[start : start + _ROWS]
        block = _stacked(ids, vectors)
        best = np.full(len(ids), -1.0, np.float32)
        nearest = np.zeros(len(ids), np.int64)
        for at in range(0, len(good), _ROWS):
            cosines = block @ _stacked(good[at : at + _ROWS], vectors).T
            here = cosines.argmax(axis=1)  # the first of equals
            values = cosines[np.arange(len(ids)), here]
            better = values > best
            best[better], nearest[better] = values[better], here[better] + at
        found += [
            _Match(good[nearest[row]], id_, float(best[row]))
            for row, id_ in enumerate(ids)
            if best[row] >= cosine_min
        ]
    out: list[_Match] = []
    for match in sorted(found, key=lambda match: (-match.cosine, match.rejected)):
        if used[match.chosen] < PER_CHOSEN_MAX:
            used[match.chosen] += 1
            out.append(match)
    return out


def _stacked(ids: list[str], vectors: Mapping[str, Vector]) -> Matrix:
    return np.stack([vectors[id_] for id_ in ids])


def _texts(matches: list[_Match], read: Read) -> Iterator[Pair]:
    for start in range(0, len(matches), _READ_PAIRS):
        block = matches[start : start + _READ_PAIRS]
        wanted = {id_ for match in block for id_ in (match.chosen, match.rejected)}
        sessions = {session.session_id: session for session in read(wanted)}
        for match in block:
            chosen, rejected = sessions.get(match.chosen), sessions.get(match.rejected)
            if chosen is None or rejected is None:
                continue  # deleted meanwhile
            if chosen.completion.strip() != rejected.completion.strip():
                yield Pair(
                    PairKind.TIERS,
                    chosen.prompt,
                    chosen.completion,
                    rejected.completion,
                    match.chosen,
                    match.rejected,
                    match.cosine,
                )


def _hash(prompt: str) -> bytes:
    text = normalised(prompt).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
