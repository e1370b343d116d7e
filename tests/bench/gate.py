"""How often luck passes the gate, and how often a real gain does: simulated leaves, real rules.

    python tests/bench/gate.py [--json FILE|-] [--leaves N] [--nights N] [--seed N]

Each night each leaf is trained again and judged on fresh held-out sessions, by the bounds, the
confidence of the look, the margin and `conclude` of the node itself. What is drawn:

- run-to-run noise: each training, of a leaf or of a control, is better or worse by a normal draw,
  of such a size that two style controls differ by 0.031 (root mean square; measured on three pairs
  that differed by 0.050, 0.016 and 0.011). Each night draws anew, which gives luck the most
  chances, and the adapter in force keeps what it drew. `warm`: a new version begins with the one
  before, as the node's do, and keeps 0.9 of its draw; then two versions differ by 0.01.
- noise of sessions: the gain over the control has a standard deviation of 0.449 nats over sessions,
  with a tail to the right (gamma of shape 2; `left` turns it over). Two versions of a leaf differ
  by 0.055. A quarter of the sessions come in pairs of near-copies, correlated by 0.5.
- the margin: each leaf is on a node of its own, that found it from three pairs of controls.

The parent is beaten by far, as a chassis is: what the style control lets pass is passed.

keys `{scenario}.`, a scenario being the true gain over the control and the held-out sessions;
`warm`, `left`, `calm` (standard deviation 0.15) and `rough` (run-to-run noise 0.05) vary what is
drawn:

won             share of leaves that won at least once in all nights
won_first       on the first night
mature          share that became MATURE
nights_to_win   median over those that won
regressed       share of later looks at which the new version was called REGRESSED
surely_worse    and at which that counts towards the archive: the whole interval says it
old_won         share that would have won by a percentile bootstrap at 95 % each night, margin 0.08
old_mature      and twice, with the last round IMPROVED or HOLDS

`coverage.{tail}.{sessions}.{alpha}`: how often `lower_bounds` lies above the true mean, over alpha.
The version before is compared by 1,000 draws of the bootstrap, where the gate takes 10,000.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from leaves.lifecycle import Outcome, Promoted, Rules, apply, conclude  # noqa: E402
from leaves.model import (  # noqa: E402
    DAY_S,
    Adapter,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Interval,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Verdict,
)
from leaves.training.alpha import confidence_at  # noqa: E402
from leaves.training.bounds import SHOWN, lower_bounds, percentiles  # noqa: E402
from leaves.training.evaluate import verdict_of  # noqa: E402
from leaves.training.margin import STYLE_MARGIN, margin_from  # noqa: E402

RULES = Rules()
RUN_NOISE = 0.031
SESSION_NOISE, VERSION_NOISE = 0.449, 0.055
WARM = 0.9  # of a version's draw that the next one keeps
PAIRED, CORRELATION = 0.25, 0.5
CONTROL_PAIRS = 3
RESAMPLES = 1_000
FAR = Interval(1.0, 0.9, 1.1)  # over the parent

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is true of all leaves of a simulation. gain: nats per token over the style control."""

    name: str
    gain: float
    held_out: int
    run_noise: float = RUN_NOISE
    session_noise: float = SESSION_NOISE
    tail: float = 1.0  # 1: to the right; -1: to the left
    warm: float = 0.0


SCENARIOS = (
    Scenario("null_100", 0.0, 100),
    Scenario("null_40", 0.0, 40),
    Scenario("null_20_left", 0.0, 20, tail=-1.0),
    Scenario("null_100_calm", 0.0, 100, session_noise=0.15),
    Scenario("null_100_rough", 0.0, 100, run_noise=0.05),
    Scenario("null_100_warm", 0.0, 100, warm=WARM),
    Scenario("gain_0.10_100", 0.1, 100),
    Scenario("gain_0.15_100", 0.15, 100),
    Scenario("gain_0.20_100", 0.2, 100),
    Scenario("gain_0.20_100_warm", 0.2, 100, warm=WARM),
    Scenario("gain_0.20_40", 0.2, 40),
    Scenario("gain_0.30_40", 0.3, 40),
)


