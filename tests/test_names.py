"""Names of clusters: their own words, unique, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaves import words
from leaves.names import below, medoids, name_clusters
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
    assert [words.problem(name) for name in names] == [None] * len(names)
    assert names == named(groups)


def test_a_thousand_copies_of_one_ask_do_not_give_the_name() -> None:
    tides = [f"predict the tide {word}" for word in ("tonight", "tomorrow", "here", "there")] * 3
    name, _ = named({"a": ["translate this poem"] * 1000 + tides, "b": ["tune a piano"] * 9})
    assert name == "predict-tide" or set(name.split("-")) == {"predict", "tide"}


def test_a_term_of_one_session_names_nothing() -> None:
    (name,) = named({"a": ["zanzibar"] + ["sort a list"] * 30})
    assert "zanzibar" not in name


RUSSIAN = ["Как настроить сервер nginx", "Почему сервер nginx не запускается", "Логи сервер nginx"]
CHINESE = ["如何连接数据库", "数据库连接失败怎么办", "备份数据库"]
JAPANESE = ["データベースの設計", "データベースを移行する", "データベースが遅い"]
HINDI = ["पायथन सूची बनाएं", "पायथन सूची छाँटें", "पायथन सूची उलटें"]
ARABIC = ["كيف أنشئ قاعدة بيانات", "نسخ قاعدة بيانات", "حذف قاعدة بيانات"]


@pytest.mark.parametrize(
    ("asks", "word"),
    [
        (RUSSIAN, "сервер"), (CHINESE, "数据库"), (JAPANESE, "データベース"),
        (HINDI, "पायथन"), (ARABIC, "قاعدة"),
    ],
)  # fmt: skip
def test_names_are_made_of_any_script(asks: list[str], word: str) -> None:
    name, *_ = named({"a": asks * 2, "b": ["draw a graph in networkx"] * 6})
    assert word in name and words.problem(name) is None


def test_the_grammar_of_a_language_of_several_clusters_names_none_of_them() -> None:
    topics = ["tarte", "vélo", "jardin", "piano", "train", "roman"]
    french = {f"f{t}": [f"comment faire pour {t} {n}" for n in "abcdefgh"] for t in topics}
    english = {f"e{n}": [f"draw the {n} map {x}" for x in "abcdefgh"] for n in "uvwxyz"}
    names = named({**french, **english})[: len(topics)]
    assert [name.split("-")[0] for name in names] == topics


def test_a_name_holds_nothing_that_a_terminal_acts_upon() -> None:
    asks = ["evil\x1b[31m red\u202e txt.exe", "\u200bhidden\u2066 marks z" + "\u0336" * 40] * 5
    (name,) = named({"a": asks})
    assert words.problem(name) is None and name.isprintable()


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a--b", "A", "a b", "a/b", "a\u202eb", "a\x1b", "e\u0301", "x" * 41]
)
def test_what_cannot_be_a_name_is_refused_with_a_reason(name: str) -> None:
    assert words.problem(name)


def test_a_deleted_word_is_found_in_the_name_that_was_made_of_it() -> None:
    for ask, name in (
        ("fix my C++ code", "cpp-code"),
        ("备份数据库", "数据库"),
        ("Сервер", "сервер"),
    ):
        assert words.parts(name) & words.parts(ask)


def test_the_parts_of_a_leaf_that_its_owner_named_are_named_after_it() -> None:
    assert below("my-web", "web-flask") == "my-web-flask"
    assert len(below("a" * 38, "flask")) <= words.NAME_CHARS_MAX


def test_other_clusters_do_not_change_a_clusters_name() -> None:
    own = {"n": LIBRARIES["n"]}
    one = named({**own, "p": LIBRARIES["p"], "s": LIBRARIES["s"]})
    cut = {"p1": LIBRARIES["p"][:5], "p2": LIBRARIES["p"][5:], "s": LIBRARIES["s"]}
    assert named({**own, **cut})[0] == one[0]


def test_a_medoid_is_the_member_nearest_to_the_centroid() -> None:
    vectors = {f"s{n}": np.array([np.cos(n / 9), np.sin(n / 9)], np.float32) for n in range(5)}
    clustering = Clustering(((), (Cluster(2, tuple(sorted(vectors)), None),), ()), ())
    assert medoids(clustering, vectors) == ((), ("s2",), ())
