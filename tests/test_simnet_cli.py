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

from simnet import scenarios
from simnet.cli import main, run
from simnet.invariants import InvariantError
from simnet.network import Network, Node
from simnet.plot import Recorder
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
    assert result["bound"] == "<= 1 of runs at 95 % (3/3)"
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
    assert exit_code(*["run", "propagation", "--nodes", "4", "--seeds", "0..3", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "4 runs" in shown and "0 violations, <= 0.75 of runs at 95 % (3/4)" in shown
    assert "t100_s" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("run nowhere", "no scenario 'nowhere'"),
        ("run fork --nodes 2", "--nodes must be at least 4, not 2"),
        ("run fork --loss 1", "--loss must be from 0 to below 1, not 1.0"),
        ("run fork --flip -0.1", "--flip must be from 0 to below 1, not -0.1"),
        ("run fork --seeds 3", "--seeds '3' is not a range"),
        ("run fork --seeds 9..3", "--seeds '9..3' is not a range"),
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
    assert "0 violations" in said


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
    assert "replay: groove-sim run faulty --nodes 12 --seed 2 --loss 0.05" in shown
    smaller = next(line for line in shown.splitlines() if line.startswith("  smallest of"))
    replay = smaller.partition(": groove-sim ")[2]
    assert replay == "run faulty --nodes 6 --seed 2"
    assert exit_code(*replay.split(), "--as-is") == 1  # the line that was printed breaks as well


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
    times = [float(line.split()[0]) for line in lines]
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
