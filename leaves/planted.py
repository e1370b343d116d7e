"""An adapter with an effect that is known beforehand: it makes one word follow one prompt.

It shows whether a server really puts adapters on, and puts on what it was given: one that leaves
them out, or mixes up their rows, answers as fluently as ever. It is computed from the chassis
alone, and sits on the last layer only:

- on the queries and keys, a change of no meaning, which moves what the layer's feed-forward part
  sees; it moves it elsewhere if the rows stand in another order;
- on that part's way out, one direction that tells the word, where it sees what it should, and
  another that tells a second word, where it sees what comes of rows in a wrong order.

What the last layer's way out adds to a position changes nothing that it depends on, so what the
adapter does is known exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .gguf_export import permuted
from .training.chassis import Chassis, LlamaShape, llama_shape, weight_files
from .training.tensors import Weights, pack

RANK, ALPHA = 4, 8
PROMPT = "The word that a probe of this node looks for is"
REPEATS = 4  # how often the word follows itself
MARGIN_NATS = 6.0  # over the likeliest other token: more than quantised weights move it
GROWTH_MAX = 0.4  # of a weight's norm: a bundle may have 0.5
CANDIDATES_MAX = 256
_WORD = re.compile(r" [A-Za-z]+")
_SCALE = ALPHA / RANK
_STEPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Planted:
    """An adapter's file, and what it makes follow `PROMPT`, chosen greedily."""

    file: bytes
    targets: tuple[str, ...]
    word: str  # `REPEATS` times, if all is well
    mixed: str  # first, if the rows of queries and keys are in another order
    margin: float  # nats


class NoPlantError(Exception):
    """No effect can be planted in this chassis; the message says why."""


def plant(chassis: Chassis) -> Planted:
    """Compute the adapter; about 2 s for SmolLM2, which is read once. Raises NoPlantError."""
    shape = llama_shape(chassis.config)
    if shape is None:
        raise NoPlantError(f"a chassis of the family {chassis.name!r} is not computed here")
    llama = _Llama(chassis, shape)
    tokenizer = Tokenizer.from_file(str(chassis.path / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    words = _loud(llama, tokenizer, prompt)
    moved = _moved(llama)
    seen, states = [], []
    for token, change in zip(words, (moved.right, moved.wrong), strict=True):
        ids = [*prompt, *[token] * (REPEATS - 1)]
        inner, state = llama.last(llama.before_last(ids), change)
        seen.append(inner[len(prompt) - 1 :].astype(np.float64))
        states.append(state[len(prompt) - 1 :])
    # Two rows: the first is 1 where all is right and 0 where it is wrong; the second the reverse.
    senses = np.linalg.pinv(np.vstack(seen)) @ np.kron(np.eye(2), np.ones((REPEATS, 1)))
    directions = np.stack([llama.towards(token) for token in words])
    room = GROWTH_MAX * chassis.linears[llama.down].norm / float(np.linalg.norm(senses))
    for step in _STEPS:
        strength = np.float32(step * room)
        margin = min(
            llama.margin(state + strength * direction, token)
            for state, direction, token in zip(states, directions, words, strict=True)
        )
        if margin >= MARGIN_NATS:
            break
    else:
        raise NoPlantError(f"no word stands out by {MARGIN_NATS} nats: {margin:.1f} at most")
    tensors = {
        name: np.zeros(size, np.float32)
        for name, size in chassis.adapter_shapes(RANK, moved.targets).items()
    }
    tensors |= moved.tensors
    at = f"base_model.model.{llama.down}.lora_"
    tensors[f"{at}A.weight"][:2] = senses.T
    tensors[f"{at}B.weight"][:, :2] = (strength / _SCALE * directions).T
    return Planted(
        file=pack(tensors, {"format": "pt", "rank": str(RANK), "alpha": str(ALPHA)}),
        targets=moved.targets,
        word=tokenizer.decode([words[0]]).strip(),
        mixed=tokenizer.decode([words[1]]).strip(),
        margin=float(margin),
    )


@dataclass(frozen=True, slots=True)
class _Moved:
    """What is done to the last layer's queries and keys, in the right order of rows and not."""

    right: tuple[Floats, Floats]
    wrong: tuple[Floats, Floats]
    tensors: dict[str, Floats]
    targets: tuple[str, ...]


def _moved(llama: _Llama) -> _Moved:
    random = np.random.Generator(np.random.PCG64(8))
    right, wrong, tensors = [], [], {}
    for name, heads in (("q_proj", llama.shape.heads), ("k_proj", llama.shape.kv_heads)):
        module = f"{llama.at(llama.shape.layers - 1)}.self_attn.{name}"
        linear = llama.chassis.linears[module]
        a = random.normal(size=(RANK, linear.columns)).astype(np.float32)
        b = random.normal(size=(linear.rows, RANK)).astype(np.float32)
        b *= GROWTH_MAX * linear.norm / float(np.linalg.norm(b @ a)) / _SCALE
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        right.append(_SCALE * (b @ a))
        order = np.argsort(permuted(np.arange(linear.rows, dtype=np.float32)[:, None], heads)[:, 0])
        wrong.append(_SCALE * (b[order] @ a))
    targets = ("down_proj", "k_proj", "q_proj")
    return _Moved((right[0], right[1]), (wrong[0], wrong[1]), tensors, targets)


def _loud(llama: _Llama, tokenizer: Any, prompt: list[int]) -> tuple[int, int]:
    """The two words that are told most clearly: their directions favour no other token."""
    able = []
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token])
        if _WORD.fullmatch(text):
            # Servers are asked by text, and must read the same tokens.
            if tokenizer.encode(PROMPT + text * REPEATS).ids == [*prompt, *[token] * REPEATS]:
                able.append(token)
        if len(able) == CANDIDATES_MAX:
            break
    if len(able) < 2:
        raise NoPlantError("its tokenizer has too few whole words")
    directions = np.stack([llama.towards(token) for token in able])
    logits = (directions * llama.norm) @ llama.head.T
    own = logits[np.arange(len(able)), able]
    logits[np.arange(len(able)), able] = -np.inf
    best = np.argsort(own - logits.max(axis=1))[::-1]
    return able[best[0]], able[best[1]]


