"""`groove-sim`: what it prints, writes and draws, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gossip.events import Effect, Event
from gossip.ports import PeerId
from node.terminal import Terminal
from simnet import scenarios
from simnet.cli import main, run
from simnet.disk import SimDisk
from simnet.invariants import STATEMENTS, InvariantError
from simnet.network import Network, Node
from simnet.plot import BROKE, Recorder
from simnet.report import Pace
from simnet.runs import Plan, carry_out, play
from simnet.scenarios import SCENARIOS
from simnet.shorten import shorten, story

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
PNG = b"\x89PNG\r\n\x1a\n"


def sim(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simnet.cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def sim_code(line: str) -> int:
    return exit_code(*line.split())


# Listing and running ------------------------------------------------------------------------------


def test_the_command_lists_every_scenario_and_what_it_shows() -> None:
    listed = sim("list")
    assert listed.returncode == 0
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(SCENARIOS)
    assert all(len(line.split()) > 3 for line in lines)


def test_one_run_is_written_as_json_with_all_that_was_checked(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    done = sim("run", "retraction", "--nodes", "6", "--seed", "3", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"trace_hash", "invariants", "faults", "figures", "broken", "replay"} <= set(result)
    assert result["invariants"]["retraction"]["checks"] > 0
    assert result["replay"] == "groove-sim run retraction --nodes 6 --seed 3"
    assert result["broken"] is None
    assert "\x1b" not in done.stdout + done.stderr  # colours are for terminals


def test_many_runs_are_written_with_their_totals(capsys: pytest.CaptureFixture[str]) -> None:
    line = "run retraction --nodes 6 --seeds 0..2 --loss 0.1 --jobs 1 --json -"
    assert exit_code(*line.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seeds"] == result["runs_played"] == result["runs_asked"] == 3
    assert result["violations"] == 0
    assert result["bound"] is None  # three runs show next to nothing
    assert result["invariant_checks"] > 0 and result["simulated_h"] >= 0
    assert any("loss" in kind for kind in result["faults"])
    assert [one["seed"] for one in result["runs"]] == [0, 1, 2]
    assert (
        result["runs"][1]["trace_hash"] == play("retraction", nodes=6, seed=1, loss=0.1).trace_hash
    )


def test_a_sweep_plays_every_named_scenario_under_every_seed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "sweep propagation fork --nodes 4 --seeds 5..6 --jobs 1 --json -"
    assert exit_code(*line.split()) == 0
    result = json.loads(capsys.readouterr().out)
    played = [(one["seed"], one["scenario"]) for one in result["runs"]]
    assert played == [
        (5, "propagation"),
        (5, "fork"),
        (6, "propagation"),
        (6, "fork"),
    ]


def test_the_summary_of_many_runs_says_how_much_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sim_code("run propagation --nodes 4 --seeds 0..9 --jobs 1") == 0
    shown = capsys.readouterr().out
    assert "10 runs" in shown and "0 broken: at most 26 % of runs break (95 %)" in shown
    assert "t100_s" in shown and "_total" not in shown


def test_a_run_that_held_is_one_line_with_its_figures_and_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sim_code("run propagation --nodes 4 --seed 3 --loss 0.2") == 0
    verdict, *facts = capsys.readouterr().out.splitlines()
    trace = play("propagation", nodes=4, seed=3, loss=0.2).trace_hash
    assert verdict.startswith("ok  propagation  seed 3  4 nodes  ")
    assert verdict.endswith(f"  trace {trace[:12]}")
    assert any(line.startswith("  t100_s") for line in facts)
    assert facts[-1].startswith("  faults: F1 loss ")
    assert not any("_total" in line for line in facts)


def test_totals_of_frames_and_bytes_are_shown_if_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sim_code("run propagation --nodes 4 --figures") == 0
    assert "bulk_bytes_total" in capsys.readouterr().out


def test_a_single_seed_may_be_given_as_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim_code("run propagation --nodes 4 --seeds 5") == 0
    assert "propagation  seed 5" in capsys.readouterr().out


def test_a_long_sweep_off_a_terminal_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = iter([0.0, 1.0, 2.0, 3.0, 40.0])
    pace = Pace(Terminal(as_json=True), lambda: next(seconds))
    for done in (0, 99, 100, 101):
        pace.far(done, 2000, "1 broken")
    said = capsys.readouterr().err.splitlines()
    assert said == ["play  100 of 2,000  1 broken", "play  101 of 2,000  1 broken"]


def test_who_reads_no_further_still_gets_the_code_of_what_broke() -> None:
    line = ["run", "propagation", "--nodes", "4", "--seeds", "0..3", "--jobs", "1", "--all"]
    process = subprocess.Popen(
        [sys.executable, "-c", _BREAKING, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, beside = process.communicate(timeout=60)
    assert process.returncode == 1, beside
    assert b"Traceback" not in beside


_BREAKING = """
import sys
from simnet import cli, scenarios
from simnet.invariants import InvariantError
def breaking(net):
    raise InvariantError(net.seed, "liveness", "as it was told to")
