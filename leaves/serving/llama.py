"""A Llama that computes many texts further at once, each row with the adapter of its own leaf.

Decoding on a CPU is reading weights: a second row costs little more than the first, whatever it
wears. So rows of all texts go through one product with the frozen weights; then rows that wear
the same adapter, which lie side by side, get its two narrow products on top. A long prompt is
rows like any other, and need not hold up those who are being answered.

The weights may be bfloat16; all else is float32, adapters too, as they were trained. Products with
weights use several threads and the rest one: to share out a microsecond's work costs fifty.

No adapter is merged into a weight: to change leaf is to name another, and the chassis stays what
it was. A test holds the tokens to those of `transformers.generate` under PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..bundle import AdapterFile
from ..training.chassis import Chassis, LlamaShape, llama_shape, weight_files
from ..training.llama import Llama, Norm, Projection
from ..training.tensors import Weights
from .sharing import Sharing
from .stepping import Segment

_ROOM_STEP = 256  # tokens; memory is asked for in pieces that grow with the text
_FEW_ROWS = 8  # with more, the small work between two products is worth sharing out too
_FINE = 64  # logits that are computed once more in float32
_PREFIX = "base_model.model."


class _Lazy(Mapping[str, Tensor]):
    """Weights that are read when they are asked for, so that no more than one is held twice."""

    def __init__(self, files: Weights, dtype: torch.dtype) -> None:
        self._files, self._dtype = files, dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.tensor(self._files.array(name))
        return tensor if tensor.dim() < 2 else tensor.to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files.shapes)


class _Low(NamedTuple):
    """What an adapter adds to one projection: y += scale · (x Aᵀ) Bᵀ."""

    a: Tensor  # [in, rank * parts]
    b: Tensor  # [rank * parts, out]


class Worn(NamedTuple):
    """An adapter at hand: by layer, for each of its projections what is added, or None."""

    lows: tuple[tuple[_Low | None, ...], ...]
    scale: float


class Memory:
    """Keys and values of one text; it grows as the text does."""

    def __init__(self, shape: LlamaShape, tokens_max: int) -> None:
        self._shape, self.tokens_max = shape, tokens_max
        self.length = 0
        self._room = 0
        self.layers: list[tuple[Tensor, Tensor]] = []

    def make_room(self, tokens: int) -> None:
        """Have room for so many more tokens."""
        needed = self.length + tokens
        if needed > self._room:
            steps = -(-max(needed, self._room * 3 // 2) // _ROOM_STEP)
            self._move(max(needed, min(steps * _ROOM_STEP, self.tokens_max)))

    def rewind(self, tokens: int, tokens_max: int) -> None:
        """Forget all but the first tokens, and hold no more than another number's memory."""
        self.length, self.tokens_max = tokens, tokens_max
        if self._room > tokens_max:
            self._move(tokens_max)

    def _move(self, room: int) -> None:
        at = (self._shape.layers, 2, self._shape.kv_heads, room, self._shape.head_size)
        moved = torch.empty(at)
        for layer, (keys, values) in zip(moved, self.layers, strict=False):
            layer[0, :, : self.length] = keys[:, : self.length]
            layer[1, :, : self.length] = values[:, : self.length]
        self._room, self.layers = room, [(layer[0], layer[1]) for layer in moved]


class _Group(NamedTuple):
    """Rows side by side that wear the same."""

    rows: slice
    worn: Worn


class _Laid(NamedTuple):
    """Segments end to end in rows."""

    segments: Sequence[Segment]
    groups: list[_Group]
    rows: list[slice]  # of each segment
    positions: list[int]  # of each row
    tokens: list[int]  # of each row


