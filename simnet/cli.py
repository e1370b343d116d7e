"""`groove-sim`: play scenarios from seeds, and say which seed broke what."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from .runs import Run, play
from .scenarios import SCENARIOS

app = App(
    name="groove-sim",
    help="Simulate a mesh of nodes: many replicas, one seed, faults, and what must hold.",
    version=lambda: version("groove-node"),
)


@app.command(name="list")
def list_() -> None:
    """List the scenarios."""
    width = max(map(len, SCENARIOS))
    for name, scenario in SCENARIOS.items():
        print(f"{name:<{width}}  {(scenario.__doc__ or '').splitlines()[0]}")


@app.command
def run(
    scenario: str,
    *,
    nodes: int = 20,
    seed: int = 0,
    seeds: str | None = None,
    loss: float = 0.0,
    json_: Annotated[str | None, Parameter(name="--json", allow_leading_hyphen=True)] = None,
) -> int:
    """Play a scenario under one seed or many. Exits 1 if an invariant broke.

    Parameters
    ----------
    scenario
        One of `groove-sim list`.
    nodes
        How many.
    seed
        From which all chance comes.
    seeds
        A range A..B to play instead, both ends included.
    loss
        Share of frames that are lost, from 0 to 1.
    json_
        A file to write the results to, or - for standard output.
    """
    if problem := _misuse(scenario, nodes, loss):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        chosen = _range(seeds) if seeds else [seed]
    except ValueError:
        print(f"error: --seeds {seeds!r} is not a range like 0..99", file=sys.stderr)
        return 2
    runs = []
    for one in chosen:
        runs.append(play(scenario, nodes=nodes, seed=one, loss=loss))
        if json_ != "-":
            _show(runs[-1])
        if runs[-1].broken:
            break
    if json_ is not None:
        _write(runs, json_)
    return int(any(one.broken for one in runs))


def _misuse(scenario: str, nodes: int, loss: float) -> str | None:
    if scenario not in SCENARIOS:
        return f"no scenario {scenario!r}: `groove-sim list` names them"
    if nodes < 4:
        return f"--nodes must be at least 4, not {nodes}"
    if not 0 <= loss < 1:
        return f"--loss must be from 0 to below 1, not {loss}"
    return None


def _range(seeds: str) -> range:
    first, _, last = seeds.partition("..")
    return range(int(first), int(last) + 1)


def _show(run: Run) -> None:
    figures = " ".join(f"{key}={value:g}" for key, value in run.figures.items())
    verdict = "broken" if run.broken else "ok"
    print(
        f"{verdict}  {run.scenario}  seed {run.seed}  {run.events:,} events  "
        f"{run.simulated_s / 3600:.1f} h simulated  {figures}"
    )
    if run.broken is not None:
        print(f"  {run.broken}", *(f"    {line}" for line in run.broken.tail), sep="\n")
        print(f"  replay: {run.replay}")


def _write(runs: list[Run], where: str) -> None:
    """One run is an object; many are an object with the list and its totals."""
    if len(runs) == 1:
        result = runs[0].as_json()
    else:
        result = {
            "scenario": runs[0].scenario,
            "seeds": len(runs),
            "broken": sum(one.broken is not None for one in runs),
            "runs": [one.as_json() for one in runs],
        }
    text = json.dumps(result, indent=2) + "\n"
    if where == "-":
        sys.stdout.write(text)
    else:
        Path(where).write_text(text)


def main() -> None:
    """The entry point of `groove-sim`."""
    app()


if __name__ == "__main__":
    main()
