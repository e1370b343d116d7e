"""llama.cpp's own server as a back end, run for real on a tiny Llama."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import tiny_llama
import trio
from support_adapters import bundled, home_of
from support_llamacpp import MISSING, gguf_of, llama_server

from leaves.model import LeafId
from leaves.planted import PROMPT
from node import leaf_export
from node.api.backends import open_backend, probe
from node.api.backends.llamacpp import LlamaCpp
from node.api.backends.probe import Verdict
from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, Ask, BackendError, Piece
from node.app import App

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@dataclass
class Bench:
    app: App
    url: str
    leaf: Adapter
    other: Adapter

    @property
    def config(self) -> ApiConfig:
        return ApiConfig(backend="llamacpp", backend_url=self.url, upstream_within_s=20)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("llamacpp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROOVE_CACHE", str(folder / "cache"))
        app = home_of(folder, tiny_llama.build(folder / "chassis"))
        leaf, other = (_adapter(app, seed) for seed in (1, 2))
        planted = probe.prepared(app)
        app.bundles.put(planted.bundle)
        files = [_exported(app, each, folder / "gguf") for each in (other, leaf, planted.adapter)]
        with llama_server(gguf_of(folder / "chassis", folder / "base.gguf"), files) as url:
            yield Bench(app, url, leaf, other)


def _adapter(app: App, seed: int) -> Adapter:
    address = app.bundles.put(bundled(app.chassis, seed))
    return Adapter(LeafId(f"{seed:032x}"), f"leaf-{seed}", address)


def _exported(app: App, adapter: Adapter, folder: Path) -> Path:
    leaf = leaf_export.Exportable(adapter.leaf, adapter.name, adapter.bundle, "")
    path = folder / leaf_export.file_name(adapter.name, adapter.bundle)
    leaf_export.export_gguf(app, leaf, path)
    return path


def asked(bench: Bench, *asks: Ask, config: ApiConfig | None = None) -> list[list[Piece]]:
    async def main() -> list[list[Piece]]:
        backend = open_backend(bench.app, config or bench.config)
        assert isinstance(backend, LlamaCpp)
        answers = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run)
            for ask in asks:
                async with backend.answer(ask) as pieces:
                    answers.append([piece async for piece in pieces])
            nursery.cancel_scope.cancel()
        return answers

    return trio.run(main)


def test_the_planted_adapter_is_put_on_and_taken_off(bench: Bench) -> None:
    found = probe.examine(bench.app, bench.config)
    assert found.verdict is Verdict.PASSED, found


def test_an_answer_has_usage_and_an_end(bench: Bench) -> None:
    [pieces] = asked(bench, Ask(messages=({"role": "user", "content": "hi"},), tokens_max=4))
    assert pieces[-1].finish == "length"
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 4
    assert all(piece.finish is None for piece in pieces[:-1])


def test_answers_follow_each_other(bench: Bench) -> None:
    # The server closes a connection after a stream, and does not say so.
    asks = [Ask(prompt="hi", adapter=each, tokens_max=8) for each in (None, bench.leaf) * 10]
    assert all(pieces[-1].finish for pieces in asked(bench, *asks))


def test_a_leaf_that_the_server_was_started_without_is_an_adapter_error(bench: Bench) -> None:
    unknown = _adapter(bench.app, 9)
    with pytest.RaisesGroup(pytest.RaisesExc(AdapterError, match="leaf export --gguf --all")):
        asked(bench, Ask(prompt="hi", adapter=unknown))


def test_a_prompt_that_is_too_long_is_the_clients_fault(bench: Bench) -> None:
    with pytest.RaisesGroup(BackendError) as caught:
        asked(bench, Ask(prompt="hi " * 4000))
    [problem] = caught.value.exceptions
    assert isinstance(problem, BackendError)
    assert (problem.kind, problem.status) == ("too_long", 400)


def test_a_stop_string_is_no_part_of_the_answer(bench: Bench) -> None:
    [whole] = asked(bench, Ask(prompt="stop here", tokens_max=30, temperature=0, seed=1))
    text = "".join(piece.text for piece in whole)
    stop = text[5:7]
    ask = Ask(prompt="stop here", tokens_max=30, temperature=0, seed=1, stop=(stop,))
    [cut] = asked(bench, ask)
    assert "".join(piece.text for piece in cut) == text[: text.index(stop)]
    assert cut[-1].finish == "stop"


def test_a_server_that_is_not_there_is_named(bench: Bench) -> None:
    gone = ApiConfig(backend="llamacpp", backend_url="http://127.0.0.1:9")
    found = probe.examine(bench.app, gone)
    assert found.verdict is Verdict.UNREACHABLE


def test_an_empty_list_of_adapters_puts_on_all_of_them(bench: Bench) -> None:
    # Why each request names every adapter: if this ever fails, the zeros may go.
    def words(lora: list[dict[str, float]]) -> str:
        body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "lora": lora}
        answer = httpx.post(f"{bench.url}/v1/completions", json=body, timeout=20).json()
        return str(answer["choices"][0]["text"])

    zeros: list[dict[str, float]] = [{"id": n, "scale": 0.0} for n in range(3)]
    assert words([]) != words(zeros)
