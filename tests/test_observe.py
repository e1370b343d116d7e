"""Identity: which known leaf a fresh cluster is, and what the lifecycle is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaves.descent import Change, Share, named, why_kept, why_missed, why_new
from leaves.lifecycle import Born, Rules, apply, assignment, decide
from leaves.model import DAY_S, Forest, GrownFrom, Instant, Kind, Leaf, LeafId, Stage, Vector, unit
from leaves.observe import Observations, Seen, observe
from leaves.ports import Cluster, Clustering, Findings, Found

NOW = Instant(20_000 * DAY_S + 3_600)
TODAY = 20_000
A, B, C, D = (LeafId(letter * 32) for letter in "abcd")
AXES = np.eye(8, dtype=np.float32)


def members(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{n:03d}" for n in range(count))


def leaf(
    id_: LeafId,
    centroid: Vector,
    *,
    stage: Stage = Stage.SPROUT,
    level: int = 2,
    parent: LeafId | None = None,
    grown_from: GrownFrom = GrownFrom.DATA,
) -> Leaf:
    return Leaf(
        id=id_, name=id_[0], stage=stage, stage_since=NOW, level=level, kind=Kind.SKILL,
        grown_from=grown_from, parent=parent, lineage=(), created=NOW, sessions=200,
        growth_per_day=1.0, centroid=centroid,
    )  # fmt: skip


def forest(*leaves: Leaf) -> Forest:
    return Forest({each.id: each for each in leaves})


def domains(*groups: tuple[str, ...]) -> Clustering:
    return Clustering(((), tuple(Cluster(2, group, None) for group in groups), ()), ())


def look(
    known: Forest,
    clustering: Clustering,
    vectors: Mapping[str, Vector],
    *,
    leaf_of: Mapping[str, LeafId] | None = None,
    days: Mapping[str, int] | None = None,
    tagged: Mapping[str, str] | None = None,
) -> Observations:
    names = [[f"{c.level}.{i}" for i, c in enumerate(level)] for level in clustering.levels]
    days = days or dict.fromkeys(vectors, TODAY)
    return observe(known, clustering, vectors, days, tagged or {}, names, NOW, leaf_of=leaf_of)


def along(axis: int, *groups: tuple[str, ...]) -> dict[str, Vector]:
    return {member: AXES[axis] for group in groups for member in group}


def matches(seen: Observations) -> list[LeafId | None]:
    return [each.leaf for each in seen.seen]


def test_a_leaf_is_found_by_its_members_though_its_centroid_moved() -> None:
    x, y = members("x", 10), members("y", 10)
    vectors = {**along(0, x), **along(1, y)}
    known = forest(leaf(A, AXES[1]), leaf(B, AXES[0]))  # as if both had drifted past each other
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    seen = look(known, domains(x, y), vectors, leaf_of=leaf_of)
    assert matches(seen) == [A, B]


def test_a_leaf_is_found_by_its_centroid_where_no_members_are_known() -> None:
    x, y = members("x", 10), members("y", 10)
    seen = look(forest(leaf(A, AXES[1])), domains(x, y), {**along(0, x), **along(1, y)})
    assert matches(seen) == [None, A]


def test_a_cluster_that_is_nobodys_is_new() -> None:
    x = members("x", 10)
    (new,) = look(forest(leaf(A, AXES[3])), domains(x), along(0, x)).seen
    assert (new.leaf, new.name, new.sessions, new.level) == (None, "2.0", 10, 2)
    assert np.allclose(new.centroid, AXES[0])


def test_a_known_leaf_keeps_its_name_and_a_new_one_has_one_of_its_own() -> None:
    x, y = members("x", 10), members("y", 10)
    known = forest(
        replace(leaf(A, AXES[0]), name="renamed-by-its-owner"),
        replace(leaf(B, AXES[5], stage=Stage.DISSOLVED), name="2.1"),
    )
    seen = look(known, domains(x, y), {**along(0, x), **along(1, y)})
    assert [each.name for each in seen.seen] == ["renamed-by-its-owner", "2.1-2"]


def test_two_clusters_never_match_one_leaf() -> None:
    x, y = members("x", 30), members("y", 20)
    vectors = {**along(0, x), **along(0, y)}
    leaf_of = dict.fromkeys((*x, *y), A)
    assert matches(look(forest(leaf(A, AXES[0])), domains(x, y), vectors, leaf_of=leaf_of)) == [
        A,
        None,
    ]


def test_of_two_leaves_that_became_one_cluster_the_larger_lives_on() -> None:
    x, y = members("x", 30), members("y", 20)
    both = tuple(sorted((*x, *y)))
    leaf_of = {**dict.fromkeys(x, B), **dict.fromkeys(y, A)}
    known = forest(leaf(A, AXES[1]), leaf(B, AXES[0]))
    seen = look(known, domains(both), {**along(0, x), **along(1, y)}, leaf_of=leaf_of)
    assert matches(seen) == [B]


def test_new_sessions_do_not_hide_an_old_leaf() -> None:
    x, fresh = members("x", 10), members("z", 90)
    cluster = tuple(sorted((*x, *fresh)))
    vectors = {**along(0, x), **along(1, fresh)}
    seen = look(forest(leaf(A, AXES[0])), domains(cluster), vectors, leaf_of=dict.fromkeys(x, A))
    assert matches(seen) == [A]


def test_deleted_sessions_do_not_hide_a_leaf() -> None:
    x, gone = members("x", 10), members("gone", 90)
    leaf_of = dict.fromkeys((*x, *gone), A)
    seen = look(forest(leaf(A, AXES[3])), domains(x), along(0, x), leaf_of=leaf_of)
    assert matches(seen) == [A]


def test_a_parent_is_known_by_its_childrens_sessions() -> None:
    x, y = members("x", 10), members("y", 10)
    known = forest(
        leaf(A, AXES[3], stage=Stage.MATURE),
        leaf(B, AXES[0], level=3, parent=A),
        leaf(C, AXES[1], level=3, parent=A),
    )
    clustering = Clustering(
        ((), (Cluster(2, (*x, *y), None),), (Cluster(3, x, 0), Cluster(3, y, 0))), ()
    )
    leaf_of = {**dict.fromkeys(x, B), **dict.fromkeys(y, C)}
    seen = look(known, clustering, {**along(0, x), **along(1, y)}, leaf_of=leaf_of)
    assert matches(seen) == [A, B, C]
    assert [each.parent for each in seen.seen] == [None, A, A]


def test_a_child_that_is_found_as_a_domain_keeps_its_id() -> None:
    x, y = members("x", 10), members("y", 10)
    known = forest(leaf(A, AXES[3]), leaf(B, AXES[0], level=3, parent=A))
    leaf_of = {**dict.fromkeys(x, B), **dict.fromkeys(y, A)}
    seen = look(known, domains(x, y), {**along(0, x), **along(1, y)}, leaf_of=leaf_of)
    assert set(matches(seen)) == {A, B}
    assert [each.level for each in seen.seen] == [2, 2]


def test_a_branch_is_never_taken_for_its_domain() -> None:
    x = members("x", 10)
    clustering = Clustering(((Cluster(1, x, None),), (Cluster(2, x, 0),), ()), ())
    seen = look(forest(leaf(A, AXES[0])), clustering, along(0, x), leaf_of=dict.fromkeys(x, A))
    assert matches(seen) == [None, A]
    assert seen.seen[1].parent == 0  # the branch is new, so its place in `seen` is named


def test_a_starter_is_matched_by_nothing() -> None:
    x = members("x", 10)
    known = forest(leaf(A, AXES[0], grown_from=GrownFrom.STARTER))
    assert matches(look(known, domains(x), along(0, x))) == [None]


@pytest.mark.parametrize("stage", [Stage.DISSOLVED, Stage.MERGED])
def test_what_has_ended_for_good_is_matched_by_nothing(stage: Stage) -> None:
    x = members("x", 10)
    known = forest(leaf(A, AXES[0], stage=stage))
    assert matches(look(known, domains(x), along(0, x))) == [None]


def test_an_archived_leaf_is_matched_by_what_no_live_leaf_claims() -> None:
    x, y = members("x", 10), members("y", 10)
    known = forest(leaf(A, AXES[0], stage=Stage.ARCHIVED), leaf(B, unit(AXES[:1] + 0.1)[0]))
    assert matches(look(known, domains(x), along(0, x))) == [B]
    alone = forest(leaf(A, AXES[0], stage=Stage.ARCHIVED))
    assert matches(look(alone, domains(x, y), {**along(0, x), **along(1, y)})) == [A, None]


def test_the_taggers_plurality_makes_the_kind() -> None:
    x = members("x", 5)
    tags = ["research", "research", "code", "planning", "general"]
    tagged = dict(zip(x, tags, strict=True))
    (seen,) = look(forest(), domains(x), along(0, x), tagged=tagged).seen
    assert seen.kind is Kind.REASONING
    (even,) = look(
        forest(), domains(x[1:3]), along(0, x[1:3]), tagged={x[1]: "research", x[2]: "code"}
    ).seen
    assert even.kind is Kind.SKILL  # a tie goes to the name that sorts first
    (untagged,) = look(forest(), domains(x), along(0, x)).seen
    assert untagged.kind is Kind.SKILL


@pytest.mark.parametrize(
    ("days", "pace"),
    [
        ([TODAY] * 6, 6.0),
        ([TODAY - 2, TODAY - 1, TODAY], 1.0),
        ([TODAY - 29] * 30, 1.0),
        ([TODAY - 30] * 30, 0.0),
        ([TODAY - 400, *[TODAY] * 15], 0.5),
    ],
)
def test_growth_is_the_pace_of_the_last_thirty_days(days: list[int], pace: float) -> None:
    x = members("x", len(days))
    seen = look(forest(), domains(x), along(0, x), days=dict(zip(x, days, strict=True)))
    assert seen.seen[0].growth_per_day == pytest.approx(pace)


def test_the_newest_session_is_never_in_the_future() -> None:
    x, y = members("x", 2), members("y", 2)
    days = {**dict.fromkeys(x, TODAY), **dict.fromkeys(y, TODAY - 3)}
    seen = look(forest(), domains(x, y), {**along(0, x), **along(1, y)}, days=days)
    assert [each.newest for each in seen.seen] == [NOW, (TODAY - 2) * DAY_S - 1]


def test_sessions_since_an_instant_are_those_of_later_days() -> None:
    x = members("x", 3)
    days = dict(zip(x, (TODAY - 2, TODAY - 1, TODAY), strict=True))
    (seen,) = look(forest(), domains(x), along(0, x), days=days).seen
    assert seen.since(Instant((TODAY - 2) * DAY_S + 5)) == 2
    assert seen.since(NOW) == 0


def test_parts_of_a_domain_are_told_with_their_centroids() -> None:
    x, y = members("x", 3), members("y", 3)
    clustering = Clustering(
        ((), (Cluster(2, (*x, *y), None),), (Cluster(3, x, 0), Cluster(3, y, 0))), ()
    )
    domain, *parts = look(forest(), clustering, {**along(0, x), **along(1, y)}).seen
    assert domain.level == 2
    assert [(part.level, part.parent, part.members) for part in parts] == [(3, 0, x), (3, 0, y)]
    assert np.allclose(parts[1].centroid, AXES[1])


def test_leaves_that_came_close_are_told() -> None:
    x, y = members("x", 3), members("y", 3)
    near = unit((AXES[0] + 0.2 * AXES[1])[None])[0]
    vectors = {**along(0, x), **dict.fromkeys(y, near)}
    known = forest(leaf(A, AXES[2]), leaf(B, AXES[3]), leaf(C, near, level=3), leaf(D, AXES[5]))
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    seen = look(known, domains(x, y), vectors, leaf_of=leaf_of)
    ((one, other, cosine),) = seen.close
    assert (one, other) == (A, B)
    assert cosine == pytest.approx(float(AXES[0] @ near))


def test_the_totals_are_those_of_the_domains() -> None:
    x = members("x", 4)
    clustering = Clustering(((), (Cluster(2, x, None),), ()), ("n1", "n2"))
    seen = look(forest(), clustering, {**along(0, x), **along(1, ("n1", "n2"))})
    assert (seen.full, seen.sessions, seen.noise) == (True, 6, 2)


@given(st.permutations([A, B, C, D]), st.randoms(use_true_random=False))
def test_the_order_of_leaves_and_sessions_does_not_matter(
    order: list[LeafId], random: object
) -> None:
    groups = [members(name, 4) for name in "wxyz"]
    vectors = {m: AXES[axis] for axis, group in enumerate(groups) for m in group}
    ids = dict(zip("abcd", range(4), strict=True))
    known = Forest({id_: leaf(id_, AXES[ids[id_[0]]]) for id_ in order})
    leaf_of = {m: id_ for id_, group in zip((A, B, C, D), groups, strict=True) for m in group}
    items = list(leaf_of.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    seen = look(known, domains(*groups), vectors, leaf_of=dict(items))
    assert matches(seen) == [A, B, C, D]
    assert all(isinstance(each, Seen) for each in seen.seen)


def test_a_leaf_that_drifts_is_said_to_have_kept_its_sessions() -> None:
    x, fresh = members("x", 20), members("z", 5)
    vectors = {**along(0, x), **along(1, fresh)}
    clustering = Clustering(((), (Cluster(2, tuple(sorted((*x[:15], *fresh))), None),), ()), x[15:])
    (descent,) = look(
        forest(leaf(A, AXES[0])), clustering, vectors, leaf_of=dict.fromkeys(x, A)
    ).descents
    assert descent.changes == (Change.CONTINUED,)
    assert (descent.held, descent.common, descent.fresh) == (20, 15, 5)
    assert descent.went == (Share(None, 5),)
    said = why_kept(descent, {})
    assert said.startswith("kept its id: 15 of 20 sessions in common, centroid moved 0.05, 5 new")
    assert said.endswith("5 are noise now")


def test_a_leaf_that_is_two_clusters_keeps_the_larger_and_says_where_the_rest_went() -> None:
    x, y = members("x", 30), members("y", 20)
    vectors = {**along(0, x), **along(1, y)}
    seen = look(
        forest(leaf(A, AXES[0])), domains(x, y), vectors, leaf_of=dict.fromkeys((*x, *y), A)
    )
    kept, new = seen.descents
    assert Change.SPLIT in kept.changes and kept.went == (Share(1, 20),)
    assert "split in the data, the larger part keeps the id; 20 went to " + B in why_kept(
        kept, {1: B}
    )
    assert (new.changes, new.came) == ((Change.NEW,), (Share(A, 20),))
    assert why_new(new, {}) == f"20 came from {A}"


def test_of_two_leaves_that_became_one_it_is_said_which_lives_on() -> None:
    x, y = members("x", 30), members("y", 20)
    both = tuple(sorted((*x, *y)))
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    known = forest(leaf(A, AXES[0]), leaf(B, AXES[1]))
    seen = look(known, domains(both), {**along(0, x), **along(1, y)}, leaf_of=leaf_of)
    lives, gone = seen.descents
    assert Change.MERGED in lives.changes and lives.took == (B,)
    assert gone.changes == (Change.VANISHED, Change.ABSORBED)
    assert why_missed(gone, {}) == f"of 20 sessions 20 are in {A}"
    assert dict(seen.kept) == dict.fromkeys(y, B)  # for it may be found tomorrow


def test_a_leaf_whose_cluster_was_one_with_another_for_a_day_is_itself_again() -> None:
    x, y = members("x", 22), members("y", 20)
    near = unit((AXES[0] + 0.3 * AXES[1])[None])[0]  # a cosine of 0.96: the centroids do not tell
    vectors = {**along(0, x), **dict.fromkeys(y, near)}
    standing = forest(leaf(A, AXES[0], stage=Stage.SEED), leaf(B, near, stage=Stage.SEED))
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    rules = Rules(seed_sessions=20, child_sessions=10, merge_sessions=40)  # or the two are merged
    for groups in ((tuple(sorted((*x, *y))),), (x, y)) * 3:
        seen = look(standing, domains(*groups), vectors, leaf_of=leaf_of)
        changes = decide(standing, seen, NOW, rules)
        for change in changes:
            standing = apply(standing, change, NOW)
        leaf_of = assignment(seen, changes, standing)
        assert leaf_of == {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    assert matches(seen) == [A, B]
    assert standing.births == 0


def test_a_domain_is_not_taken_for_a_part_of_itself() -> None:
    x, y = members("x", 60), members("y", 20)
    whole = tuple(sorted((*x, *y)))
    clustering = Clustering(((), (Cluster(2, whole, None),), (Cluster(3, x, 0),)), ())
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    known = forest(leaf(A, AXES[0]), leaf(B, AXES[1]))
    seen = look(known, clustering, {**along(0, x), **along(1, y)}, leaf_of=leaf_of)
    assert matches(seen) == [A, None]


def test_of_a_leaf_in_many_parts_one_is_its_heir() -> None:
    groups = [members(name, 10 + at) for at, name in enumerate("tuvw")]
    vectors = {m: AXES[axis] for axis, group in enumerate(groups) for m in group}
    seen = look(
        forest(leaf(A, AXES[7])), domains(*groups), vectors, leaf_of=dict.fromkeys(vectors, A)
    )
    assert matches(seen) == [None, None, None, A]


def test_an_older_leaf_is_not_replaced_by_what_was_born_of_it() -> None:
    x, y = members("x", 20), members("y", 22)
    old = replace(leaf(A, AXES[0]), created=Instant(NOW - 60 * DAY_S))
    leaf_of = {**dict.fromkeys(x, A), **dict.fromkeys(y, B)}
    vectors = along(0, x, y)
    both = domains(tuple(sorted((*x, *y))))
    assert matches(look(forest(old, leaf(B, AXES[0])), both, vectors, leaf_of=leaf_of)) == [A]


def test_a_reason_is_read_with_the_names_of_today() -> None:
    known = forest(replace(leaf(A, AXES[0]), name="web"))
    assert named(f"31 went to {A}, 2 to {B}", known) == "31 went to web, 2 to bbbbbbbb"


def test_how_sure_the_clusterer_is_reaches_the_leaf() -> None:
    x = members("x", 30)
    found = Findings((Found(0.9, 0.6, 28),), {}, 0.8, "")
    clustering = replace(domains(x), findings=found)
    seen = look(forest(), clustering, along(0, x))
    (born,) = decide(forest(), seen, NOW, Rules(seed_sessions=20, child_sessions=10))
    assert isinstance(born, Born)
    assert (born.leaf.stability, born.leaf.cohesion) == (0.9, 0.6)


def test_a_part_of_a_leaf_that_its_owner_named_is_named_after_it() -> None:
    x, y = members("x", 30), members("y", 20)
    whole = tuple(sorted((*x, *y)))
    clustering = Clustering(
        ((), (Cluster(2, whole, None),), (Cluster(3, x, 0), Cluster(3, y, 0))), ()
    )
    known = forest(replace(leaf(A, AXES[0]), name="mine", named_by_owner=True))
    seen = look(known, clustering, along(0, x, y), leaf_of=dict.fromkeys(whole, A))
    assert [each.name for each in seen.seen] == ["mine", "mine-3.0", "mine-3.1"]
