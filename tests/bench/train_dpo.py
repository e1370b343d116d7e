"""Whether preference training makes a leaf tell better answers from worse ones, domain by domain.

    python tests/bench/train_dpo.py --data FILE [FILE…] [--json FILE|-] [--planted] [--seed N]

FILE holds rows of a prompt, a chosen and a rejected answer, with a split. The train split is cut by
a hash of the prompt: a fifth trains a supervised adapter on chosen answers, a tenth has its chosen
answers held out to see what preference training costs, the rest are the pairs that train. Judged on
the test split alone, at most 200 pairs, by the gate that a round uses. Settings were chosen on the
train split of the shell file. In child processes on one thread; shell commands take about 4 minutes
of one core, worked answers more.

dpo.{d}.accuracy_before  share of test pairs whose chosen answer has the smaller loss per token,
                         under the supervised adapter
dpo.{d}.accuracy_after   the same after preference training
dpo.{d}.gain             the difference, by pairs, with its one-sided 95 % bounds; whole prompts
       .ci_low, .ci_high are drawn
dpo.{d}.loss_rise        upper bound of what the held-out chosen answers lost, nats per token
dpo.{d}.verdict          better, not better, or too few
dpo.{d}.pairs            judged; .asks: different prompts among them; .trained: pairs seen
dpo.{d}.cpu_s            of all child processes
planted.{size}           with --planted, the same for a preference put into the first file's pairs:
                         both answers are the chosen one with a remark, and in `size` of the pairs
                         one kind of remark is liked; 0.5 is a coin, and must not pass
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from leaves.model import PreferenceEvaluation  # noqa: E402
from leaves.ports import EvaluateJob, Example, Preference, PreferenceJob, Schedule, TrainJob  # noqa: E402
from leaves.training.chassis import prepare_chassis  # noqa: E402
from leaves.training.child import ChildEvaluator, ChildTrainer  # noqa: E402
from leaves.training.preference import (  # noqa: E402
    BETA,
    answers,
    judge_preferences,
    paired,
    preference_schedule,
    sound,
)
from leaves.training.preprocess import normalised, stable  # noqa: E402
from node.home import groove_cache  # noqa: E402

TEST_PAIRS_MAX, SUPERVISED_MAX, HELD_OUT_MAX = 200, 128, 60
LIKED = ("checked", "portable", "tested", "reviewed")
DISLIKED = ("quick hack", "deprecated", "untested", "from memory")


@dataclass(frozen=True)
class Material:
    """One file, cut."""

    supervised: tuple[Example, ...]
    held_out: tuple[Example, ...]  # chosen answers that nothing trains
    train: tuple[Preference, ...]
    test: tuple[Preference, ...]


def material(file: Path, seed: int = 0) -> Material:
    """Read and cut a file; the seed moves the cuts of its train split."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    parts: dict[str, list[Preference]] = {}
    for row in rows:
        pair = Preference(
            row["prompt"], row["chosen"], row["rejected"], normalised(row["prompt"]), row["id"]
        )
        parts.setdefault(_part(row, seed), []).append(pair)
    cut = {name: sorted(sound(pairs), key=_order) for name, pairs in parts.items()}
    return Material(
        supervised=_chosen(cut["supervised"])[:SUPERVISED_MAX],
        held_out=_chosen(cut["held out"])[:HELD_OUT_MAX],
        train=tuple(cut["train"]),
        test=tuple(cut["test"][:TEST_PAIRS_MAX]),
    )


def _part(row: dict[str, Any], seed: int) -> str:
    if row["split"] == "test":
        return "test"
    at = int(stable(f"{seed} {normalised(row['prompt'])}")[:8], 16) / 2**32
    return "supervised" if at < 0.2 else "held out" if at < 0.3 else "train"


def _order(pair: Preference) -> str:
    return stable(pair.session)


