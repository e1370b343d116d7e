"""Forward and backward of a Llama with LoRA adapters, written out so that a CPU is kept busy.

Why not transformers and PEFT: on two cores they spend half their time outside matrix products. Here
- sessions of unequal length are laid end to end, so no product is spent on padding; only the small
  attention products see a padded batch;
- projections of one input (q, k, v; gate, up) are one product, and their adapters one more;
- the loss makes its gradient on the way forward, for completion tokens only;
- the backward is explicit: frozen weights get no gradient, and nothing is computed twice unless
  what the backward needs of the forward is more than may be kept.
A test holds losses and gradients to those of transformers and PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .adapter import Adapters, Pair, Weigh
from .chassis import LlamaShape
from .digest import digest_of
from .encode import Encoded

_ROWS_STEP = 32  # few distinct row counts: each new one makes the kernel library build new code
_WIDTH_STEP = 8
_LOGIT_ROWS = 128  # rows of logits held at once: 128 x 49,152 float32 are 25 MB
_KEPT_BYTES_MAX = 1 << 30  # for the backward; SmolLM2 keeps 0.9 MB a token in sessions of 512
_MASKED = -1e4  # finite in bfloat16, and zero after softmax


class _Cache(NamedTuple):
    """A layer's keys and values so far, with room for those to come."""

    keys: Tensor  # [sessions, kv heads, room, head size]
    values: Tensor


class _Next(NamedTuple):
    """What all layers share in one more token of each session."""

    cos: Tensor
    sin: Tensor
    mask: Tensor  # [sessions * kv heads, 1, room]: out of sight is what is not yet there
    rows: Tensor  # [sessions] their numbers
    positions: Tensor  # [sessions] of the token


class Plan(NamedTuple):
    """Where each token of a batch lies: end to end in rows, and padded for attention."""

    tokens: Tensor  # [rows]
    positions: Tensor  # [rows]
    slots: Tensor  # [batch * width] row of each padded place; spare places point to a spare row
    places: Tensor  # [rows] padded place of each row; spare rows point to place 0
    used: int  # rows that hold a token; the rest are spare
    batch: int
    width: int
    predicting: Tensor  # rows whose next token belongs to a completion
    targets: Tensor  # that token
    owner: Tensor  # and the session it belongs to
    share: Tensor  # 1 / completion tokens of the session

    def to(self, device: torch.device) -> Plan:
        moved = (each.to(device) if isinstance(each, Tensor) else each for each in self)
        return Plan(*moved)  # type: ignore[arg-type]