class Sessions:
    """Draws what sessions differ by, in groups of one and of two."""

    def __init__(self, held_out: int, tail: float, random: np.random.Generator) -> None:
        pairs = int(held_out * PAIRED) // 2
        sizes = np.array([2.0] * pairs + [1.0] * (held_out - 2 * pairs))
        self.counts: Floats = sizes
        self._tail = tail
        self._random = random

    def sums(self, rows: int, deviation: float) -> Floats:
        """Summed differences of each group: shape (rows, groups), mean 0."""
        shape = (rows, len(self.counts))
        common = self._draw(shape) * np.sqrt(CORRELATION)
        own = self._draw(shape), self._draw(shape)
        first, second = (common + each * np.sqrt(1 - CORRELATION) for each in own)
        drawn: Floats = deviation * np.where(self.counts == 2, first + second, own[0])
        return drawn

    def _draw(self, shape: tuple[int, int]) -> Floats:
        drawn: Floats = self._tail * (self._random.gamma(2.0, 1.0, shape) - 2.0) / np.sqrt(2.0)
        return drawn


@dataclass(slots=True)
class Tally:
    """What has become of each leaf so far; a night of 0 means not yet."""

    won: NDArray[np.int64]
    mature: NDArray[np.int64]
    old_wins: NDArray[np.int64]
    old_mature: NDArray[np.bool_]
    regressed: int = 0
    surely_worse: int = 0
    later_looks: int = 0


def simulate(scenario: Scenario, leaves: int, nights: int, seed: int) -> dict[str, Any]:
    """Run one scenario; the same figures for the same arguments."""
    random = np.random.Generator(np.random.PCG64([seed, *scenario.name.encode()]))
    one_run = scenario.run_noise / np.sqrt(2)  # two such draws make a difference
    pairs = random.normal(0, scenario.run_noise, (leaves, CONTROL_PAIRS))
    margins = np.array([margin_from(list(row)) for row in pairs])
    sessions = Sessions(scenario.held_out, scenario.tail, random)
    zeros = np.zeros(leaves, dtype=np.int64)
    tally = Tally(zeros.copy(), zeros.copy(), zeros.copy(), zeros > 0)
    forests = [_forest() for _ in range(leaves)]
    in_force = random.normal(0, one_run, (2, leaves))  # what its run and its control's were worth
    for night in range(1, nights + 1):
        drawn = random.normal(0, one_run, (2, leaves))
        kept = scenario.warm if night > 1 else 0.0
        fresh, control = kept * in_force + np.sqrt(1 - kept**2) * drawn
        # Alike for both versions of a leaf; what differs between them comes on top.
        against = sessions.sums(leaves, scenario.session_noise)
        between = sessions.sums(leaves, VERSION_NOISE)
        new = against + (scenario.gain + fresh - control)[:, None] * sessions.counts
        old = against + between + (scenario.gain + in_force[0] - control)[:, None] * sessions.counts
        looks = _looks(night, new, old, sessions.counts, margins)
        for index, look in enumerate(looks):
            forests[index] = _conclude(forests[index], look, index, night, tally)
            if look.verdict in (Verdict.BETTER, Verdict.IMPROVED) or night == 1:
                in_force[:, index] = fresh[index], control[index]
        _old_rule(night, new, old, sessions.counts, looks, tally)
    return _figures(tally, leaves)


def _looks(
    night: int, new: Floats, old: Floats, counts: Floats, margins: Floats
) -> list[Evaluation]:
    """Judge all leaves; as in the classroom, the version that stays has to win the round."""
    confidence, total = confidence_at(night), counts.sum()
    lows = [
        np.minimum(lower_bounds(x, counts, confidence), percentiles(x, counts, [1 - SHOWN])[0])
        if night == 1  # later on the first is far below the second
        else lower_bounds(x, counts, confidence)
        for x in (new, old)
    ]
    change = new - old
    spread = percentiles(change, counts, [1 - SHOWN, SHOWN], RESAMPLES)
    means = change.sum(axis=1) / total
    out = []
    for index, margin in enumerate(margins):
        previous = None
        if night > 1:
            low, high = spread[:, index]
            previous = Interval(float(means[index]), float(low), float(high))
        verdict = verdict_of(previous, won=bool(lows[0][index] > margin))
        stays = verdict in (Verdict.HOLDS, Verdict.REGRESSED)
        low, mean = (float(x[index]) for x in (lows[stays], (new, old)[stays].sum(axis=1) / total))
        style = Interval(mean, low, 2 * mean - low)
        won = low > margin
        out.append(
            Evaluation(
                held_out=int(total),
                loss=2.0,
                over_parent=FAR,
                over_style=style,
                over_previous=previous,
                general_rise=None,
                won=won,
                verdict=verdict,
                at=Instant(night * DAY_S),
                confidence=confidence,
                attempt=night,
                margin=float(margin),
            )
        )
    return out


