"""Training by hand: the five steps of one leaf's training, and what each came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App as Command
from cyclopts import Parameter

from node.app import App
from node.notes import Step
from node.terminal import Terminal

from .base import AsJson, command

HELP = """Train one leaf by hand, step by step; a round does the same by itself.

The order is preprocess, sft, dpo, evaluate, package; each step goes on from the one before and can
be stopped and run again. Nothing in the forest changes until `package --adopt`, but the count of
looks: a verdict that you were shown counts, adopted or not, and each one makes the next win harder.
A step prints what it did in numbers. Needs the scope `train`; no round runs meanwhile.
"""

train = Command(name="train", help=HELP)
command.command(train)

Adopt = Annotated[
    bool,
    Parameter(negative="", help="Put what was packed in force, as a round would: it is journaled."),
]


@train.command(name="preprocess")
def preprocess(name: str, /, *, json: AsJson = False) -> None:
    """Split a leaf's sessions into those that train it and those that judge it: the newest.

    Copies go, and near-copies of what trains do not judge. What has judged never trains, and what
    has trained never judges, in any round. Done again, it splits anew; the steps after it follow.
    """
    _steps(name, [Step.PREPROCESS], json)


@train.command(name="sft")
def sft(name: str, /, *, json: AsJson = False) -> None:
    """Train the leaf's adapter and, on other sessions of the same form, its style control."""
    _steps(name, [Step.SFT], json)


@train.command(name="dpo")
def dpo(name: str, /, *, json: AsJson = False) -> None:
    """Move the adapter towards answers that you liked, if there are pairs; judged on its own."""
    _steps(name, [Step.DPO], json)


@train.command(name="evaluate")
def evaluate(name: str, /, *, json: AsJson = False) -> None:
    """Judge the adapter against its parent, its style control and the version in force.

    A verdict counts as a look at the leaf; one on the same adapter and sessions counts once.
    """
    _steps(name, [Step.EVALUATE], json)


@train.command(name="package")
def package(name: str, /, *, adopt: Adopt = False, json: AsJson = False) -> None:
    """Pack the adapter as a bundle, after a look for what it gives away; prints its address."""
    _steps(name, [Step.PACKAGE], json, adopt=adopt)


@train.command(name="all")
def all_(name: str, /, *, adopt: Adopt = False, json: AsJson = False) -> None:
    """Do all five steps in their order."""
    _steps(name, list(Step), json, adopt=adopt)


def _steps(name: str, steps: Sequence[Step], json: bool, *, adopt: bool = False) -> None:
    from node import by_hand  # loads the scrubber, which no other command may have to wait for

    out = Terminal(json)
    app = App.open()
    documents: dict[str, Any] = {}
    closing = ""
    for done in by_hand.run(app, name, steps, out.event, out.progress, adopt=adopt):
        if len(steps) > 1:
            out.line(f"{done.step}:")
        out.facts(done.facts)
        documents[done.step.value] = done.figures
        closing = done.next_step
    document = documents if len(steps) > 1 else documents[steps[0].value]
    out.done({**document, "adopted": adopt, "events": out.events}, "" if adopt else closing)
