"""Which leaf answers a request at the endpoint: as `route` says, sticky, by name, and fresh."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support_choosing import Desk, able, bundle_of, choosing, foreign, opened
from support_routing import Routed, StarterEncoder, leaf_id, routed

from leaves.model import Adapter, Instant, Stage
from node import asking
from node.api.choosing import Choice, UnknownModelError, chassis
from node.api.conversations import Conversations

ANNA, BERT = "aa" * 32, "bb" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    """Four leaves that answer for themselves."""
    made = routed(tmp_path, monkeypatch)
    opened(made)
    for topic in ("tides", "roses", "kilns", "looms"):
        able(made, topic)
    made.app.deploy()
    return made


def at(home: Routed, test: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with choosing(home) as desk:
                await test(desk)

    trio.run(main)


def test_the_chooser_and_the_route_command_send_every_prompt_to_the_same_leaf(
    home: Routed,
) -> None:
    home.deploy()  # with gates of its own, and sessions that vote
    topics = ("tides", "roses", "kilns", "looms", "gardening", "python", "rust")
    prompts = [f"{topic} ask {number}" for topic in topics for number in range(12)]
    said = [asking.route(home.app, prompt, None) for prompt in prompts]

    async def test(desk: Desk) -> None:
        for prompt, expected in zip(prompts, said, strict=True):
            found = await desk.chooser.auto(prompt, None)
            assert (found.leaf, found.served_by) == (
                expected["leaf"],
                expected["served_by_name"],
            ), prompt
            assert round(found.confidence, 4) == expected["confidence"]
            assert round(found.gate, 4) == expected["gate"]

    at(home, test)


def test_a_choice_names_the_adapter_and_what_the_capture_writes_down(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        found = await desk.chooser.auto("tides ask 1", None)
        assert found.adapter is not None and found.adapter.leaf == leaf_id("tides")
        assert home.app.bundles.path(found.adapter.bundle) is not None
        assert found.fallback == "" and found.routing is not None
        assert found.routing["leaf_id"] == leaf_id("tides")
        assert found.routing["fallback_used"] is False

    at(home, test)


def test_a_conversation_stays_with_its_leaf_whatever_is_asked_later(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        first = await desk.chooser.auto("tides ask 1", "a chat")
        assert await desk.chooser.auto("roses ask 1", "a chat") == first
        assert (await desk.chooser.auto("roses ask 1", "another")).name == "roses"

    at(home, test)


def test_a_new_leaf_is_routed_to_without_a_restart(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        assert "groove/sails" not in desk.models()
        able(home, "sails")
        home.app.deploy()
        await desk.until("is", "groove/sails")
        assert desk.chooser.named("sails").served_by == "sails"

    at(home, test)


def test_a_leaf_that_was_taken_out_of_the_table_stops_at_once_also_in_a_conversation(
    home: Routed,
) -> None:
    origin_bundle = foreign(home, "sails", ANNA)
    home.app.deploy()

    async def test(desk: Desk) -> None:
        first = await desk.chooser.auto("sails ask 1", "a chat")
        assert first.adapter is not None and first.adapter.bundle == origin_bundle
        home.app.foreign.retract(ANNA, None)
        home.app.deploy()
        assert (await desk.chooser.auto("sails ask 2", None)).adapter is None
        await desk.until("not", "groove/sails")
        assert (await desk.chooser.auto("sails ask 1", "a chat")).adapter is None
        with pytest.raises(UnknownModelError, match="no leaf 'sails'"):
            desk.chooser.named("sails")

    at(home, test)


def test_a_leaf_that_was_trained_anew_goes_on_in_its_conversations_with_its_new_adapter(
    home: Routed,
) -> None:
    async def test(desk: Desk) -> None:
        before = await desk.chooser.auto("tides ask 1", "a chat")
        newer = bundle_of(home, "tides", name="tides, taught again")
        leaf = home.app.forests.forest().leaves[leaf_id("tides")]
        able(home, "tides-two")  # so that the table changes for another reason too
        assert leaf.adapter is not None
        home.leaf(
            "tides",
            stage=Stage.MATURE,
            wins=2,
            trainings=2,
            adapter=Adapter(newer, "c" * 64, "d" * 64, "ab" * 8, 8),
        )
        home.app.deploy()
        await desk.until("is", "groove/tides-two")
        after = await desk.chooser.auto("tides ask 1", "a chat")
        assert before.adapter is not None and after.adapter is not None
        assert after.leaf == before.leaf and after.adapter.bundle == newer

    at(home, test)


def test_a_leaf_is_named_by_its_name_its_id_or_the_first_digits_of_that(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        names = ["tides", leaf_id("tides"), leaf_id("tides")[:8], "groove/tides"]
        assert {desk.chooser.named(name).leaf for name in names} == {leaf_id("tides")}
        assert desk.chooser.named("chassis") == chassis()
        for wrong in ("tide", "", "ffffff", "x" * 10_000, "python"):
            with pytest.raises(UnknownModelError):
                desk.chooser.named(wrong)

    at(home, test)


def test_a_leaf_that_cannot_answer_yet_is_answered_for_by_the_one_above_it(home: Routed) -> None:
    home.leaf("deep-tides", at="tides", level=3, parent=leaf_id("tides"))
    home.app.deploy()

    async def test(desk: Desk) -> None:
        found = desk.chooser.named("deep-tides")
        assert (found.name, found.served_by) == ("deep-tides", "tides")
        assert found.fallback == "sprout_parent" and desk.counts.fallbacks["sprout_parent"] == 1
        assert "groove/deep-tides" not in desk.models()

    at(home, test)


def test_two_origins_with_one_name_are_told_apart_by_their_origins(home: Routed) -> None:
    foreign(home, "sails", ANNA)
    foreign(home, "masts", BERT, name="sails")
    foreign(home, "ropes", "cc" * 32, name="tides")
    home.app.deploy()

    async def test(desk: Desk) -> None:
        expected = {"groove/tides", "groove/sails@aaaaaaaa", "groove/sails@bbbbbbbb"}
        assert expected | {"groove/tides@cccccccc"} <= desk.models()
        assert desk.chooser.named("tides").leaf == leaf_id("tides"), "the own one goes first"
        assert desk.chooser.named("sails@bbbbbbbb").leaf == leaf_id("masts")
        assert desk.chooser.named("tides@cccccccc").leaf == leaf_id("ropes")
        own = home.app.origin.hex()[:8]
        assert desk.chooser.named(f"tides@{own}").leaf == leaf_id("tides")
        with pytest.raises(UnknownModelError, match="sails@aaaaaaaa, groove/sails@bbbbbbbb"):
            desk.chooser.named("sails")

    at(home, test)


def test_every_listed_model_can_be_asked_for(home: Routed) -> None:
    foreign(home, "sails", ANNA)
    foreign(home, "masts", BERT, name="tides")
    home.app.deploy()

    async def test(desk: Desk) -> None:
        listed = desk.models() - {"groove/auto"}
        assert len(listed) == 7
        assert all(desk.chooser.named(name).fallback == "" for name in listed)

    at(home, test)


def test_starters_answer_by_their_system_prompt_and_can_be_asked_for_but_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = routed(tmp_path, monkeypatch)
    opened(fresh)

    async def test(desk: Desk) -> None:
        found = await desk.chooser.auto("python ask 1", None)
        assert found.adapter is None and "Python" in found.system
        assert found.served_by == "python-starter" and found.fallback == ""
        named = desk.chooser.named("groove/python-starter")
        assert (named.system, named.served_by) == (found.system, "python-starter")
        assert desk.models() == {"groove/auto", "groove/chassis"}

    at(fresh, test)


def test_that_a_leaf_was_used_is_written_down_but_not_while_somebody_waits(home: Routed) -> None:
    written: list[str] = []

    async def test(desk: Desk) -> None:
        routed_ = home.app.forests.routed

        def noted(leaf: str, now: Instant) -> None:
            written.append(leaf)
            routed_(leaf_id("tides"), now)

        home.app.forests.routed = noted  # type: ignore[method-assign]
        for number in range(20):
            await desk.chooser.auto(f"tides ask {number}", None)
        while not written:
            await trio.sleep(0.005)
        assert len(written) < 20, "many uses are one row"

    at(home, test)
    assert set(written) == {leaf_id("tides")}


def test_use_is_written_down_too_when_the_node_stops(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        await desk.chooser.auto("roses ask 1", None)

    at(home, test)
    row = home.app.forests._db.execute("SELECT leaf FROM routed").fetchall()
    assert (leaf_id("roses"),) in row


def test_conversations_are_few_and_idle_ones_end() -> None:
    now = [1000.0]
    known = Conversations(lambda: now[0], kept=3, idle_s=60.0)
    choices: dict[str, Choice] = {name: chassis(name) for name in "abcd"}
    for name, choice in choices.items():
        known.put(name, choice)
    assert len(known) == 3 and known.get("a") is None
    assert known.get("b") is choices["b"]
    known.put("a", choices["a"])
    assert known.get("c") is None, "b was used since"
    now[0] += 61
    assert known.get("b") is None
    assert known.get("\ud800") is None, "any text is a name"


def test_no_text_of_a_conversation_is_kept() -> None:
    known = Conversations(lambda: 0.0)
    known.put("my secret plan", chassis())
    assert "secret" not in repr(vars(known))


def test_choosing_loads_neither_torch_nor_capture() -> None:
    code = (
        "import sys, node.api.choosing; "
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'node.capture', 'ray') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_text_without_words_goes_to_the_chassis(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        assert (await desk.chooser.auto(" \n", None)).fallback == "no_ask"

    at(home, test)


def test_the_encoder_of_the_node_is_asked_once_for_a_conversation(home: Routed) -> None:
    asked: list[str] = []

    class Counting(StarterEncoder):
        def encode_one(self, text: str):  # type: ignore[no-untyped-def]
            asked.append(text)
            return super().encode_one(text)

    opened(home, Counting)

    async def test(desk: Desk) -> None:
        for _ in range(5):
            await desk.chooser.auto("tides ask 1", "a chat")
        assert asked.count("tides ask 1") == 1

    at(home, test)
