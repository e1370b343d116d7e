"""Any other causal LM, through transformers and PEFT, one text after the other in each step.

Adapters are put on from files that were checked, under a configuration that is made here. Which one
is worn is a state of the whole model, so a text is computed under its own before the next one's.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bundle import AdapterFile
from ..training.chassis import Chassis
from ..training.hf import HuggingFace
from .stepping import Segment

_PREFIX = "base_model.model."
_UNKNOWN = ""  # which adapter is active: the library decides when one comes or goes


@dataclass(slots=True)
class _Memory:
    cache: Any = None


class HuggingFaceStepper:
    """Not safe for two threads at once."""

    rewinds = False  # not all caches of the library can

    def __init__(self, chassis: Chassis, dtype: torch.dtype) -> None:
        self._loaded = HuggingFace(chassis, dtype)
        self._bare: Any = self._loaded.bare
        self._model: Any = self._bare
        self._numbers = itertools.count()
        self._worn: str | None = None
        config = self._bare.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None)
        size = size or config.hidden_size // config.num_attention_heads
        self._token_bytes: int = 2 * config.num_hidden_layers * heads * size * dtype.itemsize

    def memory(self, tokens_max: int) -> _Memory:
        return _Memory()

    def rewind(self, memory: _Memory, tokens: int, tokens_max: int) -> None:
        raise NotImplementedError

    def memory_bytes(self, tokens: int) -> int:
        return tokens * self._token_bytes

    def put_on(self, adapter: AdapterFile) -> str:
        from peft import LoraConfig, PeftModel, get_peft_model

        name = f"leaf{next(self._numbers)}"
        modules = sorted(
            each[len(_PREFIX) : -len(".lora_A.weight")]
            for each in adapter.tensors
            if each.endswith(".lora_A.weight")
        )
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=modules,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name on its way out
            if isinstance(self._model, PeftModel):
                self._model.add_adapter(name, config)
            else:
                self._model = get_peft_model(self._bare, config, adapter_name=name)
        found = dict(self._bare.named_modules())
        for module in modules:
            for kind in ("lora_A", "lora_B"):
                weight = getattr(found[module], kind)[name].weight
                weight.data.copy_(torch.tensor(adapter.tensors[f"{_PREFIX}{module}.{kind}.weight"]))
        self._model.eval()
        self._worn = _UNKNOWN
        return name

    def take_off(self, worn: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that another one is active now
            self._model.base_model.delete_adapter(worn)
        self._worn = _UNKNOWN

    def digest(self) -> bytes:
        return self._loaded.digest()

    def step(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        said: list[Tensor | None] = [None] * len(segments)
        for at in sorted(range(len(segments)), key=lambda each: segments[each].worn or ""):
            said[at] = self._computed(segments[at])
        return said

    def _wear(self, name: str | None) -> None:
        if name == self._worn:
            return
        layers = self._model.base_model
        if name is None:
            layers.disable_adapter_layers()
        else:
            layers.enable_adapter_layers()
            layers.set_adapter(name, inference_mode=True)
        self._worn = name

    def _computed(self, segment: Segment) -> Tensor | None:
        self._wear(segment.worn)
        memory: _Memory = segment.memory
        out = self._bare(
            input_ids=torch.tensor([list(segment.tokens)]),
            past_key_values=memory.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        memory.cache = out.past_key_values
        return out.logits[0, -1].float() if segment.speaks else None
