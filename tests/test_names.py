"""Names of clusters: their own words, unique, and the same every time."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from leaves.names import name_clusters
from leaves.ports import Cluster, Clustering


def named(
    groups: dict[str, list[str]], *, level: int = 2, taken: tuple[str, ...] = ()
) -> list[str]:
    """Names of clusters whose prompts are given, by a key that the session ids begin with."""
    prompts = {f"{key}{n}": text for key, texts in groups.items() for n, text in enumerate(texts)}
    clusters = tuple(
        Cluster(level, tuple(sorted(id_ for id_ in prompts if id_.startswith(key))), None)
        for key in groups
    )
    levels: list[tuple[Cluster, ...]] = [(), (), ()]
    levels[level - 1] = clusters
    clustering = Clustering((levels[0], levels[1], levels[2]), ())
    return list(name_clusters(clustering, prompts, taken)[level - 1])


LIBRARIES = {
    "n": [f"In networkx, what does {verb}_graph(G, weight) do?" for verb in ("draw", "copy", "cut")]
    * 5,
    "p": ["In libp2p, what does dial(peer) do?", "In libp2p, what does close(peer) do?"] * 5,
    "s": ["In sympy, what does expand(expr) do?", "In sympy, what does solve(expr, x) do?"] * 5,
}


def test_a_cluster_is_named_by_its_own_words_and_not_by_the_form_of_asking() -> None:
    words = [set(name.split("-")) for name in named(LIBRARIES)]
    assert words == [{"networkx", "graph"}, {"libp2p", "peer"}, {"sympy", "expr"}]


def test_stop_words_name_nothing() -> None:
    (name,) = named({"a": ["what is the best way to do this with it"] * 10})
    assert name == "best"


def test_a_cluster_without_words_has_a_name_all_the_same() -> None:
    assert named({"a": ["???"] * 3, "b": ["!!!"] * 2}) == ["topic", "topic-2"]
    assert named({"a": [""]}, level=1) == ["branch"]


def test_names_are_unique_among_siblings() -> None:
    names = named({key: ["restart the nginx server"] * 5 for key in "abcd"})
    assert len(set(names)) == 4


def test_no_name_comes_twice_in_a_forest() -> None:
    prompts = {f"{n:02d}": "restart the nginx server" for n in range(10)}
    whole = tuple(prompts)
    clustering = Clustering(
        (
            (Cluster(1, whole, None),),
            (Cluster(2, whole, 0),),
            (Cluster(3, whole[:5], 0), Cluster(3, whole[5:], 0)),
        ),
        (),
    )
    names = [name for level in name_clusters(clustering, prompts) for name in level]
    assert len(set(names)) == 4


def test_a_name_that_is_taken_is_not_given_again() -> None:
    first = named(LIBRARIES)
    again = named(LIBRARIES, taken=tuple(first))
    assert not set(first) & set(again)
    assert again[0] == f"{first[0]}-weight"


def test_a_singular_and_its_plural_do_not_both_name_a_cluster() -> None:
    (name,) = named({"a": ["parse dates", "parse date", "date parser with dates"] * 5})
    assert not {"date", "dates"} <= set(name.split("-"))


def test_a_session_without_a_prompt_adds_nothing() -> None:
    clustering = Clustering(((), (Cluster(2, ("a", "b", "c"), None),), ()), ())
    names = name_clusters(clustering, {"a": "tune postgres", "b": "tune postgres"})
    assert names[1] == ("tune-postgres",)


def test_no_clusters_have_no_names() -> None:
    assert name_clusters(Clustering(((), (), ()), ("x",)), {}) == ((), (), ())


@given(st.lists(st.lists(st.text(max_size=60), min_size=1, max_size=6), min_size=1, max_size=6))
def test_any_prompts_give_unique_kebab_case_names(texts: list[list[str]]) -> None:
    groups = {f"k{index}-": group for index, group in enumerate(texts)}
    names = named(groups)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert names == named(groups)
