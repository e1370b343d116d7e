"""`groove-sim`: play scenarios from seeds, and say which seed broke what."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from node.errors import MisuseError, OwnerError
from node.terminal import Terminal

from .report import INTERRUPTED, Desk
from .runs import MUTABLE, Plan, Run, carry_out
from .scenarios import SCENARIOS
from .sweep import Kind, carry_out_all

if TYPE_CHECKING:
    from .world_story import WorldRun

HELP = """Simulate a mesh of nodes: many replicas, one seed, faults, and what must hold.

First steps: `list`, then `run propagation`, then `run swarm --nodes 20 --seeds 0..99`, and
`sweep --seeds 0..9` for every scenario. A run is a function of its options alone: the line that a
broken run prints plays it again, on any machine. Exit codes: 0 all held, 1 something broke,
2 misused, 130 interrupted, 141 nobody read on before all was played.
"""
NODES_MIN = 4

app = App(
    name="groove-sim",
    help=HELP,
    version=lambda: version("groove-node"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=()),
)

Nodes = Annotated[int, Parameter(help="How many.")]
Seed = Annotated[
    int | None, Parameter(show_default=False, help="From which all chance comes; else 0.")
]
Seeds = Annotated[
    str | None, Parameter(help="Instead of --seed: one or a range A..B, both ends included.")
]
Loss = Annotated[float, Parameter(help="Share of frames, from 0 to below 1, that are lost.")]
Duplicate = Annotated[float, Parameter(help="Share that arrive twice.")]
Delay = Annotated[float, Parameter(help="Share that come up to a minute late.")]
Flip = Annotated[float, Parameter(help="Share of bulk frames in which one bit is turned.")]
Figures = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Show totals of frames and bytes as well."),
]
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
    seed: Seed = None,
    seeds: Seeds = None,
    loss: Loss = 0.0,
    duplicate: Duplicate = 0.0,
    delay: Delay = 0.0,
    flip: Flip = 0.0,
    without: Without = "",
    jobs: Jobs = 0,
    executor: Executor = "processes",
    keep_going: All = False,
    as_is: AsIs = False,
    figures: Figures = False,
    plot: Annotated[Path | None, Parameter(help="A picture: .png, .svg or .pdf.")] = None,
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
        for one in _seeds(seed, seeds)
    ]
    _writable("--json", json_)
    desk = Desk(json_, as_is=as_is, figures=figures)
    if plot is None:
        return desk.show(len(plans), _played(desk, plans, _cores(jobs), executor, keep_going))
    if len(plans) > 1:
        raise MisuseError("--plot draws one run: give --seed, not --seeds")
    _writable("--plot", str(plot))
    return desk.show(1, _drawn(desk, plans[0], plot))


@app.command
def world(
    *,
    nodes: Annotated[
        int, Parameter(help="How many homes. 30 through 30 nights take some twenty minutes.")
    ] = 6,
    nights: Annotated[int, Parameter(help="How many.")] = 8,
    seed: Seed = None,
    seeds: Seeds = None,
    keep_going: All = False,
    figures: Figures = False,
    json_: JsonTo = None,
) -> int:
    """Live whole nodes through some nights: capture, rounds, mesh, routers. Exits 1 if it broke."""
    if nodes < 2 or nights < 1:
        raise MisuseError(f"a world is of 2 nodes and 1 night at least, not {nodes} and {nights}")
    chosen = _seeds(seed, seeds)
    _writable("--json", json_)
    desk = Desk(json_, as_is=True, figures=figures)
    return desk.show(len(chosen), _lived(desk, nodes, nights, chosen, keep_going))


@app.command
def sweep(
    *scenarios: Annotated[str, Parameter(help="Some of `groove-sim list`; none means all.")],
    seeds: Annotated[str, Parameter(help="One or a range A..B, both ends included.")] = "0..9",
    nodes: Nodes = 20,
    loss: Loss = 0.0,
    jobs: Jobs = 0,
    executor: Executor = "processes",
    keep_going: All = False,
    as_is: AsIs = False,
    figures: Figures = False,
    json_: JsonTo = None,
) -> int:
    """Play several scenarios, or all, under every seed of a range, on all cores.

    Seed by seed: all scenarios under the first, then under the next.
    """
    chosen = scenarios or tuple(SCENARIOS)
    _look(chosen, nodes, {"loss": loss})
    _writable("--json", json_)
    plans = [Plan(scenario, nodes, seed, loss) for seed, scenario in product(_range(seeds), chosen)]
    desk = Desk(json_, as_is=as_is, figures=figures)
    return desk.show(len(plans), _played(desk, plans, _cores(jobs), executor, keep_going))


def _played(
    desk: Desk, plans: Sequence[Plan], jobs: int, executor: Kind, keep_going: bool
) -> Generator[Run, None, None]:
    if len(plans) == 1 and executor == "processes":  # here, where it can say how far it is
        yield carry_out(plans[0], [desk.pace.of_one()])
    else:
        yield from carry_out_all(plans, jobs, executor, keep_going=keep_going)


def _drawn(desk: Desk, plan: Plan, path: Path) -> Generator[Run, None, None]:
    from .plot import drawing

    look_on, draw = drawing(plan, path)
    one = carry_out(plan, [look_on, desk.pace.of_one()])
    draw(one)
    desk.note(f"drawn: {path}")
    yield one


def _lived(
    desk: Desk, nodes: int, nights: int, seeds: Sequence[int], keep_going: bool
) -> Generator[WorldRun, None, None]:
    from .world_story import play_world  # whole nodes: a second that no other command needs

    def tell(night: int) -> None:
        desk.pace.far(night, nights, phase="nights")

    for seed in seeds:
        run = play_world(nodes, nights, seed, tell=tell)
        yield run
        if run.broken and not keep_going:
            return


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


def _seeds(seed: int | None, seeds: str | None) -> Sequence[int]:
    if seeds is None:
        return [seed or 0]
    if seed is not None:
        raise MisuseError("--seed is one and --seeds is many: give one of them")
    return _range(seeds)


def _range(seeds: str) -> range:
    first, dots, last = seeds.partition("..")
    last = last if dots else first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise MisuseError(f"--seeds {seeds!r} is neither a seed nor a range like 0..99")
    return range(int(first), int(last) + 1)


def _cores(jobs: int) -> int:
    if jobs < 0:
        raise MisuseError(f"--jobs must be 0, for one a core, or more, not {jobs}")
    return jobs


def _writable(option: str, path: str | None) -> None:
    """Refuse now what could not be written after the run."""
    if path is None or path == "-":
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise MisuseError(f"{option} {path}: there is no folder {str(folder)!r}")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise MisuseError(f"{option} {path}: cannot be written")


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
