"""The built-in back end through its port: a real child, a tiny chassis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from support_serving import blob, chassis

from leaves.model import LeafId
from node.api.backends import builtin
from node.api.backends.builtin import BuiltIn
from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, Ask, BackendError, Piece
from node.app import App

CHAT = ({"role": "system", "content": "short"}, {"role": "user", "content": "a stone"})
LONG = Ask(prompt="the river", tokens_max=1500, temperature=0)
SHORT = Ask(prompt="the river", tokens_max=40, temperature=0)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    home = tmp_path_factory.mktemp("home")
    (home / "groove.toml").write_text(f'[training]\nchassis = "{chassis().path}"\nthreads = 1\n')
    return App(home)


@asynccontextmanager
async def running(app: App, **config: Any) -> AsyncIterator[BuiltIn]:
    backend = BuiltIn(app, ApiConfig(**config))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run)
        await trio.testing.wait_all_tasks_blocked()
        yield backend
        nursery.cancel_scope.cancel()


async def pieces(backend: BuiltIn, ask: Ask) -> list[Piece]:
    async with backend.answer(ask) as answer:
        return [piece async for piece in answer]


async def text(backend: BuiltIn, ask: Ask) -> str:
    return "".join(piece.text for piece in await pieces(backend, ask))


def adapter(app: App, seed: int) -> Adapter:
    return Adapter(LeafId("ab" * 16), f"leaf {seed}", app.bundles.put(blob(seed)))


def process_of(backend: BuiltIn) -> psutil.Process:
    assert backend._child is not None
    assert backend._child.process is not None
    return psutil.Process(backend._child.process.pid)


async def gone(process: psutil.Process) -> None:
    await trio.to_thread.run_sync(lambda: process.wait(60))


async def test_an_answer_comes_in_pieces_and_ends_as_it_was_asked_to(app: App) -> None:
    async with running(app) as backend:
        assert (await backend.look())["running"] is False
        made = await pieces(backend, Ask(messages=CHAT, tokens_max=20, temperature=1.5, seed=4))
        assert len(made) == 20
        assert [piece.finish for piece in made] == [None] * 19 + ["length"]
        assert all(piece.usage is None for piece in made[:-1])
        usage = made[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 20
        whole = "".join(piece.text for piece in made)
        assert whole == await text(
            backend, Ask(messages=CHAT, tokens_max=20, temperature=1.5, seed=4)
        )

        stop = whole[7:9]
        ended = await pieces(
            backend, Ask(messages=CHAT, tokens_max=20, temperature=1.5, seed=4, stop=(stop,))
        )
        assert "".join(piece.text for piece in ended) == whole[: whole.index(stop)]
        assert ended[-1].finish == "stop"
        assert ended[-1].delta == {"stop_sequence": stop}

        with pytest.raises(BackendError, match=r"2048 tokens.*the prompt has") as long:
            await text(backend, Ask(prompt="a " * 3000))
        assert (long.value.kind, long.value.status) == ("too_long", 400)
        with pytest.raises(BackendError, match="far more"):
            await text(backend, Ask(prompt="a " * 1_000_000))
        with pytest.raises(BackendError, match="no Unicode"):
            await text(backend, Ask(prompt="\ud800"))
        odd = ({"role": "user", "content": "a", "name": 2**99},)
        with pytest.raises(BackendError) as lost:
            await text(backend, Ask(prompt="a", temperature="warm"))  # type: ignore[arg-type]
        assert lost.value.kind == "child_died", "an order of another form is never waited for"
        assert await text(
            backend, Ask(messages=odd, tokens_max=2**99, stop=("a",), seed=2**99, temperature=1)
        )

        stands = await backend.look()
        assert (stands["ready"], stands["running"], stands["deaths"]) == (True, True, 1)
        assert stands["memory_bytes"] > 0


async def test_a_leaf_that_cannot_be_put_on_hurts_nobody_else(app: App) -> None:
    whole, damaged, foreign = adapter(app, 1), adapter(app, 2), blob(3, chassis_seed=9)
    path = app.bundles.path(damaged.bundle)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    other = Adapter(LeafId("cd" * 16), "of another chassis", app.bundles.put(foreign))
    missing = Adapter(LeafId("ef" * 16), "gone", "12" * 32)
    async with running(app) as backend, backend.answer(LONG) as beside:
        assert (await anext(aiter(beside))).finish is None
        for bad, kind in (
            (damaged, "adapter_damaged"),
            (missing, "adapter_gone"),
            (other, "adapter_refused"),
            (Adapter(LeafId("aa" * 16), "no address", "../../etc"), "adapter_damaged"),
        ):
            with pytest.raises(AdapterError) as refused:
                await text(backend, Ask(prompt="a", adapter=bad))
            assert refused.value.kind == kind
            with pytest.raises(AdapterError):
                await backend.warm(bad)
        await backend.warm(whole)
        assert (await backend.look())["adapters"] == 1
        bare = Ask(prompt="a stone", tokens_max=20, temperature=1.5, seed=3)
        assert await text(backend, bare) != await text(backend, replace(bare, adapter=whole))
        assert (await anext(aiter(beside))).finish is None, "the first answer still goes on"
        assert (await backend.look())["deaths"] == 0


async def test_a_child_that_dies_is_started_again_and_counted(app: App) -> None:
    async with running(app) as backend:
        async with backend.answer(LONG) as answer:
            await anext(aiter(answer))
            process = process_of(backend)
            process.kill()
            with pytest.raises(BackendError) as died:
                async for _ in answer:
                    pass
        assert (died.value.kind, died.value.status) == ("child_died", 502)
        assert await text(backend, Ask(prompt="a", tokens_max=3))
        assert process_of(backend).pid != process.pid
        assert (await backend.look())["deaths"] == 1


async def test_places_are_bounded_and_whoever_leaves_makes_room(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "LINE_MAX", 1)
    async with running(app) as backend, trio.open_nursery() as nursery:
        first = trio.CancelScope()
        held = trio.Event()

        async def hold(scope: trio.CancelScope, begun: trio.Event) -> None:
            with scope:
                async with backend.answer(SHORT) as answer:
                    await anext(aiter(answer))
                    begun.set()
                    await trio.sleep_forever()

        nursery.start_soon(hold, first, held)
        await held.wait()
        for _ in range(builtin.AT_ONCE - 1):
            begun = trio.Event()
            nursery.start_soon(hold, trio.CancelScope(), begun)
            await begun.wait()
        answers: list[str] = []

        async def wait_in_line() -> None:
            answers.append(await text(backend, Ask(prompt="a", tokens_max=3)))
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_in_line)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await backend.look())["waiting"] == 1
        with pytest.raises(BackendError) as full:
            await text(backend, Ask(prompt="a"))
        assert (full.value.kind, full.value.status) == ("busy", 503)
        first.cancel()
    assert len(answers) == 1


async def test_an_idle_child_gives_its_memory_back_and_another_is_started(app: App) -> None:
    async with running(app, unload_after_s=1.0) as backend:
        ask = Ask(prompt="a stone", tokens_max=5, temperature=0)
        said = await text(backend, ask)
        process = process_of(backend)
        await gone(process)
        assert await text(backend, ask) == said
        assert (await backend.look())["deaths"] == 0
        last = process_of(backend)
    await gone(last)


async def test_a_chassis_that_is_not_there_is_a_refusal_and_not_an_end(tmp_path: Path) -> None:
    (tmp_path / "groove.toml").write_text('[training]\nchassis = "/nowhere"\n')
    async with running(App(tmp_path)) as backend:
        for _ in range(2):
            with pytest.raises(BackendError) as refused:
                await text(backend, Ask(prompt="a"))
            assert (refused.value.kind, refused.value.status) == ("cannot_start", 503)
            assert "/nowhere" not in str(refused.value)
        stands = await backend.look()
        assert stands["ready"] is False
        assert "/nowhere" in stands["why"]


async def test_a_back_end_that_does_not_run_says_so(app: App) -> None:
    with pytest.raises(BackendError, match="not running"):
        await text(BuiltIn(app, ApiConfig()), Ask(prompt="a"))


DOOMED = """
import sys, trio
from pathlib import Path
from node.api.backends.builtin import BuiltIn
from node.api.config import ApiConfig
from node.api.ports import Ask
from node.app import App

