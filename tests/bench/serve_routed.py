"""Routed answers: is `groove/auto` better than the chassis, and as good as a leaf named by hand?

Part of `serve.py`, which says what the figures mean. Each file of instructions is a domain with a
leaf of its own, trained as in `train.py`: 16 steps, seed 0, tempered. The home is a real one: the
train prompts are its sessions, their vectors make centroids, gates and neighbours. Each held-out
prompt is routed by the endpoint's own `Chooser`, and the loss of its reference answer is measured
under the adapter that was chosen, under the chassis, and under every leaf.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import trio  # noqa: E402
from train_domains import Domain, read, say  # noqa: E402

from leaves import model  # noqa: E402
from leaves.bundle import Privacy  # noqa: E402
from leaves.model import GrownFrom, Instant, Kind, Leaf, LeafId, Stage, leaf_id, unit  # noqa: E402
from leaves.ports import EvaluateJob, Example, Schedule, TrainJob  # noqa: E402
from leaves.training.chassis import Chassis  # noqa: E402
from leaves.training.child import ChildEvaluator, ChildTrainer  # noqa: E402
from leaves.training.package import Origin, package  # noqa: E402
from leaves.training.temper import temper  # noqa: E402
from node.api.choosing import Choice, Chooser  # noqa: E402
from node.api.config import ApiConfig  # noqa: E402
from node.api.counts import Counts  # noqa: E402
from node.app import App  # noqa: E402

STEPS = 16
SESSIONS = 3000  # of each domain, in the home: of 400 a quarter of `shell` was refused
HELD_OUT = 40  # of each domain, of the 100 that training is judged by
WITHIN = 1.05  # times the loss of the best leaf named by hand


@dataclass(frozen=True, slots=True)
class Grown:
    """A home with a trained leaf for each domain."""

    app: App
    domains: tuple[Domain, ...]
    leaves: dict[str, LeafId]
    adapters: dict[str, Path]
    work: Path  # what was measured stays there


def trained(domain: Domain, chassis: Chassis, work: Path) -> tuple[Path, int]:
    """The tempered adapter of a domain, and of how many tokens; one of before is taken again."""
    schedule = Schedule(steps=STEPS, seed=0)
    folder = work / f"{domain.name}-0-{STEPS}" / "leaf"
    folder.mkdir(parents=True, exist_ok=True)
    examples = domain.train[: schedule.steps * schedule.batch]
    leaf = ChildTrainer(threads=1).train(TrainJob(folder, chassis.path, examples, schedule))
    evaluator = ChildEvaluator(threads=1)
    try:
        leaf = temper(leaf, chassis, evaluator)
    finally:
        evaluator.close()
    say(f"{domain.name}: {leaf.tokens} tokens, strength {leaf.strength:.0%}")
    return leaf.adapter, leaf.tokens


def grown(files: Sequence[Path], home: Path, work: Path, sessions: int = SESSIONS) -> Grown:
    """Make the home at `home`, which must not exist."""
    os.environ["GROOVE_HOME"] = str(home)
    app = App.open(create=True)
    domains = tuple(read(path) for path in files)
    leaves: dict[str, LeafId] = {}
    adapters: dict[str, Path] = {}
    members: dict[str, LeafId] = {}
    for birth, domain in enumerate(domains):
        adapters[domain.name], tokens = trained(domain, app.chassis, work)
        own = leaf_id(app.origin, birth)
        leaves[domain.name] = own
        rows = domain.train[:sessions]
        vectors = app.encoder().encode([row.prompt for row in rows])
        ids = [f"{domain.name}-{number:06d}" for number in range(len(rows))]
        app.embeddings.append(ids, [20_000] * len(ids), vectors)
        members |= dict.fromkeys(ids, own)
        leaf = Leaf(
            id=own,
            name=domain.name,
            stage=Stage.SPROUT,
            stage_since=Instant(1),
            level=2,
            kind=Kind.SKILL,
            grown_from=GrownFrom.DATA,
            parent=None,
            lineage=(),
            created=Instant(1),
            sessions=len(rows),
            growth_per_day=5.0,
            centroid=unit(vectors.mean(axis=0, keepdims=True))[0],
            trainings=1,
            wins=1,
            adapter=_packed(app, own, domain.name, adapters[domain.name], tokens),
        )
        app.forests.change(leaf, "born", "by a bench", Instant(1))
    app.forests.assign(members)
    app.deploy_anew(lambda told: None)
    return Grown(app, domains, leaves, adapters, work)


def _packed(app: App, leaf: LeafId, name: str, path: Path, tokens: int) -> model.Adapter:
    privacy = Privacy(contributors=1, sessions=128, canary_exposure=None, scrub_rules="1")
    origin = Origin(leaf, name, "sft", "bfloat16", tokens, privacy, "bench")
    bundle = app.bundles.put(package(path.read_bytes(), app.chassis, origin, None))
    return model.Adapter(bundle, "c" * 64, "d" * 64, app.chassis.tag8.hex(), 8)


def routed(made: Grown, held_out: int = HELD_OUT) -> dict[str, Any]:
    """Figures by domain: losses in nats per token, and where the prompts went."""
    evaluator = ChildEvaluator(threads=1)
    figures: dict[str, Any] = {}
    try:
        for domain in made.domains:
            rows = domain.held_out[:held_out]
            choices = trio.run(_choices, made.app, [row.prompt for row in rows])
            figures[domain.name] = found = _judged(made, domain.name, rows, choices, evaluator)
            say(f"{domain.name}: {found}")
    finally:
        evaluator.close()
    return figures


async def _choices(app: App, prompts: Sequence[str]) -> list[Choice]:
    config, counts = ApiConfig(route_within_ms=10_000), Counts()
    chooser = Chooser(app, config, counts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chooser.run)
        await chooser.ready.wait()
        choices = [await chooser.auto(prompt, None) for prompt in prompts]
        nursery.cancel_scope.cancel()
    return choices


def _judged(
    made: Grown,
    name: str,
    rows: Sequence[Example],
    choices: Sequence[Choice],
    evaluator: ChildEvaluator,
) -> dict[str, Any]:
    losses = _losses(made, name, rows, evaluator)
    under = [choice.served_by if choice.adapter else "chassis" for choice in choices]
    auto = mean(losses[label][row] for row, label in enumerate(under))
    by_leaf = {label: mean(values) for label, values in losses.items() if label != "chassis"}
    best = min(by_leaf, key=by_leaf.__getitem__)
    bare = mean(losses["chassis"])
    return {
        "rows": len(rows),
        "chassis": round(bare, 4),
        "auto": round(auto, 4),
        "best": best,
        "best_loss": round(by_leaf[best], 4),
        "own_loss": round(by_leaf[name], 4),
        "over_best": round(auto / by_leaf[best] - 1, 4),
        "served": {label: under.count(label) for label in sorted(set(under))},
        "ok": auto < bare and auto <= WITHIN * by_leaf[best],
    }


def _losses(
    made: Grown, name: str, rows: Sequence[Example], evaluator: ChildEvaluator
) -> dict[str, list[float]]:
    """Of each row under the chassis and every leaf: a minute's work, so it is kept."""
    labels = (("chassis", None), *made.adapters.items())
    about = {label: _digest(path) for label, path in labels}
    sessions = [row.session for row in rows]
    kept = made.work / f"losses-{name}.json"
    if kept.exists():
        known = json.loads(kept.read_text())
        if known["sessions"] == sessions and about.items() <= known["about"].items():
            return {label: known["losses"][label] for label in about}
    job = EvaluateJob(made.app.chassis.path, tuple(rows), labels)
    found = {label: list(values) for label, values in evaluator.losses(job).by_label.items()}
    kept.write_text(json.dumps({"sessions": sessions, "about": about, "losses": found}))
    return found


def _digest(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
