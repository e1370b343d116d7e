"""A plugin for vLLM: asked for the model `groove/LEAF`, it gets it from this node or the mesh.

vLLM loads it by the entry point `groove` of the group `vllm.general_plugins`, and asks it for each
model that it does not know. A leaf that is not here is fetched by the running node, which checks
and judges it as it does all others: what it does not accept is not served.

    groove/LEAF          the version that is in force now, under a name that vLLM keeps: a later
                         version is seen after vLLM was restarted or has unloaded the name
    groove/LEAF@DIGEST   this very bundle, by the first 32 digits of its address

Nothing of vLLM is imported before vLLM asks for it, and nothing here raises into it: what cannot
be had is a model that does not exist.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.model import Leaf

from . import leaf_export, orders, overview
from .errors import OwnerError
from .foreign import State
from .leaf_export import DIGEST_CHARS, Exportable

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

NAME, PREFIX = "groove", "groove/"
BASE_VARIABLE = "GROOVE_VLLM_BASE"  # what vLLM calls the chassis, if that is no folder
NAME_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Resolved:
    """An adapter that vLLM can read."""

    name: str
    folder: Path
    number: int  # vLLM gives it another


def register() -> None:
    """Called by vLLM once in each of its processes."""
    registry = import_module("vllm.lora.resolver").LoRAResolverRegistry

    if NAME not in registry.get_supported_resolvers():
        registry.register_resolver(NAME, resolver())


def resolver() -> Any:
    """A `LoRAResolver` over the home that GROOVE_HOME names."""
    base: Any = import_module("vllm.lora.resolver").LoRAResolver
    request: Any = import_module("vllm.lora.request").LoRARequest

    class GrooveResolver(base):  # type: ignore[misc]
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            if not lora_name.startswith(PREFIX) or len(lora_name) > NAME_CHARS_MAX:
                return None
            found = await asyncio.to_thread(resolve, base_model_name, lora_name)
            if found is None:
                return None
            return request(
                lora_name=found.name, lora_int_id=found.number, lora_path=str(found.folder)
            )

    return GrooveResolver()


def resolve(base_model_name: str, lora_name: str) -> Resolved | None:
    """Find, fetch, check and lay out; None if it cannot be had, and the log says why.

    Takes up to ten minutes if the mesh must be asked: vLLM lets the other requests go on.
    """
    from .app import App

    try:
        return _resolved(App.open(), base_model_name, lora_name)
    except OwnerError as problem:
        log.warning("leaf not resolved name=%r reason=%s", lora_name, problem)
    except OSError as problem:
        log.warning("leaf not resolved name=%r reason=%s", lora_name, problem.strerror)
    return None


def _resolved(app: App, base_model_name: str, lora_name: str) -> Resolved | None:
    from .api.backends.laid_out import LaidOut

    if not serves_chassis(app, base_model_name):
        log.warning(
            "leaf not resolved name=%r reason=vLLM serves %r, which is not known to be this node's "
            "chassis: serve its folder, or name it in %s",
            *(lora_name, base_model_name, BASE_VARIABLE),
        )
        return None
    name, _, digest = lora_name.removeprefix(PREFIX).partition("@")
    leaf = _leaf(app, name)
    if digest and leaf.bundle[:DIGEST_CHARS] != digest:
        log.warning("leaf not resolved name=%r reason=its bundle is another by now", lora_name)
        return None
    folder = LaidOut(app).folder(leaf.bundle)
    return Resolved(lora_name, folder, 1 + int(leaf.bundle[:7], 16))


def _leaf(app: App, name: str) -> Exportable:
    """The leaf of this name, fetched and judged if it was not. Raises OwnerError."""
    found = overview.any_leaf(app, name)
    if not isinstance(found, Leaf) and found.state is State.HEARD:
        orders.fetch(app, found.leaf.leaf)
    return leaf_export.exportable(app, name)


def serves_chassis(app: App, base_model_name: str) -> bool:
    """Whether vLLM's model is this node's chassis: by its content, or by the owner's word."""
    from leaves.training.chassis import ChassisError, open_chassis

    if base_model_name == os.environ.get(BASE_VARIABLE):
        return True
    folder = Path(base_model_name)
    if not folder.is_dir():
        return False
    try:
        return open_chassis(folder).sha256 == app.chassis.sha256
    except ChassisError:
        return False
