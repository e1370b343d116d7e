"""What is offered to others passed the gate, and is of a topic that may be shown."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_llama
from support_engine import TopicEncoder, adapter_bytes
from support_publishing import TRIED, Probing, grow, mature, opened

from leaves.bundle import (
    GainFigures,
    Label,
    Privacy,
    decode_label,
    encode_label,
    read_label,
)
from leaves.model import Forest, GrownFrom, Instant, Leaf, LeafId, Stage
from leaves.ports import Example, Schedule, silent
from leaves.ports import TrainJob as Job
from leaves.training.chassis import open_chassis
from node import cli, mesh, publishing
from node.app import App
from node.consent import Scope
from node.examining import Gate
from node.foreign import Known, State
from node.mesh import ForeignLeaf, Shown
from node.publishing import audit, by_heart, unspoken

CLEAN = Privacy(
    contributors=1,
    sessions=300,
    canary_exposure=1.2,
    scrub_rules="13/1",
    second_scan="7",
    probed=256,
    verbatim=0,
    verbatim_tokens=50,
    longest_run=18,
    loss_gap=GainFigures(0.03, -0.02, 0.08),
    growth_max=0.01,
    growth_mean=0.002,
    repeated=0.1,
    passes=1,
    exposures=TRIED.levels,
    exposure_bits_max=9.0,
)


# ---- the audit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"probed": None}, "nobody has looked"),
        ({"verbatim": 2, "longest_run": 74}, "2 of 256 training texts come out"),
        ({"loss_gap": GainFigures(1.4, 1.1, 1.7)}, "1.40 nats per token easier"),
        ({"canary_exposure": None}, "not tried on canaries"),
        ({"canary_exposure": 8.5}, "8.5 bits of 9.0"),
    ],
    ids=["unlooked", "verbatim", "gap", "untried", "exposed"],
)
def test_an_adapter_that_gives_away_what_it_learned_is_blocked_with_reason_and_mend(
    changed: dict[str, Any], said: str
) -> None:
    assert audit(CLEAN).blocked is None
    blocked = audit(msgspec.structs.replace(CLEAN, **changed)).blocked
    assert blocked is not None and said in blocked
    assert "trained" in blocked or "groove.toml" in blocked


def test_a_gap_that_may_be_chance_blocks_nothing() -> None:
    wide = msgspec.structs.replace(CLEAN, loss_gap=GainFigures(1.4, 0.9, 1.9))
    assert audit(wide).blocked is None


def test_the_figures_of_the_label_are_those_that_were_measured(tmp_path: Path) -> None:
    chassis = open_chassis(tiny_llama.build(tmp_path / "chassis"))
    long = " ".join(f"word{n}" for n in range(40))
    train = tuple(Example(f"t{n}", "seen?", f"{long} {n}") for n in range(96))
    unseen = tuple(Example(f"h{n}", "not seen?", f"{long} {n}") for n in range(20))
    schedule = Schedule(steps=24, batch=8)
    work = tmp_path / "adapter.safetensors"
    work.write_bytes(adapter_bytes(Job(tmp_path, chassis.path, train, schedule)))
    probing = Probing(runs=61, easier=0.25)
    gate = Gate(chassis, probing, TRIED, "7")
    card = gate.examine(work, train, unseen, schedule, silent)
    assert (card.sessions, card.probed, card.verbatim, card.longest_run) == (96, 96, 96, 61)
    assert card.loss_gap == GainFigures(0.25, 0.25, 0.25)
    assert card.passes == 2 and 1.2 < (card.canary_exposure or 0) < 9.0
    assert 0 < (card.growth_mean or 0) < (card.growth_max or 0) < 0.5
    assert card.repeated == 1.0, "all texts have a phrase in common"
    assert audit(card).blocked
    untried = replace(gate, recipe=None).examine(work, train, (), schedule, silent)
    assert untried.loss_gap is None and untried.canary_exposure is None
    assert [job.examples for job in probing.asked] == [train, train]


def test_all_sessions_of_a_preference_step_count_on_the_label(tmp_path: Path) -> None:
    chassis = open_chassis(tiny_llama.build(tmp_path / "chassis"))
    train = tuple(Example(f"t{n}", "seen?", "yes") for n in range(9))
    same = Example("liked-0", train[0].prompt, train[0].completion)
    liked = (same, Example("liked-1", "which?", "this"))
    paired = {"liked-0", "liked-1", "not-0", "not-1", "t1"}
    schedule = Schedule(steps=2)
    work = tmp_path / "adapter.safetensors"
    work.write_bytes(adapter_bytes(Job(tmp_path, chassis.path, train, schedule)))
    gate = Gate(chassis, Probing(), TRIED, "7")
    card = gate.examine(work, train, (), schedule, silent, liked, paired)
    assert card.sessions == 9 + 4, "also the session whose text trained under another id"


def test_texts_too_short_to_be_found_are_not_looked_for(tmp_path: Path) -> None:
    chassis = open_chassis(tiny_llama.build(tmp_path / "chassis"))
    train = tuple(Example(f"t{n}", "seen?", "yes") for n in range(9))
    schedule, probing = Schedule(steps=2), Probing()
    work = tmp_path / "adapter.safetensors"
    work.write_bytes(adapter_bytes(Job(tmp_path, chassis.path, train, schedule)))
    card = Gate(chassis, probing, TRIED, "7").examine(work, train, train, schedule, silent)
    assert card.probed == 0 and not probing.asked and audit(card).blocked is None
    assert by_heart(card) == "not tested: no training text has 50 tokens"


# ---- the label ---------------------------------------------------------------------------------

OLD = (
    b'{"adapter":"' + b"a" * 64 + b'","alpha":16,"chassis":"' + b"c" * 16 + b'","control_bytes":0,'
    b'"control_root":"","dtype":"float32","evaluation":null,"format":1,"leaf":"' + b"d" * 32 + b'",'
    b'"licence":"Apache-2.0","lineage":[],"method":"sft","name":"gears","privacy":{"canary_exposure"'
    b':null,"contributors":1,"scrub_rules":"13/1","sessions":128},"rank":8,"targets":["q_proj"],'
    b'"terms":"own","tokens":9}'
)


def test_a_label_of_an_older_node_is_still_the_one_json_of_its_content() -> None:
    label = decode_label(OLD)
    assert label.privacy.sessions == 128 and label.privacy.probed is None
    assert encode_label(label) == OLD
    assert audit(label.privacy).blocked, "nothing is known of it"


def test_the_privacy_card_stands_in_the_label() -> None:
    label: Label = msgspec.structs.replace(decode_label(OLD), privacy=CLEAN)
    assert decode_label(encode_label(label)).privacy == CLEAN
    assert len(encode_label(label)) < 4_000


# ---- the owner's word --------------------------------------------------------------------------


def leaf(number: int, topic: str, **about: Any) -> Leaf:
    from leaves.model import Kind

    fields: dict[str, Any] = {
        "id": LeafId(f"{number:032x}"),
        "name": f"{topic}-{number}",
        "stage": Stage.SEED,
        "stage_since": Instant(1),
        "level": 2,
        "kind": Kind.SKILL,
        "grown_from": GrownFrom.DATA,
        "parent": None,
        "lineage": (),
        "created": Instant(1),
        "sessions": 300,
        "growth_per_day": 1.0,
        "centroid": TopicEncoder().encode_one(f"{topic} centre"),
    }
    return Leaf(**fields | about)


def forest(*leaves: Leaf) -> Forest:
    return Forest({each.id: each for each in leaves})


def foreign(topic: str, state: State = State.HEARD, origin: int = 0) -> Known:
    centroid = TopicEncoder().encode_one(f"{topic} centre")
    card = ForeignLeaf(
        f"{origin:064x}", LeafId("9" * 32), 1, Stage.SEED, 8, None, "", 0, "cd" * 8, centroid
    )
    return Known(card, state, topic, {})


def test_a_topic_that_others_are_not_known_to_have_waits_for_the_owners_word() -> None:
    gears, poems = leaf(1, "gears"), leaf(2, "poems")
    grown = forest(gears, poems, leaf(3, "tides", level=1))
    accepted = [foreign("gears", State.ACCEPTED)]
    assert unspoken(grown, [], [], {}) == {gears.id, poems.id}
    assert unspoken(grown, [], accepted, {}) == {poems.id}
    assert unspoken(grown, [poems.id], accepted, {}) == set(), "it is shown already"
    assert unspoken(grown, [], [], {gears.id: True, poems.id: False}) == set()


@pytest.mark.parametrize("state", [s for s in State if s is not State.ACCEPTED], ids=str)
def test_no_single_peer_can_plant_cards_to_learn_whether_the_owner_has_a_topic(
    state: State,
) -> None:
    grown = forest(leaf(1, "gears"))
    planted = [foreign("gears", state) for _ in range(9)]
    assert unspoken(grown, [], planted, {}) == set(grown.leaves)
    several = [foreign("gears", state, origin) for origin in range(publishing.ORIGINS_MIN)]
    assert unspoken(grown, [], several[1:], {}) == set(grown.leaves)
    assert unspoken(grown, [], several, {}) == set()
    elsewhere = [foreign("poems", state, origin) for origin in range(9)]
    assert unspoken(grown, [], elsewhere, {}) == set(grown.leaves)


def test_nothing_is_shown_of_a_hidden_leaf_and_its_record_is_kept() -> None:
    gears, poems = leaf(1, "gears"), leaf(2, "poems")
    grown = forest(gears, poems)
    before = {poems.id: Shown(b"\1" * 32, 260)}
    table = mesh.cards(grown, before, b"e" * 8, lambda root: 0, frozenset(), {poems.id})
    assert [card.leaf.hex() for card in table.cards] == [gears.id]
    assert table.shown[poems.id] == before[poems.id], "the next centroid must not come too soon"
    fresh = mesh.cards(grown, {}, b"e" * 8, lambda root: 0, frozenset(), {poems.id})
    assert poems.id not in fresh.shown


def test_the_owners_last_word_counts_and_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    one, two = LeafId("1" * 32), LeafId("2" * 32)
    publishing.say(tmp_path, [one, two], True)
    publishing.say(tmp_path, [two], False)
    assert publishing.words(tmp_path).said == {one: True, two: False}
    for damage in (b"{", b'{"said":{"\xff":true}}', b"[" * 100_000):
        (tmp_path / publishing.FILE).write_bytes(damage)
        assert publishing.words(tmp_path).said == {}


# ---- all of it, in a home ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose leaves give nothing away; for copying."""
    return grow(tmp_path_factory.mktemp("passed"), Probing())


