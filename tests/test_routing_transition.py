"""From starters to leaves that grew: when starters serve, what is compared, when they leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support_routing import ABLE, TODAY, Routed, near, routed

from leaves.lifecycle import Rules
from leaves.model import Stage
from node import asking, deploying, overview, show, transition
from node.app import App
from node.engine import Plan, Round

RULES = Rules(starters_sessions=500, replay_sessions=500)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    return routed(tmp_path, monkeypatch, RULES)


def test_starters_serve_from_the_first_minute(home: Routed) -> None:
    found = asking.route(home.app, "python ask 1", None)
    assert found["served_by_name"] == "python-starter" and found["table"] == 1
    assert found["standing"] == "starters serve; 0 of 1,000 sessions for the first discovery"


def test_the_first_prompt_begins_one_table_and_the_second_none(home: Routed) -> None:
    asking.route(home.app, "python ask 1", None)
    asking.route(home.app, "rust ask 1", None)
    assert [row.number for row in home.app.tables.history()] == [1]


def test_a_prompt_that_no_starter_takes_goes_to_the_bare_chassis_and_it_says_so(
    home: Routed,
) -> None:
    found = asking.route(home.app, "gardening ask 1", None)
    assert found["served_by"] is None
    assert found["path"][-1] == "no leaf takes it: the chassis answers, without a system prompt"


def test_before_the_first_discovery_status_says_how_far_it_is_and_at_what_pace(
    home: Routed,
) -> None:
    for day in range(10):
        ids = [f"s-{day}-{n}" for n in range(40)]
        vectors = np.stack([near("tides", 40 * day + n) for n in range(40)])
        home.app.embeddings.append(ids, [TODAY - 9 + day] * 40, vectors)
    line = dict(show.status_facts(overview.status(home.app)))["routing"]
    assert line == (
        "starters serve; 400 of 1,000 sessions for the first discovery, about 15 days at this pace"
    )


def test_with_sessions_enough_it_says_what_is_missing(home: Routed) -> None:
    home.sessions("tides", range(1000))
    assert "`groove-node round`" in transition.standing(home.app)["line"]


def test_starters_stay_below_leaves_until_these_take_four_fifths(home: Routed) -> None:
    home.grown("tides", sessions=200)
    home.sessions("python", range(300))
    home.deploy()
    assert {"tides", "python-starter"} <= home.names()
    assert home.events() == ["transition"]
    home.deploy()
    assert home.events() == []  # nothing is new
    assert asking.route(home.app, "python ask 1", None)["served_by_name"] == "python-starter"
    line = transition.standing(home.app)["line"]
    assert line.startswith("data-driven leaves take 3") and line.endswith(
        "at 80%, once a leaf can answer for itself"
    )


def test_starters_leave_once_leaves_take_four_fifths_and_it_is_told(home: Routed) -> None:
    home.grown("tides", "poems", **ABLE)
    home.deploy()
    assert home.names() == {"tides", "poems"}
    assert "starters left" in home.events()
    assert transition.standing(home.app)["state"] == "leaves"


def test_starters_stay_until_a_leaf_can_answer_whatever_the_leaves_take(home: Routed) -> None:
    home.grown("tides", "poems")
    home.deploy()
    assert home.events() == ["transition"]
    assert transition.standing(home.app)["line"] == (
        "data-driven leaves take 95% of the last 500 sessions; "
        "starters leave at 80%, once a leaf can answer for itself"
    )
    assert asking.route(home.app, "python ask 1", None)["served_by_name"] == "python-starter"
    home.leaf("poems", **ABLE)
    home.deploy()
    assert home.names() == {"tides", "poems"} and "starters left" in home.events()


def test_starters_that_left_do_not_come_back_by_themselves(home: Routed) -> None:
    home.grown("tides", "poems", **ABLE)
    home.deploy()
    home.sessions("python", range(400))
    home.deploy()
    assert home.names() == {"tides", "poems"} and home.events() == []


def test_too_few_sessions_do_not_send_the_starters_away(home: Routed) -> None:
    home.grown("tides", sessions=300)
    home.deploy()
    assert "python-starter" in home.names()


def test_a_roll_back_brings_the_starters_back(home: Routed) -> None:
    asking.route(home.app, "python ask 1", None)
    home.grown("tides", "poems", **ABLE)
    home.deploy()
    deploying.restore(home.app, 1, pin=True)
    assert "python-starter" in home.names()
    home.deploy()
    assert "python-starter" in home.names() and home.events() == ["table kept"]


def test_starters_come_back_when_no_leaf_is_left(home: Routed) -> None:
    home.grown("tides", "poems", **ABLE)
    home.deploy()
    for topic in ("tides", "poems"):
        home.leaf(topic, stage=Stage.DISSOLVED)
    home.app.deploy()
    assert home.names() == set()
    assert asking.route(home.app, "python ask 1", None)["served_by_name"] == "python-starter"


def test_status_says_why_a_table_is_in_force(home: Routed) -> None:
    def line() -> str:
        return str(transition.standing(home.app)["line"])

    asking.route(home.app, "python ask 1", None)
    deploying.restore(home.app, 1, pin=False)
    assert line().endswith("first discovery; table 1 is in force: you restored table 1")
    home.grown("tides", "poems", **ABLE)
    deploying.restore(home.app, 1, pin=True)
    assert line().startswith("starters serve; 2 leaves of the tree are not in the routing table; ")
    home.deploy()
    deploying.pin(home.app, False)
    assert line().endswith(
        "; table 1 is in force: the last round's was refused: this one was pinned"
    )
    home.deploy()
    assert line() == "leaves that grew from sessions serve; the starters have left"


def test_the_report_says_which_starter_a_leaf_mostly_replaces(home: Routed) -> None:
    ids = home.sessions("python", range(200))
    home.assign(dict.fromkeys(ids, home.leaf("snakes", at="python").id))
    home.sessions("rust", range(300))
    home.deploy()
    told = next(told for told in home.told if told.event == "replaced")
    assert told.text.startswith("starters are replaced: python-starter by snakes (")
    figures = next(told.data for told in home.told if told.event == "transition")
    assert figures["by_both"] > 150 and figures["agreement"] == 1.0
    assert figures["sessions"] == 500 and figures["by_none"] == 0


def test_until_a_leaf_can_answer_the_starter_nearest_to_the_prompt_does(home: Routed) -> None:
    ids = home.sessions("python", range(200))
    home.assign(dict.fromkeys(ids, home.leaf("snakes", at="python").id))
    home.sessions("rust", range(300))
    home.deploy()
    found = asking.route(home.app, "python ask 1", None)
    assert (found["leaf_name"], found["served_by_name"]) == ("snakes", "python-starter")
    assert found["path"][-1] == (
        "snakes has no adapter yet: python-starter answers, by its system prompt"
    )


def test_a_branch_does_not_stand_between_leaves_and_starters(home: Routed) -> None:
    branch = home.leaf("everything", at="python", level=1)
    home.leaf("tides", parent=branch.id)
    home.sessions("tides", range(100), leaf="tides")
    home.sessions("python", range(400))
    home.deploy()
    assert "everything" not in home.names()
    home.app.deploy()
    assert "everything" not in home.names()


def test_what_status_says_needs_no_sound_table(home: Routed) -> None:
    asking.route(home.app, "python ask 1", None)
    (home.app.home / "router" / "table-00000001.bin").write_bytes(b"garbage")
    assert transition.standing(home.app)["line"].startswith("the chassis answers: ")


def test_without_consent_to_train_status_and_a_dry_run_say_what_leaves_wait_for(
    home: Routed, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Plan(0, 600, (), (("train (first)", "tides", "600 of 500 sessions"),), "")
    monkeypatch.setattr(Round, "plan", lambda round_, now: planned)
    monkeypatch.setattr(App, "allows", lambda app, scope: scope != "train")
    waits = "waits for consent: train (`groove-node consent grant train`)"
    assert home.app.plan().trainings == (("train (first)", "tides", waits),)
    home.leaf("tides", sessions=600)
    home.leaf("waters", level=1)
    facts = dict(show.status_facts(overview.status(home.app)))
    assert facts["next"] == f"tides: 600 of 500 sessions, {waits}"
    assert facts["leaves"] == "1 seed; in 1 branch"