def plan(sessions: Sequence[Encoded]) -> Plan:
    """Lay the sessions out. At least one spare row exists, so that spare places have a row."""
    lengths = [len(session.tokens) for session in sessions]
    used = sum(lengths)
    rows = -(-(used + 1) // _ROWS_STEP) * _ROWS_STEP
    width = -(-max(lengths) // _WIDTH_STEP) * _WIDTH_STEP
    tokens, positions = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
    places = torch.zeros(rows, dtype=torch.long)
    slots = torch.full((len(sessions), width), used, dtype=torch.long)
    predicting: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    share: list[float] = []
    start = 0
    for index, (session, length) in enumerate(zip(sessions, lengths, strict=True)):
        end = start + length
        tokens[start:end] = torch.tensor(session.tokens)
        positions[start:end] = torch.arange(length)
        slots[index, :length] = torch.arange(start, end)
        places[start:end] = torch.arange(length) + index * width
        predicting += range(start + session.prompt - 1, end - 1)
        targets += session.tokens[session.prompt :]
        owner += [index] * session.completion
        share += [1 / max(session.completion, 1)] * session.completion
        start = end
    return Plan(
        tokens, positions, slots.view(-1), places, used, len(sessions), width,
        torch.tensor(predicting, dtype=torch.long), torch.tensor(targets, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long), torch.tensor(share),
    )  # fmt: skip


class Projection:
    """Frozen weights that read one input, and the adapters on top of them.

    y = x Wᵀ + s (x Aᵀ) Bᵀ, where W stacks the weights, A stacks the adapters' inputs, and B is
    block-diagonal: one product instead of one for each adapter. A weight may be without adapter.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[Tensor]) -> None:
        self.weight = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
        self.rows: dict[str, slice] = {}
        row = 0
        for name, weight in zip(names, weights, strict=True):
            self.rows[name] = slice(row, row + len(weight))
            row += len(weight)
        self._parts: list[tuple[Pair, slice, slice]] = []

    def bind(self, adapters: Mapping[str, Pair], scale: float) -> None:
        """Put on the adapters of these names; `refresh` must follow each change of theirs."""
        pairs = [(adapters[name], rows) for name, rows in self.rows.items() if name in adapters]
        rank = len(pairs[0][0].a) if pairs else 0
        self._scale = scale
        self._parts = [
            (pair, rows, slice(index * rank, (index + 1) * rank))
            for index, (pair, rows) in enumerate(pairs)
        ]
        self._a = self.weight.new_empty(rank * len(pairs), self.weight.shape[1])
        self._b = self.weight.new_zeros(len(self.weight), rank * len(pairs))
        self.refresh()

    def refresh(self) -> None:
        """Take over the adapters' values, in the weights' precision."""
        for pair, rows, low in self._parts:
            self._a[low].copy_(pair.a)
            self._b[rows, low].copy_(pair.b)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = functional.linear(x, self.weight)
        if not self._parts:
            return y, None
        low = functional.linear(x, self._a)
        return y.addmm_(low, self._b.t(), alpha=self._scale), low

    def backward(
        self, grad: Tensor, x: Tensor, low: Tensor | None, *, last: bool = False
    ) -> Tensor:
        """Add to the adapters' gradients and return that of x, unless nothing is left to use it."""
        if low is None:
            return grad @ self.weight
        grad_low = (grad @ self._b).mul_(self._scale)
        grad_b, grad_a = grad.t() @ low, grad_low.t() @ x
        for pair, rows, part in self._parts:
            # Adapters and their optimiser stay on the CPU, whatever the chassis is computed on.
            pair.grad_a.add_(grad_a[part].to(pair.grad_a.device))
            pair.grad_b.add_(grad_b[rows, part].to(pair.grad_b.device), alpha=self._scale)
        if last:
            return grad
        return (grad @ self.weight).addmm_(grad_low, self._a)


class Norm:
    """RMSNorm with a frozen weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * inverse).to(x.dtype) * self.weight, inverse

    def backward(self, grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        wide = (grad * self.weight).float()
        unit = x.float() * inverse
        wide -= unit * (wide * unit).mean(-1, keepdim=True)
        return (wide * inverse).to(x.dtype)


class _Attention:
    """Causal attention with grouped keys, over rows laid end to end."""

    def __init__(self, shape: LlamaShape) -> None:
        self.heads, self.kv, self.size = shape.heads, shape.kv_heads, shape.head_size
        self.group = shape.heads // shape.kv_heads
        self.turned = (self.heads + self.kv) * self.size  # columns that carry a position

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn queries and keys in place; a negative `sin` turns them (or gradients) back."""
        heads = qkv[:, : self.turned].view(len(qkv), -1, 2, self.size // 2)
        left, right = heads[:, :, 0], heads[:, :, 1]
        turned = left * cos - right * sin
        right.mul_(cos).add_(left * sin)
        left.copy_(turned)

    def _padded(self, qkv: Tensor, at: Plan) -> tuple[Tensor, Tensor, Tensor]:
        wide = qkv.index_select(0, at.slots).view(at.batch, at.width, -1, self.size)
        q, k, v = torch.split(wide.transpose(1, 2), [self.heads, self.kv, self.kv], dim=1)
        batch, size = at.batch * self.kv, self.size
        return q.reshape(batch, -1, size), k.reshape(batch, -1, size), v.reshape(batch, -1, size)

    def forward(self, qkv: Tensor, at: Plan, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v = self._padded(qkv, at)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=self.size**-0.5)
        p = scores.softmax(-1)
        out = torch.bmm(p, v).view(at.batch, self.heads, at.width, self.size).transpose(1, 2)
        rows = out.reshape(at.batch * at.width, -1).index_select(0, at.places)
        return rows, (q, k, v, p)

    def extend(self, qkv: Tensor, cache: _Cache, one: _Next) -> Tensor:
        """Attend from one more token of each session, whose key and value go into the cache."""
        heads = [self.heads, self.kv, self.kv]
        q, k, v = torch.split(qkv.view(len(qkv), -1, self.size), heads, dim=1)
        cache.keys[one.rows, :, one.positions] = k
        cache.values[one.rows, :, one.positions] = v
        keys, values = cache.keys.flatten(0, 1), cache.values.flatten(0, 1)
        grouped = q.reshape(len(keys), self.group, self.size)
        p = torch.baddbmm(one.mask, grouped, keys.transpose(1, 2), alpha=self.size**-0.5).softmax(
            -1
        )
        return torch.bmm(p, values).view(len(qkv), -1)

    def backward(self, grad: Tensor, at: Plan, saved: tuple[Tensor, ...]) -> Tensor:
        q, k, v, p = saved
        wide = grad.index_select(0, at.slots).view(at.batch, at.width, self.heads, self.size)
        out = wide.transpose(1, 2).reshape(q.shape)
        grad_v = torch.bmm(p.transpose(1, 2), out)
        grad_p = torch.bmm(out, v.transpose(1, 2))
        grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(self.size**-0.5)
        parts = (torch.bmm(grad_s, k), torch.bmm(grad_s.transpose(1, 2), q), grad_v)
        shaped = [part.view(at.batch, -1, at.width, self.size) for part in parts]
        places = torch.cat(shaped, dim=1).transpose(1, 2).reshape(at.batch * at.width, -1)
        rows = places.index_select(0, at.places)
        rows[at.used :] = 0  # spare rows read place 0, which is another's
        return rows


class _Saved(NamedTuple):
    """What a layer's backward needs of its forward."""

    x: Tensor
    inverse1: Tensor
    seen1: Tensor
    low1: Tensor | None
    attention: tuple[Tensor, ...]
    mixed: Tensor
    low2: Tensor | None
    middle: Tensor
    inverse2: Tensor
    seen2: Tensor
    wide: Tensor
    low3: Tensor | None
    lit: Tensor
    active: Tensor
    low4: Tensor | None

    @property
    def nbytes(self) -> int:
        parts = (*self.attention, *(part for part in self if isinstance(part, Tensor)))
        return sum(part.nbytes for part in parts)


class _Layer:
    def __init__(self, weights: Mapping[str, Tensor], prefix: str, shape: LlamaShape) -> None:
        def projection(*names: str) -> Projection:
            full = [f"{prefix}.{name}" for name in names]
            return Projection(full, [weights[f"{name}.weight"] for name in full])

        def norm(name: str) -> Norm:
            return Norm(weights[f"{prefix}.{name}.weight"], shape.norm_eps)

        self.attention = _Attention(shape)
        self.norm1, self.norm2 = norm("input_layernorm"), norm("post_attention_layernorm")
        self.qkv = projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = projection("self_attn.o_proj")
        self.up = projection("mlp.gate_proj", "mlp.up_proj")
        self.down = projection("mlp.down_proj")
        self.projections = (self.qkv, self.out, self.up, self.down)
        self.inner = shape.inner

    def forward(self, x: Tensor, at: Plan, turn: _Turn) -> tuple[Tensor, _Saved]:
        seen1, inverse1 = self.norm1.forward(x)
        qkv, low1 = self.qkv.forward(seen1)
        self.attention.rotate(qkv, turn.cos, turn.sin)
        mixed, attention = self.attention.forward(qkv, at, turn.mask)
        y, low2 = self.out.forward(mixed)
        middle = y.add_(x)
        seen2, inverse2 = self.norm2.forward(middle)
        wide, low3 = self.up.forward(seen2)
        lit = functional.silu(wide[:, : self.inner])
        active = lit * wide[:, self.inner :]
        y, low4 = self.down.forward(active)
        saved = _Saved(
            x, inverse1, seen1, low1, attention, mixed, low2,
            middle, inverse2, seen2, wide, low3, lit, active, low4,
        )  # fmt: skip
        return y.add_(middle), saved

    def extend(self, x: Tensor, cache: _Cache, one: _Next) -> Tensor:
        """One more token of each session, after those in the cache."""
        qkv, _ = self.qkv.forward(self.norm1.forward(x)[0])
        self.attention.rotate(qkv, one.cos, one.sin)
        middle = self.out.forward(self.attention.extend(qkv, cache, one))[0].add_(x)
        wide, _ = self.up.forward(self.norm2.forward(middle)[0])
        active = functional.silu(wide[:, : self.inner]) * wide[:, self.inner :]
        return self.down.forward(active)[0].add_(middle)

    def backward(self, grad: Tensor, at: Plan, turn: _Turn, s: _Saved, *, last: bool) -> Tensor:
        """Return the gradient of the layer's input; the `last` to be called may return anything."""
        through = self.down.backward(grad, s.active, s.low4)
        gate, up = s.wide[:, : self.inner], s.wide[:, self.inner :]
        grad_wide = torch.empty_like(s.wide)
        torch.mul(through, s.lit, out=grad_wide[:, self.inner :])
        torch.ops.aten.silu_backward.grad_input(
            through.mul_(up), gate, grad_input=grad_wide[:, : self.inner]
        )
        seen2 = self.up.backward(grad_wide, s.seen2, s.low3)
        grad = self.norm2.backward(seen2, s.middle, s.inverse2).add_(grad)
        mixed = self.out.backward(grad, s.mixed, s.low2)
        qkv = self.attention.backward(mixed, at, s.attention)
        self.attention.rotate(qkv, turn.cos, -turn.sin)
        seen1 = self.qkv.backward(qkv, s.seen1, s.low1, last=last)
        if last:
            return grad
        return self.norm1.backward(seen1, s.x, s.inverse1).add_(grad)


class _Turn(NamedTuple):
    """What all layers share in one batch: rotary tables by row, and the causal mask."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


class Llama:
    """A frozen Llama that adapters can be bound to. Not safe for two threads at once."""

    def __init__(
        self,
        shape: LlamaShape,
        weights: Mapping[str, Tensor],
        *,
        kept_bytes_max: int = _KEPT_BYTES_MAX,
    ) -> None:
        """weights: by Hugging Face's names, all of one type and on one device: those computed in.

        kept_bytes_max: of what the layers keep for the backward. The first layers do without if
        all do not fit, and are computed again: the same gradients to the bit, a third more time.
        """
        self.shape, self.kept_bytes_max = shape, kept_bytes_max
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = self.embedding if shape.tied else weights["lm_head.weight"]
        self.norm = Norm(weights["model.norm.weight"], shape.norm_eps)
        layers = range(shape.layers)
        self.layers = [_Layer(weights, f"model.layers.{index}", shape) for index in layers]
        half = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
        self.device = self.embedding.device
        self._frequency = (shape.rope_theta**-half).to(self.device)
        self.bind(None)

    def bind(self, adapters: Adapters | None) -> None:
        pairs, scale = (adapters.pairs, adapters.scale) if adapters else ({}, 0.0)
        for layer in self.layers:
            for projection in layer.projections:
                projection.bind(pairs, scale)

    def refresh(self) -> None:
        for layer in self.layers:
            for projection in layer.projections:
                projection.refresh()

    def _plan(self, sessions: Sequence[Encoded]) -> Plan:
        return plan(sessions).to(self.device)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.float()[:, None] * self._frequency
        kind = self.embedding.dtype
        return angles.cos().to(kind)[:, None], angles.sin().to(kind)[:, None]

    def _turn(self, at: Plan) -> _Turn:
        causal = self.embedding.new_full((at.width, at.width), _MASKED).triu(1)
        group = self.shape.heads // self.shape.kv_heads
        return _Turn(*self._angles(at.positions), causal.repeat(group, 1))

    def _next(self, positions: Tensor, room: int) -> _Next:
        unseen = torch.arange(room, device=self.device) > positions[:, None]
        mask = torch.zeros_like(unseen, dtype=self.embedding.dtype).masked_fill_(unseen, _MASKED)
        mask = mask.repeat_interleave(self.shape.kv_heads, 0)[:, None]
        rows = torch.arange(len(positions), device=self.device)
        return _Next(*self._angles(positions), mask, rows, positions)

    def _seen(self, at: Plan) -> Tensor:
        """What the head reads to predict each completion token."""
        turn = self._turn(at)
        x = functional.embedding(at.tokens, self.embedding)
        for layer in self.layers:
            x, _ = layer.forward(x, at, turn)
        return self.norm.forward(x.index_select(0, at.predicting))[0]

    def losses(self, sessions: Sequence[Encoded]) -> list[float]:
        at = self._plan(sessions)
        parts = _chunks(self._seen(at), at)
        return _means(torch.cat([_nats(rows, self.head, goal) for rows, goal, _ in parts]), at)

    def recalls(self, sessions: Sequence[Encoded]) -> list[list[bool]]:
        at = self._plan(sessions)
        hits = [
            functional.linear(rows, self.head).argmax(-1) == goal
            for rows, goal, _ in _chunks(self._seen(at), at)
        ]
        sizes = [session.completion for session in sessions]
        return [part.tolist() for part in torch.split(torch.cat(hits), sizes)]

    def learn(self, sessions: Sequence[Encoded], weigh: Weigh) -> list[float]:
        at = self._plan(sessions)
        turn = self._turn(at)
        x = functional.embedding(at.tokens, self.embedding)
        saved: list[_Saved | Tensor] = []
        for index, layer in enumerate(self.layers):
            y, kept = layer.forward(x, at, turn)
            keeping = self.kept_bytes_max // kept.nbytes  # all layers keep as much as this one
            saved.append(kept if len(self.layers) - index <= keeping else x)
            x = y
        picked = x.index_select(0, at.predicting)
        seen, inverse = self.norm.forward(picked)
        losses, grad_seen = self._loss(seen, at)
        weights = torch.tensor(weigh(losses), dtype=torch.float32, device=self.device)
        grad_seen *= (at.share * weights[at.owner])[:, None]
        grad = torch.zeros_like(x)
        grad[at.predicting] = self.norm.backward(grad_seen, picked, inverse)
        for index in reversed(range(len(self.layers))):
            layer, left = self.layers[index], saved.pop()
            kept = left if isinstance(left, _Saved) else layer.forward(left, at, turn)[1]
            grad = layer.backward(grad, at, turn, kept, last=index == 0)
        return losses

    def _loss(self, seen: Tensor, at: Plan) -> tuple[list[float], Tensor]:
        """The sessions' losses, and the gradient of each row's own: logits are never held whole."""
        nats, grads = [], []
        for rows, goal, _ in _chunks(seen, at):
            # In the weights' own precision: a float32 copy of the logits costs more than it gives.
            p = functional.linear(rows, self.head).softmax(-1)
            index = torch.arange(len(rows), device=rows.device)
            chosen = p[index, goal]
            nats.append(-chosen.float().clamp_min(1e-30).log())
            p[index, goal] = chosen - 1
            grads.append(p @ self.head)
        return _means(torch.cat(nats), at), torch.cat(grads)

    def digest(self) -> bytes:
        layers = self.layers
        parts = [projection.weight for layer in layers for projection in layer.projections]
        parts += [norm.weight for layer in layers for norm in (layer.norm1, layer.norm2)]
        return digest_of([self.embedding, self.head, self.norm.weight, *parts])

    def generate(
        self, prompts: Sequence[Sequence[int]], *, count: int, end: int
    ) -> list[list[int]]:
        at = self._plan([Encoded(tuple(prompt), len(prompt)) for prompt in prompts])
        room = at.width + count
        turn = self._turn(at)
        x = functional.embedding(at.tokens, self.embedding)
        caches = []
        for layer in self.layers:
            x, saved = layer.forward(x, at, turn)
            _, k, v, _ = saved.attention
            caches.append(_Cache(self._roomy(k, room), self._roomy(v, room)))
        positions = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        x = x[positions.cumsum(0) - 1]
        made: list[list[int]] = [[] for _ in prompts]
        going = set(range(len(prompts)))
        for step in range(count):
            tokens = functional.linear(self.norm.forward(x)[0], self.head).argmax(-1)
            said = tokens.tolist()
            going = {index for index in going if said[index] != end}
            for index in going:
                made[index].append(said[index])
            if not going or step == count - 1:
                break
            # Those that have ended are computed on, unheard: the weights are read all the same.
            one = self._next(positions + step, room)
            x = functional.embedding(tokens, self.embedding)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer.extend(x, cache, one)
        return made

    def _roomy(self, padded: Tensor, room: int) -> Tensor:
        """Keys or values of a batch, with room for more; what stands in spare places is unseen."""
        wide = padded.view(-1, self.shape.kv_heads, *padded.shape[1:])
        roomy = wide.new_zeros(*wide.shape[:2], room, wide.shape[-1])
        roomy[:, :, : wide.shape[2]] = wide
        return roomy


def _chunks(seen: Tensor, at: Plan) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = [torch.split(each, _LOGIT_ROWS) for each in (seen, at.targets, at.share)]
    return list(zip(*parts, strict=True))


def _means(nats: Tensor, at: Plan) -> list[float]:
    means = torch.zeros(at.batch, device=nats.device).index_add_(0, at.owner, nats * at.share)
    return [float(mean) for mean in means.tolist()]


def _nats(rows: Tensor, head: Tensor, goal: Tensor) -> Tensor:
    logits = functional.linear(rows, head).float()
    return logits.logsumexp(-1) - logits.gather(1, goal[:, None])[:, 0]
