"""Any other causal LM, through transformers and PEFT; in tests, what our own Llama is held to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .adapter import Adapters
from .chassis import Chassis
from .encode import Encoded


class HuggingFace:
    """A causal LM as transformers loads it, adapters as PEFT puts them on. Nothing is fetched."""

    def __init__(self, chassis: Chassis, dtype: torch.dtype) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()

        self._bare: Any = AutoModelForCausalLM.from_pretrained(
            chassis.path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        self._bare.requires_grad_(False).eval()
        self._model = self._bare

    def bind(self, adapters: Adapters | None) -> None:
        from peft import LoraConfig, get_peft_model

        if self._model is not self._bare:
            self._bare = self._model.unload()
            self._model = self._bare
        if adapters is None:
            return
        config = LoraConfig(
            r=adapters.rank,
            lora_alpha=adapters.alpha,
            target_modules=sorted(adapters.pairs),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name on its way out
            self._model = get_peft_model(self._bare, config)
        modules = dict(self._bare.named_modules())
        for name, pair in adapters.pairs.items():
            a, b = modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight
            a.data, b.data, a.grad, b.grad = pair
        self._model.eval()

    def refresh(self) -> None:
        """Nothing to do: PEFT's parameters are the adapters' own memory."""

    def _nats(self, sessions: Sequence[Encoded]) -> list[Tensor]:
        """Nats of each completion token, by session."""
        width = max(len(session.tokens) for session in sessions)
        tokens = torch.zeros(len(sessions), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, session in enumerate(sessions):
            tokens[row, : len(session.tokens)] = torch.tensor(session.tokens)
            mask[row, : len(session.tokens)] = 1
        logits = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        nats = []
        for row, session in enumerate(sessions):
            predicting = logits[row, session.prompt - 1 : len(session.tokens) - 1].float()
            goal = torch.tensor(session.tokens[session.prompt :])
            nats.append(functional.cross_entropy(predicting, goal, reduction="none"))
        return nats

    def losses(self, sessions: Sequence[Encoded]) -> list[float]:
        with torch.no_grad():
            return [float(nats.mean()) for nats in self._nats(sessions)]

    def train(self, sessions: Sequence[Encoded], weight: float) -> float:
        with torch.enable_grad():
            means = [nats.mean() for nats in self._nats(sessions)]
            loss = torch.stack(means).sum() * weight
            torch.autograd.backward(loss)
        return float(loss.detach())

    def generate(self, prompt: Sequence[int], *, count: int, end: int) -> list[int]:
        made: list[int] = []
        cache: Any = None
        fresh = torch.tensor([list(prompt)])
        with torch.no_grad():
            while len(made) < count:
                out = self._model(input_ids=fresh, past_key_values=cache, use_cache=True)
                token = int(out.logits[0, -1].argmax())
                if token == end:
                    break
                made.append(token)
                cache, fresh = out.past_key_values, torch.tensor([[token]])
        return made
