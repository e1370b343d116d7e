"""Which tokens are computed next: answers join and leave between two steps of the chassis.

A step computes one more token of every answer that is being made, and part of the prompts that are
being read; so nobody waits for another's end, and a cancelled answer costs no more than the step
that it is in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from .kept import Kept, KeptTexts
from .orders import Begin, Begun, Cancel, Made, Refused, Saying, Warm
from .prepared import Prepared
from .sampling import Sampler, Speech
from .stepping import Segment, Stepper

PROMPT_ROWS = 128  # tokens of prompts in one step, if nobody is being answered
PROMPT_ROWS_IN_COMPANY = 32  # so that those who are see each token soon
_GONE_MAX = 256  # cancelled ones that are remembered, in case they are still being made ready


@dataclass(slots=True)
class _Answer:
    """One that is being made."""

    id: int
    bundle: str | None
    worn: Any
    memory: Any
    bytes: int  # reserved of the engine's memory
    unread: deque[int]  # of the prompt, or the one token that was said last
    read: list[int]  # what its memory holds
    sampler: Sampler
    speech: Speech
    tokens_max: int
    tokens: int = 0


class _Waiting(NamedTuple):
    order: Begin
    ready: Prepared
    bundle: str | None


class Engine:
    """Makes answers with one chassis. All of it runs in one thread."""

    def __init__(
        self,
        stepper: Stepper,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        say: Callable[[Saying], None],
        again: Callable[[Begin | Warm], None],
        *,
        adapters_resident: int,
        memory_bytes: int,
    ) -> None:
        """ends: tokens that end an answer. memory_bytes: for keys and values of all answers.

        again: hears of an order whose adapter is not at hand any more.
        """
        self._stepper, self._tokenizer, self._ends, self._say = stepper, tokenizer, ends, say
        self._again = again
        self._adapters_resident = adapters_resident
        self._free_bytes = memory_bytes
        self._worn: OrderedDict[str, Any] = OrderedDict()
        self._line: deque[_Waiting] = deque()
        self._gone: deque[int] = deque(maxlen=_GONE_MAX)
        self._answers: dict[int, _Answer] = {}
        self._kept = KeptTexts(stepper)

    @property
    def busy(self) -> bool:
        return bool(self._answers or self._line)

    def has(self, bundle: str) -> bool:
        """True if this adapter is at hand. May be asked from another thread."""
        return bundle in self._worn

    def take(self, ready: Prepared | Cancel) -> bool:
        """Carry out an order, or put it in line until there is memory.

        Returns True if an adapter was put on, which is when a chassis could change.
        """
        if isinstance(ready, Cancel):
            self._cancel(ready.id)
            return False
        order, adapter = ready.order, ready.adapter
        if order.id in self._gone:
            return False
        bundle = order.adapter.bundle if order.adapter else None
        if bundle is not None and bundle not in self._worn:
            if adapter is None:  # it was at hand when the order was looked at
                self._again(order)
                return False
            self._make_room()
            self._worn[bundle] = self._stepper.put_on(adapter)
        if bundle is not None:
            self._worn.move_to_end(bundle)
        self._say(Begun(order.id, len(ready.tokens), len(self._worn)))
        if isinstance(order, Begin):
            self._line.append(_Waiting(order, ready, bundle))
            self._join()
        return adapter is not None

    def _make_room(self) -> None:
        """Let go of the adapters that were used longest ago, but of none that somebody wears."""
        used = {each.bundle for each in self._answers.values()}
        used |= {each.bundle for each in self._line}
        spare = [each for each in self._worn if each not in used]
        for each in spare[: max(0, len(self._worn) + 1 - self._adapters_resident)]:
            self._stepper.take_off(self._worn.pop(each))

    def _cancel(self, id_: int) -> None:
        self._gone.append(id_)  # it may not be ready yet
        self._line = deque(each for each in self._line if each.order.id != id_)
        if id_ in self._answers:
            self._leave(self._answers[id_])
        self._join()

    def step(self) -> None:
        """One more token of every answer, and some of the prompts."""
        chosen = self._chosen()
        segments = [
            Segment(one.memory, tokens, one.worn, speaks=not one.unread) for one, tokens in chosen
        ]
        for (one, _), logits in zip(chosen, self._stepper.step(segments), strict=True):
            if logits is not None:
                self._spoke(one, logits)

    def _chosen(self) -> list[tuple[_Answer, Sequence[int]]]:
        """Who gets on in this step, and by which tokens, which are taken from its unread ones."""
        reading = [one for one in self._answers.values() if not one.tokens]
        in_company = len(reading) < len(self._answers)
        counts = _shared(reading, PROMPT_ROWS_IN_COMPANY if in_company else PROMPT_ROWS)
        chosen: list[tuple[_Answer, Sequence[int]]] = []
        for one in self._answers.values():
            tokens = [one.unread.popleft() for _ in range(1 if one.tokens else counts[one.id])]
            if tokens:
                one.read += tokens
                chosen.append((one, tokens))
        return chosen

    def _spoke(self, one: _Answer, logits: torch.Tensor) -> None:
        if not bool(torch.isfinite(logits).all()):
            self._leave(one)
            self._say(Refused(one.id, "not_finite", _NOT_FINITE, adapter=one.worn is not None))
            return
        token = one.sampler.pick(logits)
        one.tokens += 1
        ended = token in self._ends
        text = "" if ended else one.speech.add(token)
        if ended or one.tokens >= one.tokens_max:
            self._leave(one)
            self._say(Made(one.id, one.tokens, text, "stop" if ended else "length"))
            return
        one.unread.append(token)
        self._say(Made(one.id, one.tokens, text))

    def _leave(self, one: _Answer) -> None:
        del self._answers[one.id]
        self._free_bytes += self._kept.keep(Kept(one.bundle, one.read, one.memory, one.bytes))
        self._join()

    def _join(self) -> None:
        """Take up whoever is first in line, while there is memory."""
        while self._line:
            order, ready, bundle = self._line[0]
            room = min(order.tokens_max, ready.room)
            tokens = len(ready.tokens) + room
            wanted = self._stepper.memory_bytes(tokens)
            # With a seed nothing may depend on what was asked before, be it by rounding alone.
            known = self._kept.find(bundle, ready.tokens) if order.seed is None else None
            free = self._free_bytes + (known.bytes if known else 0)
            free += self._kept.let_go(wanted - free, but=known)
            self._free_bytes = free - (known.bytes if known else 0)
            if wanted > free:
                return
            self._line.popleft()
            self._free_bytes = free - wanted
            read, memory = self._kept.take(known, ready.tokens, tokens)
            self._answers[order.id] = _Answer(
                id=order.id,
                bundle=bundle,
                worn=self._worn[bundle] if bundle else None,
                memory=memory,
                bytes=wanted,
                unread=deque(ready.tokens[len(read) :]),
                read=read,
                sampler=Sampler(order.temperature, order.top_p, order.seed),
                speech=Speech(self._tokenizer),
                tokens_max=room,
            )


def _shared(reading: Sequence[_Answer], rows: int) -> dict[int, int]:
    """How many tokens of each prompt are read now, by the answer's number.

    Half is for the prompts that are nearest their end, so that a short question never waits for a
    book; the rest for those that came first, so that the book is read in the end.
    """
    counts = {one.id: 0 for one in reading}
    nearest = sorted(reading, key=lambda one: len(one.unread))
    left = 0
    for order, share in ((nearest, rows // 2), (reading, rows - rows // 2)):
        left += share
        for one in order:
            more = min(left, len(one.unread) - counts[one.id])
            counts[one.id] += more
            left -= more
    return counts


_NOT_FINITE = "The answer came to no numbers any more: the leaf does not suit what was asked."