scenarios.SCENARIOS["propagation"] = breaking
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("run nowhere", "no scenario 'nowhere'"),
        ("run fork --nodes 2", "--nodes must be at least 4, not 2"),
        ("run fork --loss 1", "--loss must be from 0 to below 1, not 1.0"),
        ("run fork --flip -0.1", "--flip must be from 0 to below 1, not -0.1"),
        ("run fork --seeds x", "--seeds 'x' is neither a seed nor a range"),
        ("run fork --seeds 9..3", "--seeds '9..3' is neither a seed nor a range"),
        ("run fork --seed 1 --seeds 0..2", "give one of them"),
        ("run fork --jobs -1", "--jobs must be 0, for one a core, or more, not -1"),
        ("run fork --json /nonexistent/a.json", "there is no folder '/nonexistent'"),
        ("run fork --plot /nonexistent/a.png", "there is no folder '/nonexistent'"),
        ("sweep fork --json /nonexistent/a.json", "there is no folder '/nonexistent'"),
        ("world --json /nonexistent/a.json", "there is no folder '/nonexistent'"),
        ("world --nights 0", "at least, not 6 and 0"),
        ("run fork --without rain", "--without 'rain': it may name loss"),
        ("run fork --seeds 0..3 --plot a.png", "--plot draws one run"),
        ("run fork --plot a.txt", "must end in .png"),
        ("run fork --bogus", "--bogus"),
        ("sweep nowhere", "no scenario 'nowhere'"),
    ],
)
def test_misuse_is_told_and_exits_with_two(
    arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments.split()) == 2
    assert problem in capsys.readouterr().err


def test_ctrl_c_tells_what_ran_and_exits_with_130(tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    line = ["run", "propagation", "--nodes", "4", "--seeds", "0..100000", "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", _SAYING_WHEN_IT_RUNS, *line, "--json", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGINT)
    said, beside = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in beside and "of 100,001 runs" in beside
    result = json.loads(out.read_text())
    assert 0 < result["runs_played"] < result["runs_asked"] == 100_001
    assert "0 broken" in said


@pytest.mark.slow
def test_ctrl_c_in_a_world_ends_it_with_130_and_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SAYING_WHEN_IT_LIVES, "world", "--nodes", "2", "--nights", "999"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "lives\n"
    process.send_signal(signal.SIGINT)
    _, beside = process.communicate(timeout=60)
    assert process.returncode == 130, beside
    assert "interrupted after 0 of 1 runs" in beside and "Traceback" not in beside


_SAYING_WHEN_IT_LIVES = """
import sys
from simnet import cli, world_story
real = world_story.Nights.__call__
async def saying(story, world, nursery):
    print("lives", flush=True)
    await real(story, world, nursery)
world_story.Nights.__call__ = saying
cli.main(sys.argv[1:])
"""


_SAYING_WHEN_IT_RUNS = """
import sys
from simnet import cli, scenarios
real = scenarios.SCENARIOS["propagation"]
def saying(net):
    if net.seed == 2:
        print("runs", flush=True)
    return real(net)
scenarios.SCENARIOS["propagation"] = saying
cli.main(sys.argv[1:])
"""


# What breaks --------------------------------------------------------------------------------------


def faulty(net: Network) -> dict[str, float]:
    """With six nodes or more, the last one must not hear what the first one publishes."""
    net.run(5)
    first, *_, last = net.nodes.values()
    net.publish(first.name)
    if len(net.nodes) >= 6:
        heard = net.run_until(lambda node: _has(node, first), 600.0, nodes=[last])
        if heard is not None:
            raise InvariantError(net.seed, "liveness", f"{last.name}: it heard")
    return {"ran": 1.0}


def _has(node: Node, author: Node) -> bool:
    return node.replica is not None and node.replica.view(author.origin).head is not None


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scenarios.SCENARIOS, "faulty", faulty)


