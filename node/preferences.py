"""A leaf's preference pairs: of its own sessions, and of nothing that must not be learned from.

`capture.pairs` finds pairs in the whole corpus; here they are one leaf's, as training wants them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from leaves.model import Vector
from leaves.ports import Preference

from .capture.pairs import Pair, preference_pairs
from .capture.sessions import Session


def leaf_preferences(
    members: Collection[str],
    sessions: Mapping[str, Session],
    vectors: Mapping[str, Vector] | None = None,
    *,
    left_out: Collection[str] = frozenset(),
    restricted_outputs: bool = False,
) -> tuple[Preference, ...]:
    """Return the pairs whose sessions are both the leaf's: first its edits, then its A/C pairs.

    members: ids of the leaf's sessions; those that are gone from `sessions` are passed over.
    vectors: by session id, of one encoder; without them two asks must be equal to make a pair.
    left_out: sessions that nothing may be made of. A pair learns from both of its sessions: both
    are to be recorded as used.
    """
    own = {id_: sessions[id_] for id_ in sorted(set(members) & sessions.keys())}

    def read(only: Collection[str] | None) -> Iterator[Session]:
        return (own[id_] for id_ in (own if only is None else sorted(only)) if id_ in own)

    found: Iterable[Pair] = preference_pairs(
        read, vectors, restricted_outputs=restricted_outputs, flagged=left_out
    )
    return tuple(_preference(pair, own[pair.chosen_session]) for pair in found)


def _preference(pair: Pair, chosen: Session) -> Preference:
    return Preference(
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
        group=chosen.group,
        session=pair.chosen_session,
        rejected_session=pair.rejected_session,
    )


def used_by(pairs: Iterable[Preference]) -> frozenset[str]:
    """Every session that the pairs hold a text of."""
    return frozenset(id_ for pair in pairs for id_ in (pair.session, pair.rejected_session) if id_)
