"""Makes orders ready beside the computation: a prompt becomes tokens, an adapter is checked.

An adapter is whatever lies under an address: it passes the checks of `leaves.bundle` each time that
it is read, and PEFT's own loader is never asked.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..bundle import BUNDLE_BYTES_MAX, AdapterFile, BundleError, check_form, read_adapter
from ..training.chassis import Chassis
from ..training.encode import Encoder
from .chat import render_chat
from .orders import Begin, Refused, Saying, Wanted, Warm
from .prepared import Prepared

CONTEXT = 2048  # tokens, of a chassis that does not say


class _RefusedError(Exception):
    """There will be no answer."""

    def __init__(self, kind: str, message: str, status: int, *, adapter: bool = False) -> None:
        super().__init__(message)
        self.kind, self.status, self.adapter = kind, status, adapter


class Preparing:
    """What is known of a chassis without its weights; and a thread that uses it."""

    def __init__(self, chassis: Chassis, tokens_max: int) -> None:
        """tokens_max: for which there is memory."""
        self._chassis = chassis
        self.tokenizer = Tokenizer.from_file(str(chassis.path / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._token_chars = max(map(len, self.tokenizer.get_vocab()), default=1)
        known = chassis.config.get("max_position_embeddings")
        self.context = min(known if isinstance(known, int) else CONTEXT, tokens_max)
        self.ends = _ends(chassis)

    def start(
        self,
        asked: queue.SimpleQueue[Begin | Warm],
        ready: Callable[[Prepared], None],
        say: Callable[[Saying], None],
        has: Callable[[str], bool],
    ) -> None:
        """Make ready what is asked, one after the other, for as long as the process lives.

        has: whether an adapter is at hand already.
        """

        def work() -> None:
            while True:
                order = asked.get()
                try:
                    ready(self._prepared(order, has))
                except _RefusedError as why:
                    say(Refused(order.id, why.kind, str(why), why.status, why.adapter))
                except Exception as problem:  # a hostile file may find what nobody thought of
                    say(Refused(order.id, "unexpected", f"{_UNEXPECTED} {type(problem).__name__}."))

        threading.Thread(target=work, daemon=True).start()

    def _prepared(self, order: Begin | Warm, has: Callable[[str], bool]) -> Prepared:
        tokens = self._tokens(order) if isinstance(order, Begin) else ()
        adapter = None
        if order.adapter is not None and not has(order.adapter.bundle):
            adapter = self._read(order.adapter)
        return Prepared(order, tokens, self.context - len(tokens), adapter)

    def _tokens(self, order: Begin) -> tuple[int, ...]:
        text = render_chat(order.messages) if order.prompt is None else order.prompt
        # Counting the tokens of megabytes takes seconds: what cannot fit is refused unread.
        if len(text) > self.context * self._token_chars:
            raise _RefusedError("too_long", self._too_long("far more"), 400)
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if not tokens:
            raise _RefusedError("empty", "The prompt is empty.", 400)
        if len(tokens) >= self.context:
            raise _RefusedError("too_long", self._too_long(f"{len(tokens)}"), 400)
        return tokens

    def _too_long(self, tokens: str) -> str:
        return (
            f"This model's maximum context length is {self.context} tokens, of which the answer "
            f"needs one at least; the prompt has {tokens}."
        )

    def _read(self, wanted: Wanted) -> AdapterFile:
        try:
            with Path(wanted.path).open("rb") as file:
                blob = file.read(BUNDLE_BYTES_MAX + 1)
            label, data = (checked := check_form(blob, self._chassis)).label, checked.adapter
            return read_adapter(data, self._chassis, targets=label.targets, rank=label.rank)
        except OSError:
            raise _RefusedError("adapter_gone", _GONE, 404, adapter=True) from None
        except BundleError as refused:
            message = f"The leaf's adapter is refused: {refused}."
            raise _RefusedError("adapter_refused", message, 422, adapter=True) from None


_GONE = "The leaf's adapter is not here any more."
_UNEXPECTED = "What was asked could not be made ready:"


def _ends(chassis: Chassis) -> frozenset[int]:
    """Tokens that end an answer: all that the chassis names, and the one that leaves learn."""
    ends: set[Any] = {Encoder(chassis.path).end}
    files = [chassis.path / "config.json", chassis.path / "generation_config.json"]
    for file in files:
        named = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        ends |= set(named) if isinstance(named, list) else {named}
    return frozenset(end for end in ends if isinstance(end, int))
