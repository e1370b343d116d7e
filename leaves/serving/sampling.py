"""From logits to a token, and from tokens to text: what belongs to one answer alone.

Each answer draws from a generator of its own, so that the same seed gives the same text whatever
else is being answered.
"""

from __future__ import annotations

import secrets

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

# What is taken if a client says neither: the makers of the packaged chassis advise it.
TEMPERATURE, TOP_P = 0.2, 0.9
_COLDEST = 1e-4  # below, the likeliest token takes it all, and a division would overflow
_BEST = 1024  # candidates sorted first: all 49,152 take 3 ms


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, temperature: float | None, top_p: float | None, seed: int | None) -> None:
        unsaid = TOP_P if temperature is None else 1.0
        self._temperature = TEMPERATURE if temperature is None else temperature
        self._top_p = unsaid if top_p is None else top_p
        self._generator = torch.Generator()
        self._generator.manual_seed(secrets.randbits(63) if seed is None else seed % 2**63)

    def pick(self, logits: Tensor) -> int:
        """logits: float32, of all tokens. Of two equally likely, greedily the first."""
        if self._temperature < _COLDEST:
            return int(logits.argmax())
        chances = (logits / self._temperature).softmax(-1)
        order: Tensor | None = None
        if self._top_p < 1.0:
            chances, order = self._nucleus(chances)
        # By the inverse of the distribution: one draw for a token, and rounding moves no more
        # than the boundary between two tokens.
        sums = chances.double().cumsum(-1)
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64) * sums[-1]
        at = min(int(torch.searchsorted(sums, drawn, right=True)), len(sums) - 1)
        return at if order is None else int(order[at])

    def _nucleus(self, chances: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens, as few as have `top_p` of the chance together."""
        best, order = chances.topk(min(_BEST, len(chances)))
        if float(best.sum()) < self._top_p:
            best, order = chances.sort(descending=True)
        before = best.cumsum(-1) - best
        count = max(1, int((before < self._top_p).sum()))
        return best[:count], order[:count]


class Speech:
    """The tokens of one answer as text, each character once it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        """What the token adds; "" while a character is in two parts.

        A character that the last token leaves in parts is never said.
        """
        return self._stream.step(self._tokenizer, token) or ""