@pytest.fixture
def home(tmp_path: Path, passed: Path) -> Path:
    return shutil.copytree(passed, tmp_path / "home")


def table(app: App) -> mesh.Table:
    """What the running node would sign."""
    withheld, leaves = app.withheld(), app.forests.forest().leaves
    kept = {x.bundle for id_ in withheld.reasons if (x := leaves[id_].adapter)}
    return mesh.cards(
        app.forests.forest(),
        app.shown(),
        app.enc8,
        lambda root: 0 if root in kept else app.bundles.size_bytes(root),
        frozenset(),
        withheld.hidden,
    )


def test_a_leaf_that_passed_is_announced_and_served_with_its_card(home: Path) -> None:
    app = opened(home)
    assert len(mature(app)) == 3 and app.withheld().reasons == {}
    assert len(app.roots_to_serve()) == 6, "each with its control"
    assert sum(card.bundle is not None for card in table(app).cards) == 3
    for each in mature(app):
        assert each.adapter is not None
        for root in (each.adapter.bundle, each.adapter.control):
            path = app.bundles.path(root)
            assert path is not None and read_label(path).privacy.probed
        facts, details = publishing.about(app, each)
        assert dict(facts).keys() == {"by heart", "canaries"} and details["kept_back"] is None


def test_a_leaf_that_knows_texts_by_heart_is_neither_announced_nor_served(tmp_path: Path) -> None:
    app = opened(grow(tmp_path, Probing(runs=70)))
    reasons = app.withheld().reasons
    assert reasons.keys() == {each.id for each in mature(app)}
    assert all("word for word" in reason for reason in reasons.values())
    assert app.roots_to_serve() == []
    shown = table(app)
    assert shown.cards and all(card.bundle is None for card in shown.cards)
    assert Counter(each["asks"] for each in publishing.kept_back(app)) == {False: 3}