async def main():
    backend = BuiltIn(App(Path(sys.argv[1])), ApiConfig())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run)
        await trio.lowlevel.checkpoint()
        async with backend.answer(Ask(prompt="a")) as pieces:
            await anext(aiter(pieces))
            print(backend._child.process.pid, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def test_a_child_ends_with_a_node_that_is_killed(app: App) -> None:
    root = str(Path(__file__).parent.parent)
    node = subprocess.Popen(
        [sys.executable, "-c", DOOMED, str(app.home)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert node.stdout is not None
    with node, node.stdout:
        process = psutil.Process(int(node.stdout.readline()))
        node.kill()
        process.wait(60)


@pytest.mark.slow
async def test_the_packaged_chassis_knows_the_capital_of_france(tmp_path: Path) -> None:
    real = App(tmp_path)
    chat = ({"role": "user", "content": "What is the capital of France?"},)
    async with running(real) as backend:
        said = await pieces(backend, Ask(messages=chat, temperature=0, tokens_max=40))
        assert "Paris" in "".join(piece.text for piece in said)
        assert said[-1].finish == "stop"
        told = "".join(piece.text for piece in said)
        more = (*chat, {"role": "assistant", "content": told})
        asked = (*more, {"role": "user", "content": "And of Italy?"})
        assert "Rome" in await text(backend, Ask(messages=asked, temperature=0, tokens_max=40))


async def test_whoever_waits_when_the_back_end_ends_is_told(app: App) -> None:
    told: list[str] = []

    async def ask(backend: BuiltIn) -> None:
        try:
            await text(backend, Ask(prompt="a"))
        except BackendError as problem:
            told.append(problem.kind)

    async with trio.open_nursery() as nursery, running(app) as backend:
        nursery.start_soon(ask, backend)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert told == ["cannot_start"]


async def test_a_child_keeps_the_priority_of_its_node_and_ends_when_its_input_does(
    app: App,
) -> None:
    async with running(app) as backend:
        await text(backend, Ask(prompt="a", tokens_max=1))
        process = process_of(backend)
        assert process.nice() == psutil.Process().nice()
        assert str(Path(f"/proc/{process.pid}/fd/2").readlink()) == os.devnull
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        os.kill(process.pid, signal.SIGSTOP)
    await gone(process)
