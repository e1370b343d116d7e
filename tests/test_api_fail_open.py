"""Whatever breaks, there is an answer from the chassis, a counted cause, and a line in `status`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support_api import ScriptedBackend
from support_choosing import Desk, able, bundle_of, choosing, opened
from support_routing import ABLE, Routed, StarterEncoder, leaf_id, routed

from leaves.model import Adapter, Stage, Vector
from node import show_api
from node.api.asked import Asked
from node.api.completing import Answer, Completing
from node.api.config import ApiConfig
from node.api.encoding import WAITING_MAX
from node.api.ports import AdapterError, BackendError
from node.errors import OwnerError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    made = routed(tmp_path, monkeypatch)
    opened(made)
    for topic in ("tides", "roses"):
        able(made, topic)
    made.app.deploy()
    return made


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a hanging encoder waits for; set at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def at(home: Routed, test: Callable[[Desk], Awaitable[None]], **config: Any) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with choosing(home, **config) as desk:
                await test(desk)

    trio.run(main)


async def until(check: Callable[[], bool]) -> None:
    while not check():
        await trio.sleep(0.005)


def rewritten(path: Path, data: bytes) -> None:
    """Replaced, as a restored backup or a bad disk would: a file that is mapped stays whole."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


# ---- what routing stands on ----------------------------------------------------------------------


def test_a_damaged_table_sends_everything_to_the_chassis_and_a_new_one_mends_it(
    home: Routed,
) -> None:
    async def test(desk: Desk) -> None:
        assert (await desk.chooser.auto("tides ask 1", None)).name == "tides"
        folder = home.app.home / "router"
        for path in folder.glob("table-*.bin"):
            rewritten(path, path.read_bytes()[:-7])
        found = await desk.chooser.auto("tides ask 1", None)
        assert (found.adapter, found.fallback) == (None, "no_table")
        assert desk.chooser.named("tides").fallback == "no_table", "no 404 for what is a leaf"
        assert desk.counts.fallbacks["no_table"] == 2
        shutil.rmtree(folder)
        home.app.deploy()
        await desk.until("is", "groove/tides")
        assert (await desk.chooser.auto("tides ask 1", None)).name == "tides"

    at(home, test)


