"""vLLM as a back end, played by a server written from its documentation: it was not run here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny_llama
import trio
from fake_vllm import BASE, FakeVllm
from support_adapters import bundled, home_of
from support_api import served

from leaves.model import LeafId
from node.api.backends import open_backend, probe
from node.api.backends.probe import Verdict
from node.api.backends.vllm import Vllm, model_name
from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, Ask, BackendError, Piece
from node.app import App

HELLO = ({"role": "user", "content": "hello"},)


@dataclass
class Bench:
    """One home, one server, one back end."""

    app: App
    server: FakeVllm = field(default_factory=FakeVllm)
    resident: int = 20

    def adapter(self, seed: int) -> Adapter:
        address = self.app.bundles.put(bundled(self.app.chassis, seed))
        return Adapter(LeafId(f"{seed:032x}"), f"leaf-{seed}", address)

    def config(self, url: str) -> ApiConfig:
        return ApiConfig(backend="vllm", backend_url=url, adapters_resident=self.resident)

    def run(self, work: Callable[[Vllm], Awaitable[None]]) -> None:
        async def main(url: str) -> None:
            backend = open_backend(self.app, self.config(url))
            assert isinstance(backend, Vllm)
            problem = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend.run)
                try:
                    with trio.fail_after(20):
                        await work(backend)
                except Exception as raised:  # bare, and not in the nursery's group
                    problem = raised
                nursery.cancel_scope.cancel()
            if problem is not None:
                raise problem

        with served(self.server.app()) as here:
            trio.run(main, here.url)

    def folders(self) -> list[Path]:
        return sorted((self.app.home / "exports").iterdir())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROOVE_CACHE", str(folder / "cache"))
        yield home_of(folder, tiny_llama.build(folder / "chassis"))


@pytest.fixture
def bench(home: App) -> Bench:
    return Bench(home)


async def said(backend: Vllm, ask: Ask) -> list[Piece]:
    async with backend.answer(ask) as pieces:
        return [piece async for piece in pieces]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_the_chassis_is_asked_by_the_name_that_the_server_gives_it(bench: Bench) -> None:
    async def work(backend: Vllm) -> None:
        pieces = await said(backend, Ask(messages=HELLO))
        assert text_of(pieces) == f"I am {BASE}"
        assert pieces[-1].finish == "stop"
        assert pieces[-1].usage is not None and pieces[-1].usage.prompt_tokens == 7

    bench.run(work)


def test_an_adapter_is_loaded_once_under_a_name_with_its_digest(bench: Bench) -> None:
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        for _ in range(2):
            assert text_of(await said(backend, Ask(messages=HELLO, adapter=leaf))).endswith(
                f"@{leaf.bundle[:32]}"
            )

    bench.run(work)
    assert bench.server.log == [f"load {model_name(leaf)}"]
    assert (Path(bench.server.loaded[model_name(leaf)]).stat().st_mode & 0o777) == 0o700


def test_asks_at_the_same_time_load_an_adapter_once(bench: Bench) -> None:
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(said, backend, Ask(messages=HELLO, adapter=leaf))

    bench.run(work)
    assert bench.server.log == [f"load {model_name(leaf)}"]


def test_the_adapter_used_longest_ago_makes_room(bench: Bench) -> None:
    bench.resident = 2
    first, second, third = (bench.adapter(seed) for seed in (1, 2, 3))

    async def work(backend: Vllm) -> None:
        for leaf in (first, second, first, third):
            await said(backend, Ask(messages=HELLO, adapter=leaf))

    bench.run(work)
    assert bench.server.log[-1] == f"unload {model_name(second)}"
    assert set(bench.server.loaded) == {model_name(first), model_name(third)}
    assert second.bundle[:32] not in {folder.name for folder in bench.folders()}


def test_a_restarted_server_is_given_the_adapter_again(bench: Bench) -> None:
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        await said(backend, Ask(messages=HELLO, adapter=leaf))
        bench.server.loaded.clear()
        await said(backend, Ask(messages=HELLO, adapter=leaf))

    bench.run(work)
    assert bench.server.log == [f"load {model_name(leaf)}"] * 2


def test_an_adapter_whose_bundle_is_gone_is_let_go_and_its_folder_removed(bench: Bench) -> None:
    leaf = bench.adapter(8)

    async def load(backend: Vllm) -> None:
        await said(backend, Ask(messages=HELLO, adapter=leaf))

    async def wait(backend: Vllm) -> None:
        while bench.server.loaded:
            await trio.sleep(0.01)

    bench.run(load)
    bench.app.bundles.delete(leaf.bundle)
    bench.run(wait)
    assert leaf.bundle[:32] not in {folder.name for folder in bench.folders()}


def test_without_runtime_loading_the_chassis_still_answers_and_it_is_said(bench: Bench) -> None:
    bench.server.runtime = False
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        look = await backend.look()
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in str(look["why"])
        assert not backend.capabilities.adapters
        with pytest.raises(AdapterError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await said(backend, Ask(messages=HELLO, adapter=leaf))
        assert text_of(await said(backend, Ask(messages=HELLO))) == f"I am {BASE}"

    bench.run(work)


def test_an_adapter_of_too_high_a_rank_says_which_option_helps(bench: Bench) -> None:
    bench.server.rank_max = 4
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        with pytest.raises(AdapterError, match="--max-lora-rank"):
            await said(backend, Ask(messages=HELLO, adapter=leaf))

    bench.run(work)


def test_a_damaged_bundle_is_an_adapter_error(bench: Bench) -> None:
    leaf = bench.adapter(4)
    path = bench.app.bundles.path(leaf.bundle)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(b"groove")

    async def work(backend: Vllm) -> None:
        with pytest.raises(AdapterError):
            await said(backend, Ask(messages=HELLO, adapter=leaf))

    bench.run(work)
    assert bench.server.log == []


def test_whoever_leaves_ends_the_servers_work(bench: Bench) -> None:
    bench.server.pause_s = 0.05
    bench.server.speak = lambda folder, body: ["word "] * 400

    async def work(backend: Vllm) -> None:
        async with backend.answer(Ask(messages=HELLO)) as pieces:
            await anext(pieces)
        while not bench.server.ended_early:
            await trio.sleep(0.01)

    bench.run(work)


def test_tools_pass_and_the_stop_string_is_named(bench: Bench) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]

    async def work(backend: Vllm) -> None:
        extra = {"tools": tools, "model": "another", "stream": False}
        pieces = await said(backend, Ask(messages=HELLO, stop=("END",), extra=extra))
        assert pieces[-1].delta == {"stop_sequence": "END"}

    bench.run(work)
    [asked] = bench.server.asked
    assert asked["tools"] == tools
    assert (asked["model"], asked["stream"]) == (BASE, True)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        ("right", Verdict.PASSED),
        ("left out", Verdict.BASE_ONLY),
        ("mixed up", Verdict.WRONG_FUNCTION),
        ("another", Verdict.WRONG_FUNCTION),
        ("always on", Verdict.WRONG_FUNCTION),
    ],
)
def test_the_probe_tells_what_a_server_does_with_adapters(
    bench: Bench, effect: str, verdict: Verdict
) -> None:
    planted = probe.prepared(bench.app)
    words = {"right": planted.word, "mixed up": planted.mixed, "another": "other"}

    def speak(folder: str | None, body: object) -> list[str]:
        if effect == "always on":
            return [planted.word]
        return ["bare"] if folder is None else [words.get(effect, "bare")]

    bench.server.speak = speak
    with served(bench.server.app()) as here:
        found = probe.examine(bench.app, bench.config(here.url))
    assert found.verdict is verdict
    assert bench.app.bundles.path(planted.adapter.bundle) is None


def test_the_probe_names_a_server_that_takes_no_adapters(bench: Bench) -> None:
    bench.server.runtime = False
    with served(bench.server.app()) as here:
        found = probe.examine(bench.app, bench.config(here.url))
    assert found.verdict is Verdict.NOT_LOADED
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in found.advice


def test_no_path_of_this_machine_is_in_an_error(bench: Bench) -> None:
    bench.server.rank_max = 4
    leaf = bench.adapter(1)

    async def work(backend: Vllm) -> None:
        with pytest.raises(BackendError) as caught:
            await said(backend, Ask(messages=HELLO, adapter=leaf))
        assert str(bench.app.home) not in str(caught.value)

    bench.run(work)
