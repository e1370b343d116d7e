"""How soon a node's unattended round stands still once its owner, or their model server, is back.

A real node runs a real round (tiny chassis) with its children. Its owner comes back by a session
manager that this program plays, a model server by a process of that name which computes. Measured
is from that moment until no process of the round runs. The load that others make on this machine is
left out, or a busy machine would not let the night begin: what is measured is the way from a sense
to a stopped process.

    python tests/bench/giving_way.py --times 6 --json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import trio

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import support_demo  # noqa: E402

from node.adapters import Adapters  # noqa: E402
from node.app import App  # noqa: E402
from node.config import NightConfig  # noqa: E402
from node.daemon import Daemon  # noqa: E402
from node.governor import Senses  # noqa: E402
from node.night_book import Book  # noqa: E402
from node.senses import MachineSenses  # noqa: E402

NIGHT = """
[rounds]
sessions = 1
[night]
window = "00:00-24:00"
idle_min = 0
again_min = 0.02
energy_wh_max = 10_000
"""
QUIET, HERE = "b true\nt 1000000\n", "b false\nt 1000000\n"


class Unloaded(MachineSenses):
    """The machine's senses without what others compute."""

    def read(self) -> Senses:
        return replace(super().read(), load=0.0)


class Machine(Adapters):
    def senses(self, home: Path, config: NightConfig) -> MachineSenses:
        return Unloaded(home, config)


def prepared(folder: Path) -> Path:
    """A home with enough sessions for a training of a minute, and commands that the test plays."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    support_demo.write_config(home / "groove.toml", folder / "chassis", steps=4000)
    with (home / "groove.toml").open("a") as file:
        file.write(NIGHT)
    sessions = support_demo.write_sessions(folder / "sessions.jsonl", per_topic=120)
    for command in (
        ["init"],
        ["consent", "grant", "capture", "train", "--yes"],
        ["import", "jsonl", str(sessions)],
    ):
        subprocess.run(
            [sys.executable, "-m", "node.cli", *command, "--json"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    busctl = folder / "bin" / "busctl"
    busctl.parent.mkdir()
    busctl.write_text(f"#!/bin/sh\ncat {folder}/session\n")
    busctl.chmod(0o700)
    shutil.copy("/bin/sh", folder / "bin" / "ollama")
    os.environ["PATH"] = f"{busctl.parent}:{os.environ['PATH']}"
    return home


def not_ours(folder: Path) -> int:
    """Start a model server that is no child of the node: its parent ends at once."""
    begin = f"{folder}/bin/ollama -c 'while :; do :; done' >/dev/null 2>&1 & echo $!"
    done = subprocess.run(["setsid", "sh", "-c", begin], capture_output=True, check=True)
    return int(done.stdout)


def running() -> list[int]:
    """The processes of the round that are not stopped: all below this one that run modules."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            stopped = each.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
            if not stopped and "-m" in each.cmdline():
                found.append(each.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def measured(home: Path, folder: Path, times: int) -> dict[str, Any]:
    app = App(home, adapters=Machine())
    Book(home, app.now()).works(None)
    daemon = Daemon(app, "/ip4/127.0.0.1/tcp/0", lambda told: None)
    found: dict[str, list[float]] = {"owner": [], "model_server": []}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        with trio.fail_after(180):
            while len(running()) < 2:
                await trio.sleep(0.2)
        for number in range(2 * times):
            kind = ("owner", "model_server")[number % 2]
            await trio.sleep(0.37 + 0.13 * number % 1)  # at any moment between two looks
            began, server = time.perf_counter(), None
            if kind == "owner":
                (folder / "session").write_text(HERE)
            else:
                server = not_ours(folder)
            with trio.fail_after(60):
                while running():
                    await trio.sleep(0.01)
            found[kind].append(time.perf_counter() - began)
            if server is not None:
                os.kill(server, signal.SIGKILL)
            (folder / "session").write_text(QUIET)
            with trio.fail_after(120):
                while len(running()) < 2:
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return {
        kind: {
            "times": len(each),
            "median_s": round(statistics.median(each), 2),
            "worst_s": round(max(each), 2),
        }
        for kind, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=6, help="of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "GROOVE_HOME": str(folder / "home"),
            "GROOVE_STATE": str(folder / "state"),
            "HF_HUB_OFFLINE": "1",
        }
        home = prepared(folder)
        (folder / "session").write_text(QUIET)
        figures = trio.run(measured, home, folder, arguments.times)
    for kind, each in figures.items():
        line = f"{kind}: median {each['median_s']} s, worst {each['worst_s']} s of {each['times']}"
        print(json.dumps(figures) if arguments.json else line)
        if arguments.json:
            break


if __name__ == "__main__":
    main()
