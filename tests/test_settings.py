"""groove.toml by keys: looked at, explained, changed with its comments kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaves.lifecycle import Rules
from leaves.model import Instant
from node import settings
from node.app import App
from node.config import Config
from node.errors import MisuseError


@pytest.fixture
def app(tmp_path: Path) -> App:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return App(home)


def test_every_key_has_a_reason(app: App) -> None:
    for key in settings.values(Config()):
        if key.startswith(("rules.", "rounds.", "training.", "encoder.", "capture.")):
            assert settings.explain(app, key)["why"], key


def test_a_key_is_shown_with_its_default(app: App) -> None:
    settings.change(app, "rules.seed_sessions", "300")
    shown = settings.explain(App(app.home), "rules.seed_sessions")
    assert (shown["value"], shown["default"]) == (300, 200)


def test_a_change_keeps_comments_and_order(app: App) -> None:
    path = app.home / "groove.toml"
    path.write_text(
        "# mine\n[mesh]\npeers = []  # none\n\n[rules]\nseed_sessions = 250  # few\n\n[training]\n"
    )
    app = App(app.home)
    settings.change(app, "rules.seed_sessions", "300")
    settings.change(App(app.home), "rules.approve", "ask")
    assert path.read_text() == (
        "# mine\n[mesh]\npeers = []  # none\n\n[rules]\nseed_sessions = 300  # few\n"
        'approve = "ask"\n\n[training]\n'
    )
    found = App(app.home).config
    assert (found.rules.seed_sessions, found.rules.approve) == (300, "ask")


def test_a_section_that_is_not_there_is_made(app: App) -> None:
    done = settings.change(app, "mesh.gossip.fanout", "6")
    assert (done["old"], done["new"]) == (4, 6)
    assert App(app.home).config.mesh.gossip.fanout == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rules.seed_sessions", "-3"),
        ("rules.seed_sessions", "many"),
        ("rules.child_sessions", "900"),
        ("rules.approve", "maybe"),
        ("rules.seed_sessions", "300\nmature_wins = 1"),
        ("rules.nothing", "3"),
        ("rules", "3"),
    ],
)
def test_what_the_node_could_not_read_is_never_written(app: App, key: str, value: str) -> None:
    path = app.home / "groove.toml"
    path.write_text("[rules]\nseed_sessions = 250\n")
    with pytest.raises(MisuseError) as refused:
        settings.change(App(app.home), key, value)
    assert refused.value.unchanged and refused.value.next_step
    assert path.read_text() == "[rules]\nseed_sessions = 250\n"


def test_a_mistyped_key_is_told_which_it_may_be(app: App) -> None:
    with pytest.raises(MisuseError, match=r"did you mean `rules\.seed_sessions`"):
        settings.get(app, "rules.sead_sessions")


@given(st.integers(1, 10**6), st.text("ab c#=[]\"'\n", max_size=40))
def test_a_key_that_is_set_is_read_again_whatever_stands_around_it(value: int, text: str) -> None:
    try:
        msgspec.toml.decode(text)
    except (msgspec.DecodeError, ValueError):
        return
    changed = settings.edited(text, "rules", "branch_sessions", str(value))
    assert msgspec.toml.decode(changed)["rules"]["branch_sessions"] == value


def test_changed_rules_are_told_with_the_round_that_met_them(app: App) -> None:
    app.forests.begin_round(Instant(0), "embed", {}, Rules(approve="ask"))
    assert settings.history(app) == [
        {
            "when": "1970-01-01 00:00",
            "round": 1,
            "key": "rules.approve",
            "old": "auto",
            "new": "ask",
        }
    ]