def test_a_leaf_whose_control_knows_texts_by_heart_is_not_offered_either(home: Path) -> None:
    app = opened(home)
    one = mature(app)[0]
    assert one.adapter is not None
    broken = replace(one.adapter, control=app.bundles.put(b"no bundle"))
    app.forests.change(replace(one, adapter=broken, version=9), "trained", "", Instant(2))
    assert app.withheld().reasons.keys() == {one.id}
    assert "style control" in app.withheld().reasons[one.id]
    assert len(app.roots_to_serve()) == 4


def test_a_later_version_that_is_blocked_is_withdrawn_with_its_bundle(home: Path) -> None:
    app = opened(home)
    offered = {card.leaf: card.bundle for card in table(app).cards if card.bundle}
    one = mature(app)[0]
    assert one.adapter is not None and bytes.fromhex(one.id) in offered
    path = app.bundles.path(one.adapter.bundle)
    assert path is not None
    leaking = app.bundles.put(relabelled(path, verbatim=3))
    worse = replace(one, adapter=replace(one.adapter, bundle=leaking), version=one.version + 1)
    app.forests.change(worse, "trained", "", Instant(2))
    now = {card.leaf: card.bundle for card in table(app).cards}
    assert now[bytes.fromhex(one.id)] is None, "the card stays, without a bundle"
    assert leaking not in app.roots_to_serve() and one.adapter.bundle not in app.roots_to_serve()


