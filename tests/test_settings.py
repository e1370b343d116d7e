"""groove.toml by keys: looked at, explained, changed with its comments kept."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import GossipConfig
from leaves.lifecycle import Rules
from leaves.model import Instant
from node import settings, sound, started, swarm
from node.app import App
from node.config import Config, ConfigError
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
    assert (done["old"], done["new"]) == (GossipConfig().fanout, 6)
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
        ("rules.merge_cosine", "7"),
        ("rules.merge_cosine", "nan"),
        ("rules.surge", "inf"),
        ("rules.skill_sessions", "0"),
        ("training.steps", "-1"),
        ("training.learning_rate", "1e9"),
        ("training.learning_rate", "nan"),
        ("training.control_pairs", "1000000"),
        ("training.style_margin", "-3"),
        ("training.style_margin", "nan"),
        ("training.chassis", "/no/such/folder"),
        ("training.chassis", "models/here"),
        ("encoder.path", "/no/such/folder"),
        ("mesh.transport.connections_max", "-1"),
        ("mesh.interest_cosine", "nan"),
        ("mesh.mirror", "ftp://host/folder"),
        ("mesh.mirror", "https://host/folder"),
        ("mesh.mirror", "not a url"),
        ("mesh.mirror", "/no/such/folder"),
        ("mesh.cache_bytes_max", "1000"),
        ("mesh.transport.relay", '["/ip4/192.0.2.7/tcp/4021"]'),
        ("mesh.peers", '["/ip4/192.0.2.7/tcp/4021"]'),
        ("mesh.transport.listen", "everywhere"),
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


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("night.window", "1-5", "expected always or HH:MM-HH:MM, such as 23:00-05:00"),
        ("mesh.mirror", "", """an empty text is written '""'"""),
        ("mesh.peers", "hello", """expected a list of texts, such as '["…"]'"""),
        ("mesh.transport.mdns", "on", "expected true or false"),
    ],
)
def test_a_refusal_names_the_form_that_is_allowed(
    app: App, key: str, value: str, told: str
) -> None:
    with pytest.raises(MisuseError) as refused:
        settings.change(app, key, value)
    assert told in refused.value.what
    if told.startswith("expected "):
        assert settings.explain(app, key)["allowed"] in told


def test_an_empty_text_can_be_set_as_the_refusal_says(app: App) -> None:
    settings.change(app, "mesh.mirror", str(app.home))
    assert settings.change(app, "mesh.mirror", '""')["new"] == ""


def test_a_wrong_window_in_the_file_is_told_what_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "groove.toml").write_text('[night]\nwindow = "1-5"\n')
    with pytest.raises(ConfigError, match="such as 23:00-05:00"):
        App(tmp_path)


def test_what_of_the_file_cannot_be_used_is_known_before_it_is_missed() -> None:
    assert sound.faults(Config()) == []
    text = '[mesh]\nmirror = "/no/such/folder"\ncache_bytes_max = 5\n[mesh.transport]\n'
    config = msgspec.toml.decode(text + 'relay = ["/ip4/11.0.0.1/tcp/1"]\n', type=Config)
    keys = ["mesh.mirror", "mesh.cache_bytes_max", "mesh.transport.relay"]
    assert [key for key, _ in sound.faults(config)] == keys


def test_a_running_node_is_said_to_have_read_another_file_or_another_swarm(app: App) -> None:
    node = {"read": started.stamp(app.home, "", "")}
    assert started.changes(app, node) == started.changes(app, None) == []
    settings.change(app, "mesh.transport.mdns", "true")
    (changed,) = started.changes(app, node)
    assert "groove.toml was changed since the node started" in changed
    node = {"read": started.stamp(app.home, "", "")}
    key = swarm.make()
    swarm.store(app.home, key)
    for _ in range(2):  # for as long as it is so
        (changed,) = started.changes(app, node)
        assert "the swarm was changed since the node started" in changed
    stamp = started.stamp(app.home, key, "")
    assert started.changes(app, {"read": stamp}) == [] and key not in str(stamp)
    assert started.changes(app, {}) == []  # of a node that notes no stamp


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


def test_a_number_that_is_out_of_range_is_told_its_range(app: App) -> None:
    with pytest.raises(MisuseError, match=r"must be 1 to 1,000,000,000, not -5"):
        settings.change(app, "rules.seed_sessions", "-5")
    with pytest.raises(MisuseError, match="Expected `int`"):
        settings.change(app, "rules.seed_sessions", "many")


def test_a_file_with_a_value_out_of_range_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "groove.toml").write_text("[training]\nlearning_rate = nan\n")
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        App(tmp_path)


def test_keys_that_are_set_at_the_same_time_are_all_kept(app: App) -> None:
    keys = ("seed_sessions", "branch_sessions", "mature_sessions", "skill_sessions")
    apps = [App(app.home) for _ in keys]  # each has read the file before any wrote it
    threads = [
        threading.Thread(target=settings.change, args=(each, f"rules.{key}", "321"))
        for each, key in zip(apps, keys, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rules = App(app.home).config.rules
    assert [getattr(rules, key) for key in keys] == [321] * len(keys)


def test_a_section_is_explained_key_by_key_without_clauses_of_a_document(app: App) -> None:
    told = {each["key"]: each for each in settings.explain_all(app, "rules")}
    assert told["rules.approve"]["allowed"] == '"ask" or "auto"'
    assert told["rules.drift_share"]["allowed"] == "0 to 1"
    assert not [key for key, each in told.items() if "§" in each["why"] or not each["why"]]
    assert len(settings.explain_all(app, None)) == len(settings.values(Config()))
    assert settings.explain(app, "training.steps")["allowed"] == "from 1 to 100,000"
    assert "style control" in settings.explain(app, "training.control_pairs")["why"]


def test_a_changed_rule_waits_for_the_next_round(app: App) -> None:
    settings.change(app, "rules.seed_sessions", "300")
    app = App(app.home)
    waiting = [{"key": "rules.seed_sessions", "old": 200, "new": 300}]
    assert settings.pending(app) == waiting
    app.forests.begin_round(Instant(0), "embed", {}, app.config.rules)
    assert settings.pending(app) == []


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("api.upstream", "foo", "http://127.0.0.1:11434/v1"),
        ("api.listen", "0.0.0.0:4022", "unix"),
    ],
)
def test_where_the_endpoint_listens_and_passes_on_to_is_checked_when_it_is_set(
    app: App, key: str, wrong: str, right: str
) -> None:
    with pytest.raises(MisuseError, match=r"such as http|127\.0\.0\.1:PORT"):
        settings.change(app, key, wrong)
    assert settings.change(app, key, right)["new"] == right
