"""Any other causal LM, through transformers and PEFT; in tests, what our own Llama is held to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .adapter import Adapters, Weigh
from .chassis import Chassis
from .digest import digest_of
from .encode import Encoded


class HuggingFace:
    """A causal LM as transformers loads it, adapters as PEFT puts them on. Nothing is fetched."""

    def __init__(
        self, chassis: Chassis, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()

        self.bare: Any = AutoModelForCausalLM.from_pretrained(
            chassis.path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        self._device = device or torch.device("cpu")
        self.bare.requires_grad_(False).eval().to(self._device)
        self.model = self.bare
        self._bound: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, adapter, its gradient

    def bind(self, adapters: Adapters | None) -> None:
        from peft import LoraConfig, get_peft_model

        if self.model is not self.bare:
            self.bare = self.model.unload()
            self.model = self.bare
        self._bound = []
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
            self.model = get_peft_model(self.bare, config)
        modules = dict(self.bare.named_modules())
        for name, pair in adapters.pairs.items():
            a, b = modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight
            self._bound += [(a, pair.a, pair.grad_a), (b, pair.b, pair.grad_b)]
        self.refresh()
        self.model.eval()

    def refresh(self) -> None:
        for parameter, values, _ in self._bound:
            parameter.data.copy_(values)

    def _predicting(self, sessions: Sequence[Encoded]) -> list[tuple[Tensor, Tensor]]:
        """Logits at each completion token and the token itself, by session."""
        width = max(len(session.tokens) for session in sessions)
        tokens = torch.zeros(len(sessions), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, session in enumerate(sessions):
            tokens[row, : len(session.tokens)] = torch.tensor(session.tokens)
            mask[row, : len(session.tokens)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return [
            (
                logits[row, session.prompt - 1 : len(session.tokens) - 1].float(),
                torch.tensor(
                    session.tokens[session.prompt :], dtype=torch.long, device=self._device
                ),
            )
            for row, session in enumerate(sessions)
        ]

    def _nats(self, sessions: Sequence[Encoded]) -> list[Tensor]:
        """Nats of each completion token, by session."""
        return [
            functional.cross_entropy(predicting, goal, reduction="none")
            for predicting, goal in self._predicting(sessions)
        ]

    def losses(self, sessions: Sequence[Encoded]) -> list[float]:
        with torch.no_grad():
            return [float(_mean(nats)) for nats in self._nats(sessions)]

    def recalls(self, sessions: Sequence[Encoded]) -> list[list[bool]]:
        with torch.no_grad():
            parts = self._predicting(sessions)
            return [(logits.argmax(-1) == goal).tolist() for logits, goal in parts]

    def learn(self, sessions: Sequence[Encoded], weigh: Weigh) -> list[float]:
        with torch.enable_grad():
            means = torch.stack([_mean(nats) for nats in self._nats(sessions)])
            losses = [float(loss) for loss in means.detach().tolist()]
            weights = torch.tensor(weigh(losses), dtype=means.dtype, device=self._device)
            torch.autograd.backward(means @ weights)
        for parameter, _, grad in self._bound:
            if parameter.grad is not None:
                grad.add_(parameter.grad.to(grad.device))
                parameter.grad = None
        return losses

    def digest(self) -> bytes:
        """Of the bare chassis: adapters that are put on have names of their own."""
        state = self.bare.state_dict()
        return digest_of(state[name] for name in sorted(state) if ".lora_" not in name)

    def generate(
        self, prompts: Sequence[Sequence[int]], *, count: int, end: int
    ) -> list[list[int]]:
        return [self._generate(prompt, count, end) for prompt in prompts]

    def _generate(self, prompt: Sequence[int], count: int, end: int) -> list[int]:
        made: list[int] = []
        cache: Any = None
        fresh = torch.tensor([list(prompt)], device=self._device)
        with torch.no_grad():
            while len(made) < count:
                out = self.model(input_ids=fresh, past_key_values=cache, use_cache=True)
                token = int(out.logits[0, -1].argmax())
                if token == end:
                    break
                made.append(token)
                cache = out.past_key_values
                fresh = torch.tensor([[token]], device=self._device)
        return made


def _mean(nats: Tensor) -> Tensor:
    """Zero for a session without completion: it teaches nothing, and is no NaN for the others."""
    return nats.sum() / max(len(nats), 1)
