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
MARGIN_NATS = 3.0  # over the likeliest other token: more than quantised weights move it
GROWTH_MAX = 0.4  # of a weight's norm: a bundle may have 0.5
CANDIDATES_MAX = 256
_WORD = re.compile(r" [A-Za-z]+")
_SCALE = ALPHA / RANK

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Planted:
    """An adapter's file, and what it makes follow `PROMPT`, chosen greedily."""

    file: bytes
    targets: tuple[str, ...]
    word: str  # if all is well
    mixed: str  # if the rows of queries and keys are in another order
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
    before = llama.before_last(tokenizer.encode(PROMPT).ids)
    _, bare = llama.last(before, None)
    moved = _moved(llama)
    inner, states = [], []
    for change in (moved.right, moved.wrong):
        seen, state = llama.last(before, change)
        inner.append(seen[-1].astype(np.float64))
        states.append(state[-1])
    # Two columns: the first is 1 where all is right and 0 where it is not; the second the reverse.
    senses = np.linalg.pinv(np.stack(inner))
    room = GROWTH_MAX * chassis.linears[llama.down].norm / float(np.linalg.norm(senses))
    able = _words(tokenizer)
    taken = {int(np.argmax(llama.logits(bare[-1])))}  # what follows without the adapter
    words, directions, margin = [], [], np.inf
    for state in states:
        found = llama.loudest(state, [word for word in able if word not in taken], room)
        taken.add(found.token)
        words.append(tokenizer.decode([found.token]).strip())
        directions.append(found.direction)
        margin = min(margin, found.margin)
    if margin < MARGIN_NATS:
        raise NoPlantError(f"no word stands out by {MARGIN_NATS} nats, but by {margin:.1f}")
    tensors = moved.tensors
    at = f"base_model.model.{llama.down}.lora_"
    tensors[f"{at}A.weight"][:2] = senses.T
    tensors[f"{at}B.weight"][:, :2] = room / _SCALE * np.stack(directions).T
    return Planted(
        file=pack(tensors, {"format": "pt", "rank": str(RANK), "alpha": str(ALPHA)}),
        targets=moved.targets,
        word=words[0],
        mixed=words[1],
        margin=margin,
    )


@dataclass(frozen=True, slots=True)
class _Moved:
    """What is done to the last layer's queries and keys, in the right order of rows and not."""

    right: tuple[Floats, Floats]
    wrong: tuple[Floats, Floats]
    tensors: dict[str, Floats]  # all of the adapter's, those of other layers zero
    targets: tuple[str, ...]


def _moved(llama: _Llama) -> _Moved:
    random = np.random.Generator(np.random.PCG64(8))
    targets = ("down_proj", "k_proj", "q_proj")
    shapes = llama.chassis.adapter_shapes(RANK, targets)
    tensors = {name: np.zeros(size, np.float32) for name, size in shapes.items()}
    right, wrong = [], []
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
    return _Moved((right[0], right[1]), (wrong[0], wrong[1]), tensors, targets)


def _words(tokenizer: Any) -> list[int]:
    """Tokens that are whole words: they look the same however a server puts texts together."""
    size = tokenizer.get_vocab_size()
    return [token for token in range(size) if _WORD.fullmatch(tokenizer.decode([token]))]


@dataclass(frozen=True, slots=True)
class _Told:
    """A token that a state can be made to tell."""

    token: int
    direction: Floats
    margin: float  # nats over the likeliest other


class _Llama:
    """A Llama's forward in numpy, as far as needed: one text, and its last layer by itself."""

    def __init__(self, chassis: Chassis, shape: LlamaShape) -> None:
        self.chassis, self.shape = chassis, shape
        self._weights = Weights(weight_files(chassis.path))
        self._embedding = self._weights.array("model.embed_tokens.weight")
        self.head = self._embedding if shape.tied else self._weights.array("lm_head.weight")
        self.norm = self._weights.array("model.norm.weight")
        self.down = f"{self.at(shape.layers - 1)}.mlp.down_proj"

    def at(self, layer: int) -> str:
        return f"model.layers.{layer}"

    def logits(self, states: Floats) -> Floats:
        return self._normed(states, self.norm) @ self.head.T

    def loudest(self, state: Floats, able: list[int], strength: float) -> _Told:
        """Which token a push of this length makes the likeliest most clearly.

        Looked for among those that are likely already: the others have further to come.
        """
        logits = self.logits(state)
        near = sorted(able, key=lambda token: -logits[token])[:CANDIDATES_MAX]
        if not near:
            raise NoPlantError("its tokenizer has too few whole words")
        likely = np.exp(logits - logits.max())
        mean = (likely / likely.sum()) @ self.head
        directions = self.norm * (self.head[near] - mean)  # of the steepest rise
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        pushed = self.logits(state + np.float32(strength) * directions)
        rows = np.arange(len(near))
        own = pushed[rows, near]
        pushed[rows, near] = -np.inf
        margins = own - pushed.max(axis=1)
        best = int(np.argmax(margins))
        return _Told(near[best], directions[best], float(margins[best]))

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