def _forest() -> Forest:
    leaf = Leaf(
        id=LeafId("00" * 16),
        name="simulated",
        stage=Stage.SEED,
        stage_since=Instant(0),
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=Instant(0),
        sessions=3_000,
        growth_per_day=100.0,
        centroid=np.ones(1, dtype=np.float32),
    )
    return Forest({leaf.id: leaf}, 1)


def _conclude(forest: Forest, look: Evaluation, index: int, night: int, tally: Tally) -> Forest:
    (id_,) = forest.leaves
    adapter = Adapter(f"{night:064x}", "", "", "", 8)
    now = Instant(night * DAY_S)
    for transition in conclude(forest, {id_: Outcome(look, adapter, "")}, now, RULES):
        forest = apply(forest, transition, now)
        if isinstance(transition, Promoted) and not tally.mature[index]:
            tally.mature[index] = night
    if look.won and not tally.won[index]:
        tally.won[index] = night
    if night > 1:
        tally.later_looks += 1
        tally.regressed += look.verdict is Verdict.REGRESSED
        tally.surely_worse += look.surely_worse
    return forest


def _old_rule(
    night: int, new: Floats, old: Floats, counts: Floats, looks: list[Evaluation], tally: Tally
) -> None:
    """The gate before: each night at 95 %, however many there were."""
    lows = [percentiles(x, counts, [1 - SHOWN], RESAMPLES)[0] for x in (new, old)]
    verdicts = [look.verdict for look in looks]
    stays = np.array([each in (Verdict.HOLDS, Verdict.REGRESSED) for each in verdicts])
    tally.old_wins += np.where(stays, lows[1], lows[0]) > STYLE_MARGIN
    last = np.array([each in (Verdict.HOLDS, Verdict.IMPROVED) for each in verdicts])
    tally.old_mature |= (tally.old_wins >= RULES.mature_wins) & last & (night > 1)


def _figures(tally: Tally, leaves: int) -> dict[str, Any]:
    won = tally.won[tally.won > 0]
    return {
        "won": round(len(won) / leaves, 4),
        "won_first": round(float((tally.won == 1).mean()), 4),
        "mature": round(float((tally.mature > 0).mean()), 4),
        "nights_to_win": float(np.median(won)) if len(won) else None,
        "regressed": round(tally.regressed / max(1, tally.later_looks), 4),
        "surely_worse": round(tally.surely_worse / max(1, tally.later_looks), 4),
        "old_won": round(float((tally.old_wins > 0).mean()), 4),
        "old_mature": round(float(tally.old_mature.mean()), 4),
    }


def coverage(seed: int, draws: int = 100_000) -> dict[str, Any]:
    """How many times too often the bound that decides is above the mean; 1 is what is asked for."""
    out: dict[str, Any] = {}
    for name, tail in (("right", 1.0), ("left", -1.0)):
        out[name] = {}
        for held_out in (20, 40, 100):
            random = np.random.Generator(np.random.PCG64([seed, held_out]))
            sessions = Sessions(held_out, tail, random)
            sums = sessions.sums(draws, SESSION_NOISE)
            out[name][held_out] = {
                f"{alpha:g}": round(
                    float((lower_bounds(sums, sessions.counts, 1 - alpha) > 0).mean()) / alpha, 2
                )
                for alpha in (0.025, 0.005, 0.001)
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--leaves", type=int, default=1_000)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for scenario in SCENARIOS:
        print(f"{scenario.name} …", file=sys.stderr)
        figures[scenario.name] = simulate(
            scenario, arguments.leaves, arguments.nights, arguments.seed
        )
    figures["coverage"] = coverage(arguments.seed)
    figures |= {"leaves": arguments.leaves, "nights": arguments.nights, "seed": arguments.seed}
    text = json.dumps(figures, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