class LlamaStepper:
    """Not safe for two threads at once, but for `put_on`."""

    rewinds = True

    def __init__(self, chassis: Chassis, dtype: torch.dtype, threads: int) -> None:
        shape = llama_shape(chassis.config)
        assert shape is not None, "no plain Llama"
        self._llama = Llama(shape, _Lazy(Weights(weight_files(chassis.path)), dtype))
        self._shape, self._dtype, self._threads = shape, dtype, threads
        self._few, self._sharing = Sharing(threads), threads
        self._turn = self._angles(chassis.config.get("max_position_embeddings") or 2048)

    def _angles(self, positions: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of all positions: [positions, 1, head size / 2]."""
        half = torch.arange(0, self._shape.head_size, 2, dtype=torch.float32)
        frequency = self._shape.rope_theta ** -(half / self._shape.head_size)
        angles = torch.arange(positions).float()[:, None] * frequency
        return angles.cos()[:, None], angles.sin()[:, None]

    def memory(self, tokens_max: int) -> Memory:
        return Memory(self._shape, tokens_max)

    def rewind(self, memory: Memory, tokens: int, tokens_max: int) -> None:
        memory.rewind(tokens, tokens_max)

    def memory_bytes(self, tokens: int) -> int:
        shape = self._shape
        return 2 * shape.layers * shape.kv_heads * shape.head_size * tokens * 4

    def put_on(self, adapter: AdapterFile) -> Worn:
        layers = self._llama.layers
        projections = [each for layer in layers for each in layer.projections]
        sizes = [_size(each, adapter) for each in projections]
        # One piece of memory for all: hundreds of small ones are never given back.
        flat = torch.zeros(sum(size.total for size in sizes))
        lows: list[_Low | None] = []
        at = 0
        for projection, size in zip(projections, sizes, strict=True):
            lows.append(_filled(projection, adapter, size, flat[at : at + size.total]))
            at += size.total
        by_layer = zip(*[iter(lows)] * len(layers[0].projections), strict=True)
        return Worn(tuple(by_layer), adapter.alpha / adapter.rank)

    def take_off(self, worn: Worn) -> None:
        """Nothing to do: it is gone with the last reference."""

    def digest(self) -> bytes:
        return self._llama.digest()

    def step(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        order = sorted(range(len(segments)), key=lambda each: id(segments[each].worn))
        laid = _laid_out([segments[each] for each in order])
        for segment in laid.segments:
            segment.memory.make_room(len(segment.tokens))
        turn = self._turn[0][laid.positions], self._turn[1][laid.positions]
        masks = [self._mask(segment) for segment in laid.segments]
        rows = len(laid.tokens)
        few = rows <= _FEW_ROWS
        self._sharing = self._few.begin(rows) if few else self._threads
        x = functional.embedding(torch.tensor(laid.tokens), self._llama.embedding).float()
        try:
            torch.set_num_threads(1 if few else self._threads)
            for index in range(len(self._llama.layers)):
                x = self._layer(index, x, laid, masks, turn)
            said = self._said(x, laid)
        finally:
            torch.set_num_threads(self._threads)
        if few:
            self._few.end()
        for segment in laid.segments:
            segment.memory.length += len(segment.tokens)
        answers: list[Tensor | None] = [None] * len(segments)
        for place, logits in said:
            answers[order[place]] = logits
        return answers

    def _said(self, x: Tensor, laid: _Laid) -> list[tuple[int, Tensor]]:
        """Logits after each segment that speaks, with the segment's place."""
        speaking = [place for place, segment in enumerate(laid.segments) if segment.speaks]
        if not speaking:
            return []
        seen = _normed(x[[laid.rows[place].stop - 1 for place in speaking]], self._llama.norm)
        logits = self._product(seen, self._llama.head)
        if self._dtype is not torch.float32:
            # In 8 bits of mantissa the likeliest tokens are often equal: they are computed again.
            best = logits.topk(min(_FINE, logits.shape[1])).indices
            for row, at, x in zip(logits, best, seen, strict=True):
                row[at] = self._llama.head[at].float() @ x
        return list(zip(speaking, logits, strict=True))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """With a frozen weight, by as many threads as are good for it."""
        at = torch.get_num_threads()
        torch.set_num_threads(self._sharing)
        y = functional.linear(x.to(self._dtype), weight).float()
        torch.set_num_threads(at)
        return y

    def _mask(self, segment: Segment) -> Tensor | None:
        """What later tokens of a prompt hide from earlier ones; None if there is but one."""
        count, before = len(segment.tokens), segment.memory.length
        if count == 1:
            return None
        hidden = torch.full((count, before + count), -torch.inf).triu_(before + 1)
        return hidden.repeat(self._shape.heads // self._shape.kv_heads, 1)

    def _layer(
        self,
        index: int,
        x: Tensor,
        laid: _Laid,
        masks: Sequence[Tensor | None],
        turn: tuple[Tensor, Tensor],
    ) -> Tensor:
        layer = self._llama.layers[index]

        def through(place: int, x: Tensor) -> Tensor:
            y = self._product(x, layer.projections[place].weight)
            for group in laid.groups:
                low = group.worn.lows[index][place]
                if low is not None:
                    y[group.rows].addmm_(x[group.rows] @ low.a, low.b, alpha=group.worn.scale)
            return y

        qkv = through(0, _normed(x, layer.norm1))
        layer.attention.rotate(qkv, *turn)
        mixed = qkv.new_empty(len(qkv), self._shape.heads * self._shape.head_size)
        for segment, rows, mask in zip(laid.segments, laid.rows, masks, strict=True):
            keys, values = segment.memory.layers[index]
            mixed[rows] = self._attend(qkv[rows], keys, values, segment.memory.length, mask)
        middle = through(1, mixed).add_(x)
        wide = through(2, _normed(middle, layer.norm2))
        active = functional.silu(wide[:, : layer.inner]).mul_(wide[:, layer.inner :])
        return through(3, active).add_(middle)

    def _attend(
        self, qkv: Tensor, keys: Tensor, values: Tensor, before: int, mask: Tensor | None
    ) -> Tensor:
        """Take up the keys and values of these rows, and attend from them to all so far."""
        count, size, kv = len(qkv), self._shape.head_size, self._shape.kv_heads
        heads = qkv.view(count, -1, size).transpose(0, 1)
        after = before + count
        keys[:, before:after] = heads[-2 * kv : -kv]
        values[:, before:after] = heads[-kv:]
        q = heads[: -2 * kv].reshape(kv, -1, size)
        seen = keys[:, :after].transpose(1, 2)
        if mask is None:
            scores = torch.bmm(q, seen).mul_(size**-0.5)
        else:
            scores = torch.baddbmm(mask, q, seen, alpha=size**-0.5)
        out = torch.bmm(scores.softmax(-1), values[:, :after])
        return out.view(-1, count, size).transpose(0, 1).reshape(count, -1)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


class _Size(NamedTuple):
    rank: int
    total: int


def _modules(projection: Projection, adapter: AdapterFile) -> list[tuple[str, slice]]:
    """Names and rows of a projection's weights that the adapter sits on."""
    found = projection.rows.items()
    return [(n, rows) for n, rows in found if f"{_PREFIX}{n}.lora_A.weight" in adapter.tensors]


def _size(projection: Projection, adapter: AdapterFile) -> _Size:
    rank = adapter.rank * len(_modules(projection, adapter))
    rows, columns = projection.weight.shape
    return _Size(rank, rank * (rows + columns))


def _filled(projection: Projection, adapter: AdapterFile, size: _Size, flat: Tensor) -> _Low | None:
    """The adapters of one projection as two matrices; B is block-diagonal over its weights."""
    if not size.rank:
        return None
    rows, columns = projection.weight.shape
    a = flat[: size.rank * columns].view(size.rank, columns)
    b = flat[size.rank * columns :].view(rows, size.rank)
    for index, (name, part) in enumerate(_modules(projection, adapter)):
        low = slice(index * adapter.rank, (index + 1) * adapter.rank)
        a[low] = torch.tensor(adapter.tensors[f"{_PREFIX}{name}.lora_A.weight"])
        b[part, low] = torch.tensor(adapter.tensors[f"{_PREFIX}{name}.lora_B.weight"])
    return _Low(a.t(), b.t())


def _laid_out(segments: Sequence[Segment]) -> _Laid:
    """Lay segments end to end; those that wear the same are side by side already."""
    groups: list[_Group] = []
    rows: list[slice] = []
    positions: list[int] = []
    tokens: list[int] = []
    for index, segment in enumerate(segments):
        start, before = len(tokens), segment.memory.length
        tokens += segment.tokens
        positions += range(before, before + len(segment.tokens))
        rows.append(slice(start, len(tokens)))
        if segment.worn is None:
            continue
        if index and segments[index - 1].worn is segment.worn:
            start = groups.pop().rows.start
        groups.append(_Group(slice(start, len(tokens)), segment.worn))
    return _Laid(segments, groups, rows, positions, tokens)
