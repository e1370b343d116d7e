"""Whether a back end answers with the adapter that it is asked for: asked with one whose effect is
known.

A server that leaves an adapter out, puts on another, or reads its rows in another order answers as
fluently as ever. So it is given an adapter computed from the chassis (`leaves.planted`), after
which one word must follow one prompt; without it, it must not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
import trio

from leaves.bundle import BundleError, Label, Privacy, check_form, encode_label, pack
from leaves.model import LeafId
from leaves.planted import ALPHA, PROMPT, RANK, NoPlantError, plant
from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, Ask, Backend, BackendError
from node.bundles import address_of
from node.errors import OwnerError
from node.home import groove_cache, private_dir, write_atomic

from . import open_backend

if TYPE_CHECKING:
    from node.app import App

WITHIN_S = 120.0  # the built-in back end loads its chassis first
NAME = "groove-probe"


class Verdict(StrEnum):
    PASSED = "passed"
    BASE_ONLY = "base only"  # the adapter has no effect
    WRONG_FUNCTION = "wrong function"  # it has another than it should, or one when it should not
    NOT_LOADED = "not loaded"
    UNREACHABLE = "unreachable"
    NOT_PROBED = "not probed"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a probe. advice: empty if nothing is to be done."""

    verdict: Verdict
    text: str
    advice: str = ""

    @property
    def sound(self) -> bool:
        return self.verdict is Verdict.PASSED


class Probe(msgspec.Struct, frozen=True):
    """The planted adapter as a bundle, and what it must do."""

    bundle: bytes
    word: str
    mixed: str

    @property
    def adapter(self) -> Adapter:
        address = address_of(self.bundle)
        return Adapter(LeafId(address[:32]), NAME, address)


def examine(app: App, config: ApiConfig, within_s: float = WITHIN_S) -> Found:
    """Open the back end that `config` names and probe it; for a process without a loop."""

    async def main() -> Found:
        text = f"{config.backend} did not answer within {within_s:.0f} s"
        found = Found(Verdict.UNREACHABLE, text, _REACH)
        backend = open_backend(app, config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run)
            await trio.lowlevel.checkpoint()  # it has begun to run
            with trio.move_on_after(within_s):
                found = await probed(app, backend)
            nursery.cancel_scope.cancel()
        return found

    return trio.run(main)


async def probed(app: App, backend: Backend) -> Found:
    """Probe a back end that runs. Never raises for what is wrong with it."""
    look = await backend.look()
    if not look["ready"]:
        return Found(Verdict.UNREACHABLE, f"{backend.name}: {look['why']}", _REACH)
    if not backend.capabilities.raw_prompts:
        return Found(Verdict.NOT_PROBED, f"{backend.name} takes no raw prompts")
    try:
        probe = await app.adapters.in_thread(lambda: prepared(app))
    except NoPlantError as problem:
        return Found(Verdict.NOT_PROBED, f"no effect is known beforehand: {problem}")
    except OwnerError as problem:
        return Found(Verdict.NOT_PROBED, problem.what, problem.next_step)
    with at_hand(app, probe):
        return await _asked(backend, probe)


async def _asked(backend: Backend, probe: Probe) -> Found:
    try:
        bare = await _word(backend, None)
    except BackendError as problem:
        return Found(Verdict.UNREACHABLE, f"{backend.name}: {problem}", _REACH)
    try:
        told = await _word(backend, probe.adapter)
    except AdapterError as problem:
        return Found(Verdict.NOT_LOADED, f"{backend.name}: {problem}", _advice(backend))
    except BackendError as problem:
        return Found(Verdict.UNREACHABLE, f"{backend.name}: {problem}", _REACH)
    return _judged(backend, probe, bare, told)


def _judged(backend: Backend, probe: Probe, bare: str, told: str) -> Found:
    if bare in (probe.word, probe.mixed):
        text = f"{backend.name} answers with an adapter that nobody asked for"
        return Found(Verdict.WRONG_FUNCTION, text, _advice(backend))
    if told == probe.word:
        text = f"{backend.name} puts on the adapter that it is asked for, and takes it off"
        return Found(Verdict.PASSED, text)
    if told == bare:
        text = f"{backend.name} answers as if no adapter had been asked for"
        return Found(Verdict.BASE_ONLY, text, _advice(backend))
    if told == probe.mixed:
        text = f"{backend.name} reads the rows of queries and keys in another order"
        return Found(Verdict.WRONG_FUNCTION, text, _CHASSIS)
    text = f"{backend.name} answers with an adapter, but not as it must"
    return Found(Verdict.WRONG_FUNCTION, text, _CHASSIS)


async def _word(backend: Backend, adapter: Adapter | None) -> str:
    """The likeliest next token of the prompt."""
    ask = Ask(prompt=PROMPT, adapter=adapter, tokens_max=1, temperature=0.0, seed=0)
    text = ""
    async with backend.answer(ask) as pieces:
        async for piece in pieces:
            text += piece.text
    return text.strip()


_REACH = "Start the server, or correct backend_url under [api] in groove.toml."
_CHASSIS = "Have the server load the very chassis of this node: `groove-node doctor` names it."


def _advice(backend: Backend) -> str:
    match backend.name:
        case "llamacpp":
            return "Start it as `groove-node leaf export --gguf --all` says: the probe is with it."
        case "vllm":
            return "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        case _:
            return "Report it, with the version of torch: `groove-node doctor --json`."


def prepared(app: App) -> Probe:
    """The planted adapter of this node's chassis, computed once and kept in the cache.

    Kept, because sums differ in their last digit between machines, and llama.cpp's server knows an
    adapter by its digest. Raises NoPlantError or an OwnerError.
    """
    chassis = app.chassis
    path = groove_cache() / "probes" / f"{chassis.sha256[:32]}.probe"
    try:
        probe = msgspec.msgpack.decode(path.read_bytes(), type=Probe)
        check_form(probe.bundle, chassis)
        return probe
    except (OSError, msgspec.DecodeError, BundleError):
        pass  # there is none, or it is none: one is computed
    planted = plant(chassis)
    label = Label(
        leaf=hashlib.sha256(b"groove/probe/1" + chassis.tag8).hexdigest()[:32],
        name=NAME,
        chassis=chassis.tag8.hex(),
        adapter=hashlib.sha256(planted.file).hexdigest(),
        rank=RANK,
        alpha=ALPHA,
        targets=planted.targets,
        method="planted",
        dtype="float32",
        tokens=0,
        evaluation=None,
        control_root="",
        control_bytes=0,
        privacy=Privacy(contributors=0, sessions=0, canary_exposure=None, scrub_rules=""),
        lineage=(),
        licence="CC0-1.0",
        terms="computed from the chassis; holds nobody's words",
    )
    probe = Probe(pack(encode_label(label), planted.file), planted.word, planted.mixed)
    private_dir(path.parent)
    write_atomic(path, msgspec.msgpack.encode(probe))
    return probe


@contextmanager
def at_hand(app: App, probe: Probe) -> Iterator[None]:
    """Where back ends look for bundles, for as long as it takes."""
    address = app.bundles.put(probe.bundle)
    try:
        yield
    finally:
        app.bundles.delete(address)