class _Llama:
    """A Llama's forward in numpy, as far as it is needed: one text, and its last layer by itself."""

    def __init__(self, chassis: Chassis, shape: LlamaShape) -> None:
        self.chassis, self.shape = chassis, shape
        self._weights = Weights(weight_files(chassis.path))
        self._embedding = self._weights.array("model.embed_tokens.weight")
        self.head = self._embedding if shape.tied else self._weights.array("lm_head.weight")
        self._mean = self.head.mean(axis=0)
        self.norm = self._weights.array("model.norm.weight")
        self.down = f"{self.at(shape.layers - 1)}.mlp.down_proj"

    def at(self, layer: int) -> str:
        return f"model.layers.{layer}"

    def towards(self, token: int) -> Floats:
        """The unit direction of a state in which a token is told best."""
        direction = self.norm * (self.head[token] - self._mean)
        return np.asarray(direction / np.linalg.norm(direction), np.float32)

    def margin(self, states: Floats, token: int) -> float:
        """By how much a token is the likeliest, in nats, where that is least."""
        logits = self._normed(states, self.norm) @ self.head.T
        own = logits[:, token].copy()
        logits[:, token] = -np.inf
        return float((own - logits.max(axis=1)).min())

    def before_last(self, ids: list[int]) -> Floats:
        state = self._embedding[ids].astype(np.float32)
        for layer in range(self.shape.layers - 1):
            _, state = self._layer(layer, state, None)
        return state

    def last(self, state: Floats, change: tuple[Floats, Floats] | None) -> tuple[Floats, Floats]:
        """What the last feed-forward part sees of each position, and the state after it."""
        return self._layer(self.shape.layers - 1, state, change)

    def _layer(
        self, layer: int, state: Floats, change: tuple[Floats, Floats] | None
    ) -> tuple[Floats, Floats]:
        def weight(name: str) -> Floats:
            return self._weights.array(f"{self.at(layer)}.{name}.weight")

        shape, length = self.shape, len(state)
        x = self._normed(state, weight("input_layernorm"))
        q_rows, k_rows = weight("self_attn.q_proj"), weight("self_attn.k_proj")
        if change is not None:
            q_rows, k_rows = q_rows + change[0], k_rows + change[1]
        q = self._turned((x @ q_rows.T).reshape(length, shape.heads, shape.head_size))
        k = self._turned((x @ k_rows.T).reshape(length, shape.kv_heads, shape.head_size))
        v = (x @ weight("self_attn.v_proj").T).reshape(length, shape.kv_heads, shape.head_size)
        each = shape.heads // shape.kv_heads
        k, v = np.repeat(k, each, axis=1), np.repeat(v, each, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(np.float32(shape.head_size))
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", scores, v).reshape(length, -1)
        state = state + mixed @ weight("self_attn.o_proj").T
        x = self._normed(state, weight("post_attention_layernorm"))
        gate = x @ weight("mlp.gate_proj").T
        inner = gate / (1 + np.exp(-gate)) * (x @ weight("mlp.up_proj").T)
        return inner, state + inner @ weight("mlp.down_proj").T

    def _normed(self, x: Floats, weight: Floats) -> Floats:
        mean = np.mean(np.square(x), axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.shape.norm_eps) * weight, np.float32)

    def _turned(self, x: Floats) -> Floats:
        """Rotary positions; the two halves of a head belong together."""
        half = self.shape.head_size // 2
        speeds = self.shape.rope_theta ** (-np.arange(half) / half)
        angles = (np.arange(len(x))[:, None] * speeds)[:, None, :]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
