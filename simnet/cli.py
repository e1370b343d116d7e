"""`groove-sim`: play scenarios from seeds, and say which seed broke what.

Results go to stdout, how far it is to stderr, and that only on a terminal.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter
from rich.text import Text

from leaves.ports import Progress
from node.errors import MisuseError, OwnerError
from node.terminal import Terminal

from .runs import MUTABLE, NO_ERROR, Plan, Run, carry_out
from .scenarios import SCENARIOS
from .shorten import shorten
from .sweep import Kind, carry_out_all, totals

HELP = """Simulate a mesh of nodes: many replicas, one seed, faults, and what must hold.

First steps: `list`, then `run propagation`, then `run swarm --nodes 20 --seeds 0..99`, and
`sweep --seeds 0..9` for every scenario. A run is a function of its options alone: the line that a
broken run prints plays it again, on any machine. Exit codes: 0 all held, 1 something broke,
2 misused, 130 interrupted.
"""
NODES_MIN = 4
INTERRUPTED = 130

app = App(
    name="groove-sim",
    help=HELP,
    version=lambda: version("groove-node"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=()),
)

Nodes = Annotated[int, Parameter(help="How many.")]
Seeds = Annotated[str | None, Parameter(help="A range A..B, both ends included.")]
Share = Annotated[float, Parameter(help="Share of frames, from 0 to below 1, that suffer it.")]
Without = Annotated[
    str,
    Parameter(
        show_default=False, help=f"Faults to keep off, with commas between: {', '.join(MUTABLE)}."
    ),
]
Jobs = Annotated[int, Parameter(help="Runs at once; 0 is one a core.")]
Executor = Annotated[Kind, Parameter(help="Where they run: on this machine, or where Ray does.")]
All = Annotated[
    bool,
    Parameter(
        name="--all", negative="", show_default=False, help="Go on after the first broken run."
    ),
]
AsIs = Annotated[
    bool,
    Parameter(
        name="--as-is",
        negative="",
        show_default=False,
        help="Look for no smaller run that breaks alike.",
    ),
]
JsonTo = Annotated[
    str | None,
    Parameter(
        name="--json",
        allow_leading_hyphen=True,
        help="A file for the results, or - for standard output.",
    ),
]


@app.command(name="list")
def list_() -> None:
    """Name the scenarios, and say what each shows."""
    out = Terminal(False)
    width = max(map(len, SCENARIOS))
    for name, scenario in SCENARIOS.items():
        out.line(f"{name:<{width}}  {(scenario.__doc__ or '').splitlines()[0]}")


@app.command
def run(
    scenario: Annotated[str, Parameter(help="One of `groove-sim list`.")],
    *,
    nodes: Nodes = 20,
    seed: Annotated[int, Parameter(help="From which all chance comes.")] = 0,
    seeds: Seeds = None,
    loss: Share = 0.0,
    duplicate: Share = 0.0,
    delay: Share = 0.0,
    flip: Share = 0.0,
    without: Without = "",
    jobs: Jobs = 0,
    executor: Executor = "processes",
    keep_going: All = False,
    as_is: AsIs = False,
    plot: Annotated[Path | None, Parameter(help="A picture of the run, .png or .svg.")] = None,
    json_: JsonTo = None,
) -> int:
    """Play a scenario under one seed or many. Exits 1 if an invariant broke.

    What broke is looked into: fewer nodes and fewer faults are tried as long as the same invariant
    breaks, and the line that plays the smallest such run is printed with the events that led there.
    """
    _look([scenario], nodes, {"loss": loss, "duplicate": duplicate, "delay": delay, "flip": flip})
    kept_off = _faults(without)
    plans = [
        Plan(scenario, nodes, one, loss, duplicate, delay, flip, kept_off)
        for one in (_range(seeds) if seeds else [seed])
    ]
    if plot is not None:
        if len(plans) > 1:
            raise MisuseError("--plot draws one run: give --seed, not --seeds")
        return _Desk(json_, as_is).picture(plans[0], plot)
    return _Desk(json_, as_is).play(plans, jobs, executor, keep_going)


@app.command
def world(
    *,
    nodes: int = 6,
    nights: int = 8,
    seed: int = 0,
    json_: Annotated[str | None, Parameter(name="--json", allow_leading_hyphen=True)] = None,
) -> int:
    """Live whole nodes through some nights: capture, rounds, mesh, routers. Exits 1 if one broke.

    Parameters
    ----------
    nodes
        How many homes. Thirty through thirty nights take about twenty minutes.
    nights
        How many.
    seed
        From which all chance comes.
    json_
        A file to write the result to, or - for standard output.
    """
    from .world_story import play_world  # whole nodes: a second that no other command needs

    if nodes < 2 or nights < 1:
        raise MisuseError(f"a world is of 2 nodes and 1 night at least, not {nodes} and {nights}")
    run = play_world(nodes, nights, seed)
    if json_ is not None:
        text = json.dumps(run.as_json(), indent=2) + "\n"
        if json_ == "-":
            sys.stdout.write(text)
        else:
            Path(json_).write_text(text)
    if json_ != "-":
        out = Terminal(as_json=False)
        for line in run.told():
            out.line(line)
    return int(run.broken is not None)


@app.command
def sweep(
    *scenarios: Annotated[str, Parameter(help="Some of `groove-sim list`; none means all.")],
    seeds: Annotated[str, Parameter(help="A range A..B, both ends included.")] = "0..9",
    nodes: Nodes = 20,
    loss: Share = 0.0,
    jobs: Jobs = 0,
    executor: Executor = "processes",
    keep_going: All = False,
    as_is: AsIs = False,
    json_: JsonTo = None,
) -> int:
    """Play several scenarios, or all, under every seed of a range, on all cores.

    Seed by seed: all scenarios under the first, then under the next.
    """
    chosen = scenarios or tuple(SCENARIOS)
    _look(chosen, nodes, {"loss": loss})
    plans = [Plan(scenario, nodes, seed, loss) for seed, scenario in product(_range(seeds), chosen)]
    return _Desk(json_, as_is).play(plans, jobs, executor, keep_going)


class _Desk:
    """One command's results: on the terminal, in a file, or as JSON on standard output."""

    def __init__(self, json_to: str | None, as_is: bool) -> None:
        self._out = Terminal(as_json=json_to == "-")
        self._json_to = json_to
        self._as_is = as_is

    def play(self, plans: Sequence[Plan], jobs: int, executor: Kind, keep_going: bool) -> int:
        """Play them all, and tell what came of it; Ctrl-C tells of those that ran."""
        runs: list[Run] = []
        interrupted = False
        jobs = 1 if len(plans) == 1 else jobs
        try:
            with closing(carry_out_all(plans, jobs, executor, keep_going=keep_going)) as played:
                for one in played:
                    runs.append(one)
                    self._verdict(one, in_full=len(plans) == 1)
                    self._far(len(runs), len(plans))
        except KeyboardInterrupt:
            interrupted = True
            self._out.note(f"interrupted after {len(runs):,} of {len(plans):,} runs")
        if len(plans) > 1:
            self._amount(runs)
        self._write(runs, len(plans))
        if interrupted:
            return INTERRUPTED
        return self._explain(runs)

    def picture(self, plan: Plan, path: Path) -> int:
        from .plot import drawing

        look_on, draw = drawing(plan, path)
        one = carry_out(plan, [look_on])
        draw(one)
        self._verdict(one, in_full=True)
        self._out.note(f"drawn: {path}")
        self._write([one], 1)
        return self._explain([one])

    def _verdict(self, one: Run, *, in_full: bool) -> None:
        """The line of a run; of many only those that broke."""
        if not in_full and one.broken is None:
            return
        broken = one.broken is not None
        text = Text("broken" if broken else "ok", style="bold red" if broken else "green")
        text.append(
            f"  {one.scenario}  seed {one.seed}  {one.nodes} nodes  {one.events:,} events  "
            f"{one.simulated_s / 3600:.1f} h simulated",
            style="not bold default",
        )
        self._out.styled(text)
        if in_full:
            self._out.facts((f"  {key}", f"{value:,.10g}") for key, value in one.figures.items())
            if one.faults:
                faults = ", ".join(f"{kind} {count:,}" for kind, count in one.faults.items())
                self._out.line(f"  faults: {faults}")
        if one.broken is not None:
            self._out.line(f"  {one.broken}")
            if self._as_is or one.broken.invariant == NO_ERROR:
                for line in one.broken.tail:
                    self._out.line(f"    {line}")
            self._out.line(f"  replay: {one.replay}")

    def _explain(self, runs: Sequence[Run]) -> int:
        """Look into the first broken run. Returns the exit code."""
        broken = next((one for one in runs if one.broken is not None), None)
        if broken is None:
            return 0
        if self._as_is:
            return 1

        def tell(text: str) -> None:
            if sys.stderr.isatty():
                self._out.progress(Progress("look for a smaller run", 0, 0, text))

        try:
            shortest = shorten(broken, tell)
        except KeyboardInterrupt:
            self._out.note("interrupted; no smaller run was looked for")
            return INTERRUPTED
        if shortest.run.plan != broken.plan:
            self._out.line(f"  smallest of {shortest.plays} tried: {shortest.run.replay}")
            self._out.line(f"  {shortest.run.broken}")
        for line in shortest.story:
            self._out.line(f"    {line}")
        return 1

    def _far(self, done: int, of: int) -> None:
        if sys.stderr.isatty() and of > 1:
            self._out.progress(Progress("play", done, of, ""))

    def _amount(self, runs: Sequence[Run]) -> None:
        """What many runs amount to, and each figure's spread over them."""
        sums = totals(runs)
        by_name: dict[tuple[str, str], list[float]] = {}
        for one in runs:
            for key, value in one.figures.items():
                by_name.setdefault((one.scenario, key), []).append(value)
        if by_name:
            rows = [
                (*name, f"{median(values):,.4g}", f"{min(values):,.4g}", f"{max(values):,.4g}")
                for name, values in by_name.items()
                if not name[1].endswith("_total")
            ]
            self._out.table(("SCENARIO", "FIGURE", "MEDIAN", "LEAST", "MOST"), rows)
        said = sums["bound"] or f"{sums['violations']} broken"
        self._out.line(
            f"{sums['runs_played']:,} runs  {sums['simulated_h']:,} h simulated  "
            f"{sums['events']:,} events  {sums['invariant_checks']:,} checks  "
            f"{sum(sums['faults'].values()):,} faults  {sums['violations']} violations, {said}"
        )

    def _write(self, runs: Sequence[Run], asked: int) -> None:
        """One run is an object; many are an object with their totals and the list."""
        if self._json_to is None:
            return
        if asked == 1 and runs:
            result = runs[0].as_json()
        else:
            result = {**totals(runs), "runs_asked": asked, "runs": [one.as_json() for one in runs]}
        text = json.dumps(result, indent=2) + "\n"
        if self._json_to == "-":
            sys.stdout.write(text)
        else:
            Path(self._json_to).write_text(text)


