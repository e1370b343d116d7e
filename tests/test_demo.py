"""The main job, end to end: three processes over real libp2p, with a tiny chassis."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import support_demo

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    support_demo.write_sessions(folder / "sessions.jsonl", per_topic=320)
    support_demo.write_config(folder / "groove.toml", folder / "chassis")
    return folder


def demo(world: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", "demo", "--folder", str(folder), *more]
    command += ["--from", str(world / "sessions.jsonl"), "--config", str(world / "groove.toml")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


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