def _chosen(pairs: Sequence[Preference]) -> tuple[Example, ...]:
    """One chosen answer to each ask."""
    first = {pair.group: pair for pair in reversed(pairs)}
    return tuple(Example(each.session, each.prompt, each.chosen) for each in first.values())


def planted(material: Material, share: float) -> Material:
    """The same asks with a known preference between remarks, in `share` of the pairs."""
    random = Random(7)

    def marked(pair: Preference) -> Preference:
        liked, other = random.choice(LIKED), random.choice(DISLIKED)
        if random.random() >= share:
            liked, other = other, liked
        answer = pair.chosen
        return replace(pair, chosen=f"{answer}  # {liked}", rejected=f"{answer}  # {other}")

    return replace(
        material,
        train=tuple(map(marked, material.train)),
        test=tuple(map(marked, material.test)),
    )


def supervise(cut: Material, work: Path, seed: int = 0) -> Path:
    """The adapter before preference training."""
    chassis = prepare_chassis(groove_cache())
    return (
        ChildTrainer().train(TrainJob(work, chassis, cut.supervised, Schedule(seed=seed))).adapter
    )


def judged(cut: Material, before: Path, work: Path, seed: int = 0) -> PreferenceEvaluation:
    """Train on the pairs and judge."""
    chassis = prepare_chassis(groove_cache())
    schedule = preference_schedule(Schedule(seed=seed))
    pairs = cut.train[: schedule.steps * schedule.batch]
    job = PreferenceJob(work, chassis, pairs, schedule, before, BETA)
    after = ChildTrainer().prefer(job).adapter
    examples = answers(cut.test) + cut.held_out
    asked = EvaluateJob(chassis, examples, (("before", before), ("after", after)))
    losses = ChildEvaluator().losses(asked).by_label
    count = 2 * len(cut.test)
    return judge_preferences(
        paired(losses["before"][:count]),
        paired(losses["after"][:count]),
        losses["before"][count:],
        losses["after"][count:],
        [pair.group for pair in cut.test],
    )


def figures(evaluation: PreferenceEvaluation, cut: Material) -> dict[str, Any]:
    schedule = preference_schedule(Schedule())
    return {
        "accuracy_before": round(evaluation.accuracy_before, 4),
        "accuracy_after": round(evaluation.accuracy_after, 4),
        "gain": round(evaluation.gain.mean, 4),
        "ci_low": round(evaluation.gain.low, 4),
        "ci_high": round(evaluation.gain.high, 4),
        "loss_rise": round(evaluation.loss_rise, 4),
        "verdict": evaluation.verdict.value,
        "pairs": evaluation.pairs,
        "asks": len({pair.group for pair in cut.test}),
        "trained": min(len(cut.train), schedule.steps * schedule.batch),
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(file: Path, folder: Path, seed: int = 0) -> dict[str, Any]:
    """One domain's figures."""
    began = _cpu_s()
    cut = material(file, seed)
    before = supervise(cut, folder / "sft", seed)
    found = figures(judged(cut, before, folder / "dpo", seed), cut)
    return {**found, "cpu_s": round(_cpu_s() - began)}


def run_planted(file: Path, folder: Path, shares: Sequence[float] = (0.8, 0.5)) -> dict[str, Any]:
    """The figures of a planted preference, and of a coin."""
    cut = material(file)
    before = supervise(cut, folder / "sft")
    out = {}
    for share in shares:
        marked = planted(cut, share)
        work = folder / f"planted-{share}"
        out[str(share)] = figures(judged(marked, before, work), marked)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--planted", action="store_true", help="a planted preference and a coin")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.planted:
            found["planted"] = run_planted(arguments.data[0], folder / "planted")
        else:
            found["dpo"] = {}
            for file in arguments.data:
                domain = file.name.split(".")[0]
                found["dpo"][domain] = run(file, folder / domain, arguments.seed)
                print(domain, json.dumps(found["dpo"][domain]), file=sys.stderr, flush=True)
    text = json.dumps(found, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
