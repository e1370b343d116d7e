"""What could be read out of an adapter, measured before it is packed: figures for its label.

Whether they let it be offered to others is `publishing.audit`'s to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from leaves.bundle import GainFigures, Privacy, growths, read_adapter
from leaves.ports import EvaluateJob, Evaluator, Example, ProbeJob, Report, Schedule
from leaves.training import canaries, memorised
from leaves.training.chassis import Chassis
from leaves.training.encode import Encoder

from .capture.scrubber import SCRUB_RULES_VERSION
from .home import groove_cache
from .measuring import measured

if TYPE_CHECKING:
    from .app import App

_PLACES = 4  # of a published figure
_GROWTH_PLACES = 6  # after a training a layer has grown by 0.002 in the mean


def gate(app: App, schedule: Schedule, report: Report) -> Gate:
    """The gate of a home; tries the recipe on canaries if that was never done on this machine.

    schedule: of a leaf's first training. Retraining goes at half the rate and remembers less.
    """
    from leaves.training.child import ChildTrainer

    from .capture.second_scan import rules_version

    trainer = ChildTrainer(threads=app.threads())
    cache, evaluator = groove_cache(), app.evaluator
    recipe = canaries.measured(cache, app.chassis, schedule, trainer, evaluator, report)
    return Gate(app.chassis, evaluator, recipe, rules_version())


@dataclass(frozen=True, slots=True)
class Gate:
    """Looks into the adapters of one home; one gate for all leaves of a round."""

    chassis: Chassis
    evaluator: Evaluator
    recipe: canaries.Exposures | None  # of the schedule that leaves are trained by; None: not tried
    second_scan: str  # version of the rules that the round's sessions are clean under

    def examine(
        self,
        adapter: Path,
        train: Sequence[Example],
        unseen: Sequence[Example],
        schedule: Schedule,
        report: Report,
        liked: Sequence[Example] = (),
        paired: Collection[str] = (),
    ) -> Privacy:
        """Look for the texts that an adapter was trained on in it, and measure what tells them.

        unseen: texts of the same kind that it was not trained on, the held-out ones; without them
        no gap is measured. liked: texts of a preference step that came after the training, which
        are looked for as well. paired: ids of all sessions of that step, whose answers it was moved
        to or away from: those it was moved away from do not come out, and are learned from all the
        same, so they count. Takes a third of the time of a training, or less: texts too short to be
        found are not looked for.
        """
        encoder = Encoder(self.chassis.path)
        known = {(each.prompt, each.completion) for each in train}
        more = [each for each in liked if (each.prompt, each.completion) not in known]
        wanted = memorised.sought([*train, *more], encoder, schedule.tokens_max)
        longest: tuple[int, ...] = ()
        if wanted.examples:
            job = ProbeJob(self.chassis.path, adapter, wanted.examples, schedule.tokens_max)
            longest = self.evaluator.probe(job, report).longest
        read = read_adapter(adapter.read_bytes(), self.chassis)
        grown = growths(self.chassis, read.tensors, read.alpha / read.rank).values()
        passes = max(-(-schedule.steps * schedule.batch // max(len(train), 1)), 1)
        return Privacy(
            contributors=1,
            sessions=len({each.session for each in (*train, *liked)} | set(paired)),
            canary_exposure=self.recipe.at(passes) if self.recipe else None,
            scrub_rules=SCRUB_RULES_VERSION,
            second_scan=self.second_scan,
            probed=len(wanted.examples),
            verbatim=sum(run >= memorised.RUN_TOKENS for run in longest),
            verbatim_tokens=memorised.RUN_TOKENS,
            longest_run=max(longest, default=0),
            loss_gap=self._gap(adapter, train, unseen, report),
            growth_max=round(max(grown), _GROWTH_PLACES),
            growth_mean=round(fmean(grown), _GROWTH_PLACES),
            repeated=round(memorised.repeated(train), _PLACES),
            passes=passes,
            exposures=self.recipe.levels if self.recipe else (),
            exposure_bits_max=self.recipe.bits_max if self.recipe else None,
        )

    def _gap(
        self, adapter: Path, train: Sequence[Example], unseen: Sequence[Example], report: Report
    ) -> GainFigures | None:
        if not unseen:
            return None
        seen, other = memorised.drawn(train), memorised.drawn(unseen)
        adapters = (("parent", None), ("candidate", adapter))
        job = EvaluateJob(self.chassis.path, seen + other, adapters)
        losses = measured(self.evaluator, job, report)
        drops = [
            before - after
            for before, after in zip(losses["parent"], losses["candidate"], strict=True)
        ]
        gap = memorised.gap(drops[: len(seen)], drops[len(seen) :])
        return GainFigures(
            round(gap.mean, _PLACES), round(gap.low, _PLACES), round(gap.high, _PLACES)
        )
