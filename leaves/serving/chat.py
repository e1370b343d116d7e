"""Messages as the text that a chassis reads: the form it was trained in, turn after turn.

A chat of one message is to the letter what training and evaluation make of a prompt, so that a
leaf is asked in the form it learned. As there, the chassis' default system message is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..training.preprocess import plain

_ROLES = {"system": "system", "developer": "system", "assistant": "assistant"}


def render_chat(messages: Iterable[Mapping[str, Any]]) -> str:
    """The turns, and the beginning of the answer's own.

    A role that the chassis does not know (tool, function) speaks as the user. Marks of the chassis
    inside a text are broken up, so that no text can end its own turn.
    """
    turns = []
    for message in messages:
        role = _ROLES.get(str(message.get("role")), "user")
        turns.append(f"<|im_start|>{role}\n{plain(message.get('content') or '')}<|im_end|>\n")
    return "".join((*turns, "<|im_start|>assistant\n"))