def relabelled(path: Path, **changed: Any) -> bytes:
    from leaves.bundle import pack, unpack

    parts = unpack(path.read_bytes())
    label = decode_label(parts.label)
    privacy = msgspec.structs.replace(label.privacy, **changed)
    return pack(encode_label(msgspec.structs.replace(label, privacy=privacy)), parts.adapter)


def test_a_topic_of_the_owners_own_is_shown_only_after_the_owners_word(home: Path) -> None:
    app = opened(home, novel="ask")
    waiting = {each.id for each in app.forests.forest().live() if each.level > 1}
    assert app.withheld().asked == waiting and table(app).cards == ()
    assert app.roots_to_serve() == []
    told = publishing.lines(publishing.kept_back(app))
    assert len(told) == 1 and "groove-node leaf publish" in told[0]
    one, other = mature(app)[:2]
    publishing.say(app.home, [one.id], True)
    assert [card.leaf.hex() for card in table(app).cards] == [one.id]
    assert len(app.roots_to_serve()) == 2
    app.remember_shown(table(app).shown)
    publishing.say(app.home, [one.id, other.id], False)
    assert table(app).cards == () and app.roots_to_serve() == []
    assert "you keep it here" in app.withheld().reasons[one.id]


def test_nothing_is_said_of_topics_while_nothing_may_be_published(home: Path) -> None:
    app = opened(home, novel="ask")
    app.consent.revoke_scope(app.user_id, Scope.PUBLISH)
    assert publishing.kept_back(app) == []


def test_the_owner_is_asked_and_answers_on_the_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = opened(home, novel="ask")
    monkeypatch.setattr(App, "open", classmethod(lambda cls: app))
    name = mature(app)[0].name

    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert f"groove-node leaf publish {name}" in told("leaf", "publish")
    assert "waits for your word" in told("leaf", "show", name)
    told("leaf", "publish", name)
    assert publishing.words(home).said == {mature(app)[0].id: True}
    told("leaf", "publish", "--all")
    assert app.withheld().reasons == {}
    told("leaf", "withhold", name)
    assert app.withheld().reasons.keys() == {mature(app)[0].id}
    with pytest.raises(SystemExit):
        cli.main(["leaf", "publish", "no-such-leaf"])
    assert "no leaf is called" in capsys.readouterr().err
