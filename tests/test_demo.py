"""The main job, end to end: three processes over real libp2p, with a tiny chassis.

    python tests/test_demo.py [--seeds N] [--first SEED]

as a command: the demo once for each seed, its nodes killed at moments drawn from that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from random import Random

import psutil
import pytest
import support_demo

ROOT = Path(__file__).parent.parent
LINES = 55  # of a demo with a tiny chassis, about
KILLS = 10  # tried; before a node runs, and while it starts again, there is none to be killed
PAUSE_S_MAX = 3.0

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    support_demo.write_sessions(folder / "sessions.jsonl", per_topic=320)
    support_demo.write_config(folder / "groove.toml", folder / "chassis")
    return folder


def command(world: Path, folder: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "node.cli", "demo", "--folder", str(folder), *more]
    return [*command, "--from", str(world / "sessions.jsonl"), "--config", f"{world}/groove.toml"]


def demo(world: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    asked = command(world, folder, *more)
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=400)


def demo_with_kills(
    world: Path, folder: Path, seed: int
) -> tuple[subprocess.CompletedProcess[str], Counter[str]]:
    """The demo, and how often each of its nodes was killed: a moment after lines that are drawn,
    so that the kills fall into all of its steps, on whatever machine."""
    rng = Random(seed)
    at = set(rng.sample(range(LINES), KILLS))
    killed: Counter[str] = Counter()
    asked = command(world, folder)
    running = subprocess.Popen(
        asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert running.stdout is not None

    def kill(name: str) -> None:
        for node in nodes_of(running.pid, folder / name):
            node.kill()
            killed[name] += 1

    shown: list[str] = []
    timers: list[threading.Timer] = []
    try:
        for line in running.stdout:
            if "was killed" in line:  # these come besides
                continue
            if len(shown) in at:
                pause_s, name = rng.uniform(0, PAUSE_S_MAX), rng.choice("ABC")
                timers.append(threading.Timer(pause_s, kill, [name]))
                timers[-1].start()
            shown.append(line)
    finally:
        running.terminate()
        running.wait()
        running.stdout.close()
        for timer in timers:
            timer.join()
    return subprocess.CompletedProcess(asked, running.returncode, "".join(shown), ""), killed


def nodes_of(demo: int, home: Path) -> list[psutil.Process]:
    """The running node of that home, if there is one now."""
    found = []
    try:
        for child in psutil.Process(demo).children():
            if "run" in child.cmdline() and child.environ().get("GROOVE_HOME") == str(home):
                found.append(child)
    except psutil.Error:
        return []  # one has ended meanwhile
    return found


def test_a_leaf_grows_on_one_node_serves_on_two_and_is_taken_back(
    world: Path, tmp_path: Path
) -> None:
    done = demo(world, tmp_path / "homes")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = [
        r"  A  consent: capture, fetch, publish, train",
        r"  A  captured [\d,]+ sessions",
        r"  A  3 domains in [\d,]+ sessions, \d+ % noise: ",
        r"  A  [\w-]+: new -> seed ",
        r"  A  [\w-]+: better; over parent \+[\d.]+ \[\+[\d.]+, .* held-out sessions",
        r"  A  [\w-]+: seed -> sprout ",
        r"  A  [\w-]+: improved; ",
        r"  A  [\w-]+: sprout -> mature ",
        r"  A  kept back: [\w-]+: .*",
        r"  A  the owner allows [23] of them to be shown",
        r"  B  heard of origin \w{8}: 3 leaves, [23] mature",
        r"  C  heard of origin \w{8}: 3 leaves, [23] mature",
        r"  B  [\w-]+ of \w{8}: fetched; [\d.]+ MB from [12] peers, hashes verified",
        r"  C  [\w-]+ of \w{8}: accepted; over parent .* over style control ",
        r"  B  '.*' -> [\w-]+ of \w{8}, confidence 0\.\d\d; loss of its answer \d+\.\d+ under the "
        r"leaf, \d+\.\d+ under the chassis",
        r"  A  deleted [\d,]+ records, retracted 3 leaves",
        r"  B  [\w-]+ of \w{8} dropped: retracted by its owner",
        r"  C  [\w-]+ of \w{8} dropped: retracted by its owner",
        r"  -  every step happened",
    ]
    for pattern in wanted:
        assert re.search(pattern, done.stdout), f"{pattern!r} is not in\n{done.stdout}"


@pytest.mark.parametrize("seed", range(1))
def test_the_demo_ends_as_it_should_whichever_of_its_nodes_are_killed(
    world: Path, tmp_path: Path, seed: int
) -> None:
    done, killed = demo_with_kills(world, tmp_path / "homes", seed)
    assert done.returncode == 0, f"seed {seed}: killed {dict(killed)}\n{done.stdout}"
    assert killed, f"seed {seed}: no moment to kill a node came"
    for pattern in (
        r"  [BC]  [\w-]+ of \w{8}: accepted",
        r"  A  deleted [\d,]+ records, retracted 3 leaves",
        r"  B  [\w-]+ of \w{8}:? dropped",
        r"  C  [\w-]+ of \w{8}:? dropped",
    ):
        assert re.search(pattern, done.stdout), f"seed {seed}: no {pattern!r} in\n{done.stdout}"


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("init", "no home of a node yet"),
        ("consent", "is not granted"),
        ("import", "no leaf of A sprouted"),
        ("more", "no leaf of A matured"),
    ],
)
def test_the_demo_fails_if_a_step_is_taken_away(
    world: Path, tmp_path: Path, step: str, complaint: str
) -> None:
    done = demo(world, tmp_path / "homes", "--nodes", "1", "--without", step)
    assert done.returncode == 1
    assert complaint in done.stdout


def test_a_step_that_nobody_knows_cannot_be_left_out(world: Path, tmp_path: Path) -> None:
    done = demo(world, tmp_path / "homes", "--without", "lunch")
    assert done.returncode == 2
    assert "init, consent, import" in done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        support_demo.write_sessions(made / "sessions.jsonl", per_topic=320)
        support_demo.write_config(made / "groove.toml", made / "chassis")
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            done, killed = demo_with_kills(made, made / "homes", seed)
            print(f"seed {seed}: exit {done.returncode}, killed {dict(killed)}", flush=True)
            if done.returncode:
                broken += 1
                print("\n".join(done.stdout.splitlines()[-25:]), flush=True)
    raise SystemExit(broken > 0)


if __name__ == "__main__":
    main()
