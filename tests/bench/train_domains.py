"""Leaves for domains of instructions, against the chassis and against a style control.

Part of `train.py`, which says what the figures mean. Each file is a domain. Its leaf learns from
rows of the train split, as many as the schedule sees, and is judged on 100 rows of the test split;
the style control sees as many rows, as long, of all the other domains. One thread.
"""

from __future__ import annotations

import gzip
import json
import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

from leaves.model import Evaluation, Instant, Interval  # noqa: E402
from leaves.ports import EvaluateJob, Example, Schedule, Trained, TrainJob  # noqa: E402
from leaves.training.answers import measure_right  # noqa: E402
from leaves.training.chassis import Chassis, open_chassis, prepare_chassis  # noqa: E402
from leaves.training.checks import parse_check  # noqa: E402
from leaves.training.child import ChildEvaluator, ChildTrainer  # noqa: E402
from leaves.training.evaluate import judge  # noqa: E402
from leaves.training.general import general_examples  # noqa: E402
from leaves.training.preprocess import normalised, stable, style_control  # noqa: E402
from leaves.training.temper import temper  # noqa: E402
from node.home import groove_cache  # noqa: E402

HELD_OUT = 100
OF_OTHERS = 4  # times as many rows of each other domain as are wanted to choose lengths from


@dataclass(frozen=True, slots=True)
class Domain:
    name: str
    train: tuple[Example, ...]  # all that could be learned from
    held_out: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """One domain under one seed. right: before, after, of how many."""

    evaluation: Evaluation
    tokens: int
    cpu_s: float  # of the leaf's training
    strength: float
    right: tuple[float, float, int] | None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(path: Path) -> Domain:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sides: dict[str, dict[str, Example]] = {"train": {}, "test": {}}
    for row in sorted(rows, key=lambda row: stable(row["id"])):
        check = parse_check(row["check"]) if row.get("check") else None
        example = Example(row["id"], row["prompt"], row["completion"], check=check)
        sides[row["split"]].setdefault(normalised(row["prompt"]), example)
    held = [example for key, example in sides["test"].items() if key not in sides["train"]]
    return Domain(rows[0]["domain"], tuple(sides["train"].values()), tuple(held[:HELD_OUT]))


def domains(
    files: Sequence[Path], work: Path, *, seeds: int, steps: int
) -> Iterator[dict[str, Any]]:
    """Yield the figures of all domains as they grow: the last ones are whole.

    work: keeps adapters; a bench that was ended goes on from there.
    """
    chassis = open_chassis(prepare_chassis(groove_cache()))
    all_domains = [read(path) for path in files]
    found: dict[str, list[Result]] = {domain.name: [] for domain in all_domains}
    for seed in range(seeds):
        for domain in all_domains:
            others = [other for other in all_domains if other is not domain]
            result = _one(domain, others, seed, steps, chassis, work)
            found[domain.name].append(result)
            e = result.evaluation
            say(
                f"{domain.name} seed {seed}: {e.verdict}, {e.over_parent.mean:+.3f} over the "
                f"chassis, {e.over_style.mean:+.3f} [{e.over_style.low:+.3f}] over the control, "
                f"other text {e.general_rise:+.3f}, strength {result.strength:.0%}, "
                f"{result.tokens} tokens in {result.cpu_s:.0f} CPU s, right {result.right}"
            )
            yield {name: _figures(results) for name, results in found.items() if results}


def _one(
    domain: Domain,
    others: Sequence[Domain],
    seed: int,
    steps: int,
    chassis: Chassis,
    work: Path,
) -> Result:
    schedule = Schedule(steps=steps, seed=seed)
    wanted = schedule.steps * schedule.batch
    train = domain.train[:wanted]
    outside = [example for other in others for example in other.train[: OF_OTHERS * wanted]]
    control = style_control(train, outside, {})  # all rows are of one source: instructions
    evaluator = ChildEvaluator(threads=1)
    folder = work / f"{domain.name}-{seed}-{steps}"
    style, _ = _trained(folder / "style", control, schedule, chassis)
    leaf, cpu_s = _trained(folder / "leaf", train, schedule, chassis)
    leaf = temper(leaf, chassis, evaluator)
    adapters = (("parent", None), ("style", style.adapter), ("candidate", leaf.adapter))
    held = evaluator.losses(EvaluateJob(chassis.path, domain.held_out, adapters)).by_label
    general = EvaluateJob(chassis.path, general_examples(), (adapters[0], adapters[2]))
    rises = evaluator.losses(general).by_label
    evaluation = judge(held, general=rises, at=Instant(0))
    right = None
    if seed == 0 and any(example.check for example in domain.held_out):
        answered = measure_right(evaluator, chassis.path, None, leaf.adapter, domain.held_out)
        if answered is not None:
            right = (answered.before, answered.after, answered.answers)
    evaluator.close()
    return Result(evaluation, leaf.tokens, cpu_s, leaf.strength, right)


def _trained(
    folder: Path, examples: Sequence[Example], schedule: Schedule, chassis: Chassis
) -> tuple[Trained, float]:
    """The adapter, and CPU seconds of its training; of one that was done before, by the clock."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _cpu_s()
    done = (folder / "result.json").exists()
    job = TrainJob(folder, chassis.path, tuple(examples), schedule)
    trained = ChildTrainer(threads=1).train(job)
    return trained, trained.seconds if done else _cpu_s() - before


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    evaluations = [result.evaluation for result in results]
    middle = sorted(evaluations, key=lambda e: e.over_style.low)[(len(evaluations) - 1) // 2]
    right = results[0].right
    return {
        **_interval(middle.over_parent),
        "vs_style": round(middle.over_style.mean, 4),
        "vs_style_low": round(middle.over_style.low, 4),
        "verdict": middle.verdict.value,
        "general_rise": round(middle.general_rise or 0.0, 4),
        "strength": statistics.median(result.strength for result in results),
        "tokens": results[0].tokens,
        "train_cpu_s": round(statistics.median(result.cpu_s for result in results), 1),
        "right": None if right is None else [round(rate, 4) for rate in right[:2]],
        "answers": 0 if right is None else right[2],
        "seeds": [
            {
                "gain": round(e.over_parent.mean, 4),
                "vs_style": round(e.over_style.mean, 4),
                "vs_style_low": round(e.over_style.low, 4),
                "general_rise": round(e.general_rise or 0.0, 4),
                "verdict": e.verdict.value,
            }
            for e in evaluations
        ],
    }


def _interval(gain: Interval) -> dict[str, float]:
    return {
        "gain": round(gain.mean, 4),
        "ci_low": round(gain.low, 4),
        "ci_high": round(gain.high, 4),
    }
