"""What a round would do, and about how long it would take, before it is begun.

Each round writes down how long its steps took here and for how much work; the next plan goes by
the last of them. Where nothing was measured yet it is a guess, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MEASURED_ROUNDS = 10  # the last ones; a new machine or chassis is soon believed
GUESSED_S = {  # a unit of work on two cores of 2020, with the packaged models
    "embed": 0.02,  # a session
    "cluster": 0.002,  # a session, of all
    "place": 0.0005,  # a session, of all
    "train": 240.0,  # a leaf, with its style control and the judging of both
    "deploy": 10.0,
}
STEPS = tuple(GUESSED_S)

Took = dict[str, list[float]]  # step -> seconds, and units of work: sessions, leaves or tables


@dataclass(frozen=True, slots=True)
class Expected:
    """One step of a round, and how long it is likely to take."""

    step: str
    units: int
    minutes: float
    measured: bool  # in former rounds of this home; else it is a guess


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round would do: rows of (what, leaf's name, why)."""

    to_embed: int
    sessions: int
    transitions: tuple[tuple[str, str, str], ...]
    trainings: tuple[tuple[str, str, str], ...]
    note: str
    mode: str = ""  # whether all sessions were looked at or the new ones alone, and why
    expected: tuple[Expected, ...] = ()

    @property
    def minutes(self) -> float:
        return sum(step.minutes for step in self.expected)


def with_step(state: Mapping[str, Any], step: str, seconds: float, units: int) -> dict[str, Any]:
    """A round's state with what a step took added to it; a step may come in several parts."""
    took = {name: list(figures) for name, figures in state.get("took", {}).items()}
    before = took.get(step, [0.0, 0])
    took[step] = [round(before[0] + seconds, 1), before[1] + units]
    return {**state, "took": took}


def expect(units: Mapping[str, int], states: Iterable[Mapping[str, Any]]) -> tuple[Expected, ...]:
    """How long so much work of each step is likely to take.

    states: of the last rounds, newest first. A step counts as measured once it took a second.
    """
    tooks: list[Took] = [state.get("took", {}) for state in states][:MEASURED_ROUNDS]
    out = []
    for step in STEPS:
        count = units.get(step, 0)
        if not count:
            continue
        seconds = sum(took[step][0] for took in tooks if step in took)
        done = sum(took[step][1] for took in tooks if step in took)
        measured = seconds >= 1.0 and done > 0
        each = seconds / done if measured else GUESSED_S[step]
        out.append(Expected(step, count, round(each * count / 60, 2), measured))
    return tuple(out)


WHAT = {
    "embed": "embedding {units:,} sessions",
    "cluster": "clustering {units:,} sessions",
    "place": "placing new sessions among {units:,}",
    "train": "training {units:,} leaves",
    "deploy": "a new routing table",
}


def told(expected: Iterable[Expected]) -> list[tuple[str, str, str]]:
    """Rows to read: step, minutes, by what."""
    return [
        (
            WHAT[each.step].format(units=each.units),
            "< 1 min" if each.minutes < 1 else f"{each.minutes:,.0f} min",
            "as measured here" if each.measured else "a guess: nothing measured here yet",
        )
        for each in expected
    ]
