"""vLLM's plugin: `groove/LEAF` from this node or the mesh. vLLM itself was not run."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import tiny_llama
from support_adapters import ORIGIN, foreign_leaf, home_of, own_leaf

from leaves.model import Leaf
from node import overview, vllm_resolver
from node.api.backends.laid_out import LaidOut
from node.app import App
from node.foreign import Known, State
from node.mailbox import Fetch


class LoRARequest(msgspec.Struct, omit_defaults=True, array_like=True):
    """`vllm.lora.request.LoRARequest`, its checks included."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


class LoRAResolver(ABC):
    """`vllm.lora.resolver.LoRAResolver`."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


@dataclass
class Registry:
    """`vllm.lora.resolver.LoRAResolverRegistry`."""

    resolvers: dict[str, LoRAResolver]

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        if resolver_name not in self.resolvers:
            raise KeyError(f"{resolver_name} not found")
        return self.resolvers[resolver_name]


@dataclass
class Bench:
    app: App
    registry: Registry
    own: Leaf

    def ask(self, name: str, base: str | None = None) -> LoRARequest | None:
        served = base or str(self.app.chassis.path)
        resolver = self.registry.get_resolver("groove")
        return asyncio.run(resolver.resolve_lora(served, name))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    registry = Registry({})
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm.lora.resolver"] = ModuleType("vllm.lora.resolver")
    vars(modules["vllm.lora.request"])["LoRARequest"] = LoRARequest
    vars(modules["vllm.lora.resolver"]).update(
        LoRAResolver=LoRAResolver, LoRAResolverRegistry=registry
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = home_of(tmp_path, tiny_llama.build(tmp_path / "chassis"))
    app.identity  # noqa: B018 - makes the keys, so that it is a home
    own = own_leaf(app, 1, "async-python")
    vllm_resolver.register()
    yield Bench(app, registry, own)


def test_registering_twice_leaves_one_resolver(bench: Bench) -> None:
    before = bench.registry.get_resolver("groove")
    vllm_resolver.register()
    assert bench.registry.get_resolver("groove") is before


@pytest.mark.parametrize("by", ["name", "id", "digest"])
def test_an_own_leaf_is_laid_out_for_vllm(bench: Bench, by: str) -> None:
    assert bench.own.adapter is not None
    digest = bench.own.adapter.bundle[:32]
    word = {"name": "async-python", "id": bench.own.id, "digest": f"{bench.own.id}@{digest}"}[by]
    found = bench.ask(f"groove/{word}")
    assert found is not None
    assert found.lora_name == f"groove/{word}"
    assert (Path(found.lora_path) / "adapter_model.safetensors").is_file()


def test_an_adapter_laid_out_goes_with_its_bundle(bench: Bench) -> None:
    found = bench.ask("groove/async-python")
    assert found is not None and bench.own.adapter is not None
    laid_out = LaidOut(bench.app)
    laid_out.sweep()
    assert Path(found.lora_path).is_dir()
    bench.app.bundles.delete(bench.own.adapter.bundle)
    laid_out.sweep()
    assert not Path(found.lora_path).exists()


@pytest.mark.parametrize(
    "name",
    [
        "another/model",
        "groove/",
        "groove/nobody",
        "groove/../../etc/passwd",
        "groove/async-python@" + "0" * 32,
        "groove/" + "x" * 10_000,
    ],
)
def test_what_is_not_here_is_no_model(bench: Bench, name: str) -> None:
    assert bench.ask(name) is None


def test_another_chassis_gets_no_adapter(bench: Bench, tmp_path: Path) -> None:
    other = tiny_llama.build(tmp_path / "other", seed=7)
    assert bench.ask("groove/async-python", str(other)) is None
    assert bench.ask("groove/async-python", "some/model-of-a-hub") is None


def test_the_owner_may_say_what_vllm_calls_the_chassis(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_VLLM_BASE", "some/model-of-a-hub")
    assert bench.ask("groove/async-python", "some/model-of-a-hub") is not None


def test_an_accepted_foreign_leaf_is_served_and_a_refused_one_is_not(bench: Bench) -> None:
    foreign_leaf(bench.app, 2, "k8s", State.ACCEPTED)
    assert bench.ask("groove/k8s") is not None
    foreign_leaf(bench.app, 3, "bad", State.REFUSED)
    assert bench.ask("groove/bad") is None


def test_a_leaf_that_is_not_here_is_fetched_by_the_running_node(bench: Bench) -> None:
    app = bench.app
    app.consent.record_consent(app.user_id, True, _version(), scopes=_fetching())
    heard = foreign_leaf(app, 4, "from-afar", State.HEARD)
    ended = threading.Event()
    node = threading.Thread(target=_carries_out, args=(app.home, heard, ended))
    node.start()
    try:
        with app.lock("run"):
            said = {"pid": os.getpid(), "addresses": [], "peers": []}
            (app.home / overview.RUN_FILE).write_bytes(msgspec.json.encode(said))
            found = bench.ask("groove/from-afar")
    finally:
        ended.set()
        node.join()
    assert found is not None
    assert (Path(found.lora_path) / "adapter_config.json").is_file()


def _version() -> str:
    from node.consent import CURRENT_CONSENT_VERSION

    return CURRENT_CONSENT_VERSION


def _fetching() -> tuple[Any, ...]:
    from node.consent import Scope

    return (Scope.CAPTURE, Scope.FETCH)


def _carries_out(home: Path, heard: Known, ended: threading.Event) -> None:
    """What the running node does with the order, its verdict foregone."""
    from support_adapters import bundled

    app = App(home)
    while not ended.wait(0.05):
        for letter in app.mailbox.waiting():
            assert letter.order == Fetch(ORIGIN, heard.leaf.leaf)
            app.bundles.put(bundled(app.chassis, 4))
            app.foreign.settle(heard, State.ACCEPTED, {}, heard.name)
            app.mailbox.answer(letter.id, {"state": "accepted"}, 0.0)
            return