def _look(scenarios: Iterable[str], nodes: int, shares: dict[str, float]) -> None:
    """Refuse what cannot be played."""
    for scenario in scenarios:
        if scenario not in SCENARIOS:
            close = difflib.get_close_matches(scenario, SCENARIOS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise MisuseError(
                f"no scenario {scenario!r}{meant}", next_step="`groove-sim list` names them."
            )
    if nodes < NODES_MIN:
        raise MisuseError(f"--nodes must be at least {NODES_MIN}, not {nodes}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise MisuseError(f"--{name} must be from 0 to below 1, not {share}")


def _faults(without: str) -> tuple[str, ...]:
    names = tuple(filter(None, without.split(",")))
    for name in names:
        if name not in MUTABLE:
            raise MisuseError(f"--without {name!r}: it may name {', '.join(MUTABLE)}")
    return names


def _range(seeds: str) -> range:
    first, dots, last = seeds.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise MisuseError(f"--seeds {seeds!r} is not a range like 0..99")
    return range(int(first), int(last) + 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `groove-sim`."""
    try:
        code: Any = app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.exit(code or 0)
    except cyclopts.CycloptsError as problem:
        Terminal.error(
            MisuseError(str(problem), next_step="`groove-sim --help` shows what it takes.")
        )
        sys.exit(2)
    except OwnerError as problem:
        Terminal.error(problem)
        sys.exit(problem.exit_code)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(0)
    except OSError as problem:
        Terminal.error(OwnerError(str(problem)))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