@pytest.mark.usefixtures("fault")
def test_a_broken_run_shows_its_seed_what_led_there_and_how_to_replay_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("faulty", nodes=12, seed=2, loss=0.05) == 1
    shown = capsys.readouterr().out
    assert "seed 2: liveness: n0011: it heard" in shown
    assert f"should hold: {STATEMENTS['liveness']}" in shown
    assert "replay: groove-sim run faulty --nodes 12 --seed 2 --loss 0.05" in shown
    smaller = next(line for line in shown.splitlines() if line.startswith("  smallest of"))
    replay, _, by = smaller.partition(": groove-sim ")[2].partition("  # ")
    assert by.startswith("groove-node ")
    assert replay == "run faulty --nodes 6 --seed 2"
    assert exit_code(*replay.split(), "--as-is") == 1  # the line that was printed breaks as well


@pytest.mark.usefixtures("fault")
def test_the_json_of_a_broken_run_has_the_smallest_such_run_and_its_story(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("faulty", nodes=12, seed=2, json_="-") == 1
    broken = json.loads(capsys.readouterr().out)["broken"]
    assert broken["invariant"] == "liveness"
    assert broken["smallest"]["replay"] == "groove-sim run faulty --nodes 6 --seed 2"
    assert broken["story"] == list(story(Plan("faulty", nodes=6, seed=2)))


@pytest.mark.usefixtures("fault")
def test_many_runs_that_stopped_at_the_first_broken_one_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("faulty", nodes=6, seeds="0..9", jobs=1, as_is=True) == 1
    said = capsys.readouterr()
    assert "1 of 10 played; --all goes on" in said.err
    assert "SCENARIO" not in said.out  # a table without a row
    assert said.out.splitlines()[-1].endswith("  1 broken")


@pytest.mark.usefixtures("fault")
def test_the_smallest_run_breaks_the_same_invariant_and_is_found_again() -> None:
    run = play("faulty", nodes=16, seed=3, duplicate=0.2)
    assert run.broken is not None
    shortest = shorten(run)
    assert shortest.run.plan == Plan("faulty", nodes=6, seed=3)
    assert shortest.run.broken is not None
    assert shortest.run.broken.invariant == "liveness"
    assert shortest == shorten(run)


@pytest.mark.usefixtures("fault")
@pytest.mark.parametrize("seed", range(5))
def test_the_story_goes_from_what_was_said_to_where_it_broke(seed: int) -> None:
    lines = story(Plan("faulty", nodes=8, seed=seed))
    assert 0 < len(lines) <= 30, f"seed {seed}"
    end = next(n for n, line in enumerate(lines) if line.endswith("<- here"))
    assert all(line.startswith("of n0000 ") for line in lines[end + 1 :]), f"seed {seed}: {lines}"
    times = [float(line.split()[0]) for line in lines[: end + 1]]
    assert times == sorted(times), f"seed {seed}"
    text = "\n".join(lines)
    # The author signs once a peer has echoed; what the last node then hears comes from there.
    assert "n0000  hears Echo" in text, f"seed {seed}: {text}"
    assert "n0007  hears" in text and "holds more of n0000" in text, f"seed {seed}: {text}"


def test_what_no_smaller_run_breaks_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_large(net: Network) -> dict[str, float]:
        net.run(1)
        if len(net.nodes) >= 9:
            raise InvariantError(net.seed, "liveness", "too many")
        return {}

    monkeypatch.setitem(scenarios.SCENARIOS, "only-large", only_large)
    run = play("only-large", nodes=9, seed=1)
    shortest = shorten(run)
    assert shortest.run == run
    assert shortest.plays > 0


def test_a_smaller_network_that_raises_for_reasons_of_its_own_is_no_smaller_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(net: Network) -> dict[str, float]:
        net.run(1)
        if len(net.nodes) < 6:
            raise ValueError("too few to draw from")
        raise KeyError("the fault")

    monkeypatch.setitem(scenarios.SCENARIOS, "raising", raising)
    shortest = shorten(play("raising", nodes=9, seed=1))
    assert shortest.run.plan == Plan("raising", nodes=6, seed=1)


class _Raiser:
    """Stands for a core that raises."""

    def handle(self, node: Node, event: Event) -> list[Effect]:
        raise KeyError(type(event).__name__)


def test_the_story_of_a_core_that_raised_ends_with_the_event_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(net: Network) -> dict[str, float]:
        net.run(5)
        net.nodes[PeerId("n0001")].hostile = _Raiser()
        net.run(600)
        return {}

    monkeypatch.setitem(scenarios.SCENARIOS, "raising", raising)
    end = story(Plan("raising", nodes=4, seed=1))[-1]
    assert "  n0001  " in end and end.endswith(": raises  <- here"), end


def test_a_frame_that_its_sender_never_sent_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forged(net: Network) -> dict[str, float]:
        net.run(5)
        net.inject(PeerId("n0000"), PeerId("n0001"), b"nobody's")
        net.run(0)
        raise InvariantError(net.seed, "liveness", "n0001: it heard")

    monkeypatch.setitem(scenarios.SCENARIOS, "forged", forged)
    lines = story(Plan("forged", nodes=4, seed=1))
    [told] = [line for line in lines if line.endswith("<- here")]
    assert "hears garbage from n0000 (n0000 sent no such frame: altered on the way" in told


def test_the_story_of_what_a_crash_lost_goes_from_the_hearing_to_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(net: Network) -> dict[str, float]:
        """The last node hears of a retraction, crashes, and starts from an empty disk."""
        net.run(5)
        first, *_, last = net.nodes.values()
        leaf = bytes(range(16))
        net.retract(first.name, leaf)
        net.run(30)
        net.crash(last.name)
        last.disk = SimDisk()
        net.start(last.name)
        return {}

    monkeypatch.setitem(scenarios.SCENARIOS, "forgetful", forgetful)
    lines = story(Plan("forgetful", nodes=4, seed=1))
    heard = [line for line in lines if "  n0003  hears" in line and "of n0000 is withdrawn" in line]
    assert heard, lines
    crash = next(n for n, line in enumerate(lines) if line.endswith("n0003  crash"))
    assert lines.index(heard[-1]) < crash
    assert lines[crash + 1].endswith("n0003  start  <- here")
    assert any("of n0000 n0003: no head" in line for line in lines[crash + 2 :])


def test_looking_on_changes_nothing() -> None:
    plan = Plan("churn", nodes=6, seed=4)
    assert carry_out(plan, [Recorder]) == carry_out(plan)


# Pictures -----------------------------------------------------------------------------------------


def test_a_run_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.png"
    assert exit_code(*f"run churn --nodes 5 --seed 1 --plot {out}".split()) == 0
    assert out.read_bytes().startswith(PNG)
    assert "drawn" in capsys.readouterr().err


def test_a_picture_counts_the_nodes_that_hold_each_head() -> None:
    kept: list[Recorder] = []

    def look_on(net: Network) -> Recorder:
        kept.append(Recorder(net))
        return kept[-1]

    run = carry_out(Plan("propagation", nodes=8, seed=2), [look_on])
    assert run.broken is None
    [news] = [news for heads in kept[0].news.values() for news in heads]
    assert [count for _, count in news.steps] == list(range(9))
    assert sum(kept[0].urgent.values()) > 0
    assert kept[0].life[-1][1]["live"] == 5


def test_a_partition_is_shaded_for_as_long_as_it_lasted() -> None:
    kept: list[Recorder] = []

    def look_on(net: Network) -> Recorder:
        kept.append(Recorder(net))
        return kept[-1]

    carry_out(Plan("partition-heal", nodes=5, seed=2), [look_on])
    [(since, until, _)] = kept[0].spans()["partition"]
    assert until - since == pytest.approx(6 * 3600, rel=0.01)


def test_news_after_the_heal_has_a_panel_of_its_own() -> None:
    kept: list[Recorder] = []

    def look_on(net: Network) -> Recorder:
        kept.append(Recorder(net))
        return kept[-1]

    for scenario in ("partition-heal", "propagation"):
        carry_out(Plan(scenario, nodes=6, seed=2), [look_on])
    assert [record.late() for record in kept] == [True, False]


@pytest.mark.usefixtures("fault")
def test_a_run_that_broke_is_drawn_with_where_it_broke(tmp_path: Path) -> None:
    out = tmp_path / "run.svg"
    assert exit_code(*f"run faulty --nodes 6 --as-is --plot {out}".split()) == 1
    drawn = out.read_text()
    assert BROKE in drawn and "liveness: n0005: it heard" in drawn


def test_without_matplotlib_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def found(name: str, package: str | None = None) -> object:
        return None if name == "matplotlib" else find_spec(name, package)

    monkeypatch.setattr("importlib.util.find_spec", found)
    out = tmp_path / "run.png"
    assert exit_code(*f"run propagation --nodes 4 --plot {out}".split()) == 1
    assert "groove-node[map]" in capsys.readouterr().err
    assert not out.exists()