def test_stores_that_vanish_do_not_cost_an_answer(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        for name in ("router", "bundles", "embeddings", "neighbours"):
            shutil.rmtree(home.app.home / name, ignore_errors=True)
        (home.app.home / "leaves.db").unlink()
        await until(lambda: "groove/tides" not in desk.models())
        found = await desk.chooser.auto("tides ask 1", None)
        assert found.adapter is None
        # The starters begin anew, and no leaf is known any more.
        assert desk.models() == {"groove/auto", "groove/chassis"}

    at(home, test)


def test_damaged_neighbours_leave_the_choice_to_centroids_and_are_counted(home: Routed) -> None:
    home.deploy()

    async def test(desk: Desk) -> None:
        rewritten(home.app.neighbours_path, b"nothing of the kind")
        assert (await desk.chooser.auto("tides ask 1", None)).name == "tides"
        assert desk.counts.fallbacks == {"no_neighbours": 1}

    at(home, test)


def test_a_router_that_fails_is_counted(home: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("my secret prompt")

    monkeypatch.setattr("node.api.choosing.way", broken)

    async def test(desk: Desk) -> None:
        assert (await desk.chooser.auto("tides ask 1", None)).fallback == "router_failed"
        assert desk.counts.fallbacks == {"router_failed": 1}

    at(home, test)


# ---- the encoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [OwnerError("the encoder is gone"), ValueError("my secret")])
def test_an_encoder_that_fails_is_counted_and_its_words_are_not_logged(
    home: Routed, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(StarterEncoder):
        def encode_one(self, text: str) -> Vector:
            raise problem

    opened(home, Broken)

    async def test(desk: Desk) -> None:
        found = await desk.chooser.auto("tides ask 1", "a chat")
        assert (found.adapter, found.fallback) == (None, "encoder_failed")
        assert desk.chooser.named("roses").adapter is not None, "which needs no encoder"
        opened(home)
        assert (await desk.chooser.auto("tides ask 1", "a chat")).name == "tides"

    at(home, test)
    assert "my secret" not in caplog.text and "tides ask" not in caplog.text


def test_more_prompts_than_can_wait_go_to_the_chassis_at_once(
    home: Routed, release: threading.Event
) -> None:
    class Hanging(StarterEncoder):
        def encode_one(self, text: str) -> Vector:
            if text.startswith("tides"):
                release.wait(20)
            return super().encode_one(text)

    opened(home, Hanging)
    more = 50

    async def test(desk: Desk) -> None:
        names: list[str] = []

        async def ask(number: int) -> None:
            names.append((await desk.chooser.auto(f"tides ask {number}", None)).fallback)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0)  # at the encoder, and not in the line
            await until(lambda: nursery_waits(desk))
            for number in range(WAITING_MAX + more):
                nursery.start_soon(ask, number + 1)
            await until(lambda: len(names) == more)
            assert set(names) == {"encoder_busy"}
            release.set()
        assert desk.counts.fallbacks["encoder_busy"] == more
        assert len(names) == WAITING_MAX + more + 1

    def nursery_waits(desk: Desk) -> bool:
        line = desk.chooser._line
        return line._send.statistics().current_buffer_used == 0 and (
            line._receive.statistics().tasks_waiting_receive == 0
        )

    at(home, test)


def test_an_encoder_that_is_late_is_not_waited_for(home: Routed, release: threading.Event) -> None:
    class Hanging(StarterEncoder):
        def encode_one(self, text: str) -> Vector:
            if text.startswith("tides"):
                release.wait(20)
            return super().encode_one(text)

    opened(home, Hanging)

    async def test(desk: Desk) -> None:
        found = await desk.chooser.auto("tides ask 1", None)
        assert (found.adapter, found.fallback) == (None, "encoder_busy")
        release.set()

    at(home, test, route_within_ms=20.0)


# ---- bundles -------------------------------------------------------------------------------------


def test_a_leaf_whose_bundle_is_gone_is_answered_for_by_the_chassis(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        before = desk.models()
        for path in (home.app.home / "bundles").glob("*.bundle"):
            path.unlink()
        await until(lambda: desk.models() != before)
        found = await desk.chooser.auto("tides ask 1", None)
        assert (found.name, found.served_by, found.fallback) == ("tides", "chassis", "no_adapter")
        assert desk.chooser.named("tides").fallback == "no_adapter"

    at(home, test)


def test_a_leaf_of_another_chassis_is_answered_for_by_the_one_above_it(home: Routed) -> None:
    other = bundle_of(home, "deep-tides", chassis="cd" * 8)
    adapter = Adapter(other, "c" * 64, "d" * 64, "ab" * 8, 8)
    about = {**ABLE, "stage": Stage.MATURE, "adapter": adapter, "level": 3}
    home.leaf("deep-tides", at="tides", parent=leaf_id("tides"), **about)
    home.app.deploy()

    async def test(desk: Desk) -> None:
        found = await desk.chooser.auto("tides ask 1", None)
        assert (found.name, found.served_by) == ("deep-tides", "tides")
        assert found.fallback == "no_adapter" and found.routing is not None
        assert found.routing["fallback_used"] is True

    at(home, test)


# ---- the back end --------------------------------------------------------------------------------


class Silent:
    """A recorder that fails in everything."""

    def begin(self, exchange: object) -> None:
        raise RuntimeError("the disk is full")

    def finished(self, *given: object) -> None:
        raise RuntimeError("the disk is full")


@asynccontextmanager
async def answering(desk: Desk, backend: ScriptedBackend, model: str) -> Any:
    any_: Any = Silent()
    completing = Completing(desk.chooser, backend, any_, desk.counts, ApiConfig())
    asked = Asked(model=model, messages=({"role": "user", "content": "tides ask 1"},), client="t")
    async with completing.begin(asked) as answer:
        yield answer


async def said(answer: Answer) -> str:
    async for _ in answer:
        pass
    return answer.text


def test_a_leaf_that_the_back_end_refuses_is_answered_for_by_the_chassis_and_not_tried_again(
    home: Routed,
) -> None:
    backend = ScriptedBackend(raises={"tides": AdapterError("damaged", "its adapter is damaged")})

    async def test(desk: Desk) -> None:
        async with answering(desk, backend, "groove/auto") as answer:
            assert answer.choice.fallback == "adapter"
            assert await said(answer) == "Hello there"
        tried = len(backend.asks)
        await until(lambda: "groove/tides" not in desk.models())
        async with answering(desk, backend, "groove/tides") as answer:
            assert answer.choice.fallback == "no_adapter"
        assert len(backend.asks) == tried + 1, "the chassis alone was asked"
        assert desk.counts.fallbacks == {"adapter": 1, "no_adapter": 1}
        assert desk.counts.failures == {"recorder": 2}, "which cost no answer"

    at(home, test)


def test_a_back_end_that_dies_in_mid_answer_is_counted_and_what_was_said_stands(
    home: Routed,
) -> None:
    backend = ScriptedBackend(breaks=BackendError("died", "the back end ended"))
    backend.pieces = backend.pieces[:1]

    async def test(desk: Desk) -> None:
        async with answering(desk, backend, "groove/tides") as answer:
            assert await said(answer) == "Hello"
            assert answer.problem is not None
        assert desk.counts.failures["died"] == 1 and desk.counts.streams == 0

    at(home, test)


# ---- status --------------------------------------------------------------------------------------


def test_status_shows_each_cause_how_often_and_what_to_do(home: Routed) -> None:
    async def test(desk: Desk) -> None:
        shutil.rmtree(home.app.home / "router")
        (home.app.home / "router").mkdir()
        (home.app.home / "router" / "current").write_text("nonsense")
        for number in range(3):
            await desk.chooser.auto(f"tides ask {number}", None)
        desk.counts.requests["chat", 200] += 3
        desk.counts.answered["chassis"] += 3
        desk.counts.failures["upstream_down"] += 1
        api = {"url": "http://127.0.0.1:4022", "counts": desk.counts.facts()}
        backend = {"kind": "builtin", "ready": True}
        lines = show_api.facts(show_api.standing({"api": {**api, "backend": backend}}))
        assert lines == [
            ("answers at", "http://127.0.0.1:4022, builtin back end ready; 3 asked, 3 answered"),
            ("fell back", "routed with less or not at all: no table 3"),
            ("failed", "no answer, or not all of it: upstream down 1"),
            ("do", "`groove-node round` builds a new routing table"),
            ("do", "see to the server that [api] upstream names"),
        ]

    at(home, test)


def test_status_says_that_there_is_no_endpoint_and_why() -> None:
    api = {"url": "", "trouble": "127.0.0.1:4022 is taken", "backend": {}, "counts": {}}
    assert show_api.facts(show_api.standing({"api": api})) == [
        ("answers at", "nowhere: 127.0.0.1:4022 is taken")
    ]
    assert show_api.facts(show_api.standing(None)) == []
    assert show_api.facts(show_api.standing({"api": {}})) == []


def test_an_ordinary_way_to_the_chassis_is_no_trouble() -> None:
    counts = {"fallbacks": {"gate": 5, "starter": 2}, "requests": {"chat 200": 7, "live 200": 90}}
    api = {"url": "http://127.0.0.1:1", "backend": {"kind": "vllm"}, "counts": counts}
    lines = show_api.facts(show_api.standing({"api": api}))
    assert lines == [
        ("answers at", "http://127.0.0.1:1, vllm back end not asked yet; 7 asked, 0 answered")
    ]
