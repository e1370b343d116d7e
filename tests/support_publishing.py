"""Homes whose leaves have matured and may be published, or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tiny_llama
from support_engine import Bench, TopicEvaluator, sessions

from leaves.bundle import Exposure
from leaves.model import Instant, Leaf, Stage
from leaves.ports import EvaluateJob, Losses, Probed, ProbeJob, Report, silent
from leaves.store import ForestStore
from leaves.training.canaries import Exposures
from leaves.training.chassis import open_chassis
from node.app import App
from node.consent import CURRENT_CONSENT_VERSION, Scope
from node.examining import Gate
from node.screening import screened

TRIED = Exposures((Exposure(1, 16, 1.2, 0), Exposure(10, 3, 9.0, 0)), 9.0, 384, 20_000, 60.0)


class Nothing:
    """A second scanner that finds nothing."""

    def scan(self, texts: Sequence[str]) -> list[str | None]:
        return [None for _ in texts]


@dataclass
class Probing(TopicEvaluator):
    """Finds what it is told to find in adapters; keeps what it was asked."""

    runs: int = 3
    easier: float = 0.0
    asked: list[ProbeJob] = field(default_factory=list)

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed:
        self.asked.append(job)
        return Probed((self.runs,) * len(job.examples), (80,) * len(job.examples))

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        by_label = {"parent": (3.0,) * len(job.examples)}
        seen = [2.5 - self.easier * (each.prompt == "seen?") for each in job.examples]
        return Losses(by_label | {"candidate": tuple(seen)}, (80,) * len(job.examples))


def grow(folder: Path, evaluator: TopicEvaluator) -> Path:
    """A home of three mature leaves."""
    chassis = tiny_llama.build(folder / "chassis")
    gate = Gate(open_chassis(chassis), evaluator, TRIED, "7")
    bench = Bench(folder / "home", chassis, long_sessions(100), gate=gate)
    bench.round().run(Instant(1_700_000_000))
    bench.captured = long_sessions(200)
    bench.round().run(Instant(1_700_100_000))
    bench.store.close()
    return bench.home


def opened(home: Path, novel: str = "auto") -> App:
    """A home whose sessions are clean, and that may publish."""
    home.chmod(0o700)
    (home / "groove.toml").write_text(f'[publish]\nnovel = "{novel}"\n')
    app = App(home)
    # Of another origin than the keys of this home.
    app.__dict__["forests"] = ForestStore(home / "leaves.db", b"\1" * 32)
    app.consent.record_consent(
        app.user_id, True, CURRENT_CONSENT_VERSION, scopes=(Scope.CAPTURE, Scope.PUBLISH)
    )
    screened(app.home, long_sessions(200), Nothing())  # type: ignore[arg-type]
    return app


def long_sessions(per_topic: int) -> list[Any]:
    """Sessions whose answers are long enough to be looked for."""
    return [
        replace(each, completion=f"{each.completion}, {each.session_id} " * 8)
        for each in sessions(per_topic)
    ]


def mature(app: App) -> list[Leaf]:
    return [each for each in app.forests.forest().live() if each.stage is Stage.MATURE]
