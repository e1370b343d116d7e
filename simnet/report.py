"""What came of some runs: on the terminal, in a file, or as JSON on standard output.

Results go to stdout, how far it is to stderr: as a bar on a terminal, and elsewhere as a line now
and then, for the log of a long sweep must show that it lives.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gossip.events import Effect, Event
from leaves.ports import Progress
from node.terminal import Terminal

from .runs import NO_ERROR, Broken, Observe, Run
from .shorten import Shortest, shorten
from .sweep import totals
from .watch import Watcher

if TYPE_CHECKING:
    from .network import Network, Node
    from .world_story import WorldRun

    AnyRun = Run | WorldRun

INTERRUPTED = 130
UNREAD = 141  # as the shell has it for who was ended because nobody read on
NOTE_RUNS, NOTE_S = 100, 30.0  # between lines on how far it is, where no bar can be drawn
EVENTS_A_LOOK = 1000  # of one run, between looks at the clock


class Pace:
    """How far it is: a bar, or off a terminal a line every hundred runs or half a minute."""

    def __init__(self, out: Terminal, seconds: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._seconds = seconds
        self._bars = sys.stderr.isatty()
        self._noted_s = seconds()
        self._noted = 0

    def far(self, done: int, of: int, detail: str = "", *, phase: str = "play") -> None:
        """Say that so many are done; `of` 0 is one run, of which nobody knows how long it is."""
        if self._bars:
            self._out.progress(Progress(phase, done, of, detail))
            return
        now = self._seconds()
        if done - self._noted >= NOTE_RUNS or now - self._noted_s >= NOTE_S:
            self._noted_s, self._noted = now, done
            parts = (f"{done:,} of {of:,}" if of else "", detail)
            self._out.note("  ".join(filter(None, (phase, *parts))))

    @property
    def each_s(self) -> float:
        return 1.0 if self._bars else NOTE_S

    def of_one(self) -> Observe:
        """What looks on at one run, and says how far it is."""
        return lambda net: _Ticker(net, self)


class _Ticker(Watcher):
    def __init__(self, net: Network, pace: Pace) -> None:
        super().__init__(net)
        self._pace = pace
        self._said_s = time.monotonic()

    def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
        if self.net.events % EVENTS_A_LOOK == 0:
            now = time.monotonic()
            if now - self._said_s >= self._pace.each_s:
                self._said_s = now
                detail = f"{self.net.now / 3600:.1f} h simulated, {self.net.events:,} events"
                self._pace.far(0, 0, detail)


class Desk:
    """One command's results. figures: those of all frames and bytes are shown as well."""

    def __init__(self, json_to: str | None, *, as_is: bool, figures: bool = False) -> None:
        self._out = Terminal(as_json=json_to == "-")
        self._json_to = json_to
        self._as_is = as_is
        self._figures = figures
        self._runs: list[AnyRun] = []
        self.pace = Pace(self._out)

    def show(self, asked: int, played: Generator[AnyRun, None, None]) -> int:
        """Tell of all that are played, and what came of it. Returns the exit code.

        Ctrl-C tells of those that ran. Who reads no further still gets the code of what is known.
        """
        try:
            return self._show(asked, played)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if self._first_broken() is not None:
                return 1
            return 0 if len(self._runs) == asked else UNREAD

    def note(self, text: str) -> None:
        self._out.note(text)

    def _show(self, asked: int, played: Generator[AnyRun, None, None]) -> int:
        interrupted = False
        try:
            with closing(played):
                if asked > 1:
                    self.pace.far(0, asked)
                for one in played:
                    self._runs.append(one)
                    self._verdict(one, in_full=asked == 1)
                    if asked > 1:
                        broken = sum(run.broken is not None for run in self._runs)
                        self.pace.far(len(self._runs), asked, f"{broken} broken" if broken else "")
        except KeyboardInterrupt:
            interrupted = True
            self._out.note(f"interrupted after {len(self._runs):,} of {asked:,} runs")
        if asked > 1:
            self._amount()
        broken_run = self._first_broken()
        if broken_run and len(self._runs) < asked and not interrupted:
            self._out.note(f"{len(self._runs):,} of {asked:,} played; --all goes on")
        shortest = None
        if isinstance(broken_run, Run) and not self._as_is and not interrupted:
            try:
                shortest = self._shortest(broken_run)
            except KeyboardInterrupt:
                interrupted = True
                self._out.note("interrupted; no smaller run was looked for")
        self._write(asked, shortest)
        if interrupted:
            return INTERRUPTED
        return int(broken_run is not None)

    def _first_broken(self) -> AnyRun | None:
        return next((one for one in self._runs if one.broken is not None), None)

    def _verdict(self, one: AnyRun, *, in_full: bool) -> None:
        """The line of a run; of many only those that broke."""
        broken = one.broken
        if not in_full and broken is None:
            return
        text = Text("broken" if broken else "ok", style="bold red" if broken else "green")
        text.append(f"  {one.headline}", style="not bold default")
        self._out.styled(text)
        if in_full:
            figures = one.figures if self._figures else one.results
            self._out.facts((f"  {key}", f"{value:,.10g}") for key, value in figures.items())
            if one.faults:
                faults = ", ".join(f"{kind} {count:,}" for kind, count in one.faults.items())
                self._out.line(f"  faults: {faults}")
        if broken is not None:
            self._told(broken)
            self._out.line(f"  replay: {_replay(one)}")
        sys.stdout.flush()

    def _told(self, broken: Broken) -> None:
        self._out.line(f"  {broken}")
        self._out.line(f"  should hold: {broken.statement}")
        if self._as_is or broken.invariant == NO_ERROR:
            for line in broken.tail:
                self._out.line(f"    {line}")

    def _shortest(self, broken: Run) -> Shortest:
        """Look into a broken run, and tell what explains it."""

        def tell(text: str) -> None:
            self.pace.far(0, 0, text, phase="look for a smaller run")

        shortest = shorten(broken, tell)
        if shortest.run.plan != broken.plan:
            self._out.line(f"  smallest of {shortest.plays} tried: {_replay(shortest.run)}")
            self._out.line(f"  {shortest.run.broken}")
        for line in shortest.story:
            self._out.line(f"    {line}")
        return shortest

    def _amount(self) -> None:
        """What many runs amount to, and each figure's spread over them."""
        sums = totals(self._runs)
        by_name: dict[tuple[str, str], list[float]] = {}
        for one in self._runs:
            for key, value in (one.figures if self._figures else one.results).items():
                by_name.setdefault((one.scenario, key), []).append(value)
        rows = [
            (*name, f"{median(values):,.4g}", f"{min(values):,.4g}", f"{max(values):,.4g}")
            for name, values in by_name.items()
        ]
        if rows:
            self._out.table(("SCENARIO", "FIGURE", "MEDIAN", "LEAST", "MOST"), rows)
        broken = f"{sums['violations']} broken"
        self._out.line(
            f"{sums['runs_played']:,} runs  {sums['simulated_h']:,} h simulated  "
            f"{sums['events']:,} events  {sums['invariant_checks']:,} checks  "
            f"{sum(sums['faults'].values()):,} faults  "
            + (f"{broken}: {sums['bound']}" if sums["bound"] else broken)
        )

    def _write(self, asked: int, shortest: Shortest | None) -> None:
        """One run is an object; many are an object with their totals and the list."""
        if self._json_to is None:
            return
        told = [one.as_json() for one in self._runs]
        if shortest is not None:
            first = next(one for one in told if one["broken"])
            first["broken"] |= _looked_into(shortest)
        result: dict[str, Any] = {**totals(self._runs), "runs_asked": asked, "runs": told}
        if asked == 1 and told:
            result = told[0]
        text = json.dumps(result, indent=2) + "\n"
        if self._json_to == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            Path(self._json_to).write_text(text)


def _replay(run: AnyRun) -> str:
    return f"{run.replay}  # groove-node {version('groove-node')}"


def _looked_into(shortest: Shortest) -> dict[str, Any]:
    run = shortest.run
    return {
        "smallest": {
            "replay": run.replay,
            "text": run.broken and run.broken.text,
            "trace_hash": run.trace_hash,
            "tried": shortest.plays,
        },
        "story": list(shortest.story),
    }
