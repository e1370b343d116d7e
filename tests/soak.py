"""Ten whole nodes for half an hour, with restarts and losses: do they still agree, do they grow?

    python tests/soak.py [--minutes 30] [--nodes 10] [--loss 5] [--seed N] [--json FILE|-]

Every 20 s a node publishes a new table, every 60 s one retracts a leaf. Once a minute a node is
ended, by kill -9 and by SIGTERM in turn, and started again at once; the first two are left alone,
for only a process that lives on can be seen to grow. The kernel drops 5 % of the packets, in a
network of its own; without CAP_NET_ADMIN or nft nothing is dropped, and the first line says so.
At the end nothing is published any more, and all must come to hold the same.

equal            all views equal at the end, and what each had on disk after its end the same
converged_s      from the last order until that was so
back_s           from a node's start until it had four links again: median, and worst
growth_pct       of rss, fds, threads of the nodes left alone: median of the last fifth over that
                 of the second fifth, less one; the first fifth is for caches to fill
dropped          packets that the kernel dropped
complaints       lines of error in the nodes' logs

Ends with 0 if the views are equal and nothing grew by more than 5 %, else with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gossip.addresses import Source  # noqa: E402

NODE = Path(__file__).parent / "soak_node.py"
UNTOUCHED = 2  # nodes that are never restarted
NEWS_S, RETRACT_S, RESTART_S, SAMPLE_S = 20.0, 60.0, 60.0, 10.0
CONVERGE_S = 180.0
LINKS_BACK = 4
LEAVES_TO_RETRACT = 4  # of each node: the fifth stays
GROWTH_PCT_MAX = 5.0
INSIDE = "GROOVE_SOAK_NETWORK"  # "lossy" or "plain": this process is in a network of its own
RULES = """
table inet soak {{
  chain arriving {{
    type filter hook input priority 0;
    meta l4proto tcp numgen random mod 100 < {loss} counter drop
  }}
}}
"""

Told = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Node:
    """One home, and the process that runs there now."""

    name: str
    home: Path
    listen: str
    told: queue.Queue[Told]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    back: list[float] = field(default_factory=list)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    version: int = 0
    retracted: int = 0

    def start(self) -> None:
        self.started = time.monotonic()
        with (self.home.parent / f"{self.name}.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(NODE), self.listen, self.name],
                env=environment(self.home),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends them in order
            )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def order(self, do: str, **more: Any) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()

    def end(self, how: signal.Signals) -> bool:
        """End the process; False if it had to be killed."""
        if self.process is None:
            return True
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True

    def sample(self, now: float) -> None:
        assert self.process is not None
        seen = psutil.Process(self.process.pid)
        with seen.oneshot():
            rss, threads = seen.memory_info().rss, seen.num_threads()
        self.samples.append((now, rss, seen.num_fds(), threads))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.told.put(json.loads(line))


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GROOVE_HOME": str(home),
        "GROOVE_STATE": str(home.parent / "state"),
        "HF_HUB_OFFLINE": "1",
    }


class Soak:
    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._rng = Random(arguments.seed)
        self._run_s = 60.0 * arguments.minutes
        self._told: queue.Queue[Told] = queue.Queue()
        self._began = time.monotonic()
        self._restarts: list[str] = []
        self._stubborn = 0  # did not end on SIGTERM
        self.nodes = [self._home(folder, number) for number in range(arguments.nodes)]
        self._introduce()

    def run(self) -> dict[str, Any]:
        """Whatever happens, no process is left behind."""
        try:
            for node in self.nodes:
                node.start()
            self._linked(self.nodes, 120)
            self._began = time.monotonic()
            self._live()
            return self._judge()
        finally:
            for node in self.nodes:
                if node.process is not None and node.process.poll() is None:
                    node.process.terminate()
            for node in self.nodes:
                node.end(signal.SIGTERM)

    def _home(self, folder: Path, number: int) -> Node:
        home = folder / f"n{number}"
        home.mkdir(mode=0o700)
        subprocess.run(
            [sys.executable, "-m", "node.cli", "init"],
            env=environment(home),
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return Node(home.name, home, f"/ip4/127.0.0.1/tcp/{port}", self._told)

    def _introduce(self) -> None:
        """Each has the addresses of the others, as if learned; a node links with eight of them."""
        from gossip.libp2p_fence import peer_id_of
        from node import peerbook
        from node.app import App

        apps = {node.name: App(node.home) for node in self.nodes}
        at = {
            node.name: f"{node.listen}/p2p/{peer_id_of(apps[node.name].identity.transport)}"
            for node in self.nodes
        }
        for name, app in apps.items():
            book = peerbook.load(app)
            for other, address in at.items():
                if other != name:
                    book.add(address, Source.LEARNED)
            peerbook.save(app, book)

    # ---- the half hour ---------------------------------------------------------------------------

    def _live(self) -> None:
        due = {"news": 5.0, "retract": 30.0, "restart": RESTART_S, "sample": 0.0}
        every = {"news": NEWS_S, "retract": RETRACT_S, "restart": RESTART_S, "sample": SAMPLE_S}
        work = {
            "news": self._publish,
            "retract": self._retract,
            "restart": self._restart,
            "sample": self._sample,
        }
        turn = 0
        while (now := time.monotonic() - self._began) < self._run_s:
            what = min(due, key=lambda name: due[name])
            if due[what] > now:
                time.sleep(min(due[what], self._run_s) - now)
                continue
            due[what] += every[what]
            work[what](turn)
            turn += 1

    def _publish(self, _: int) -> None:
        # In turn: an origin's heads are taken four at once, and then one each five minutes.
        node = self.nodes[sum(each.version for each in self.nodes) % len(self.nodes)]
        node.version += 1
        self._order(node, "publish", version=node.version)

    def _retract(self, _: int) -> None:
        node = self._rng.choice(self.nodes)
        if node.retracted < LEAVES_TO_RETRACT:
            node.retracted += 1
            self._order(node, "retract", leaf=node.retracted)

    def _restart(self, _: int) -> None:
        node = self._rng.choice(self.nodes[UNTOUCHED:])
        how = signal.SIGTERM if len(self._restarts) % 2 else signal.SIGKILL
        self._stubborn += not node.end(how)
        node.start()
        back = threading.Thread(target=self._await_back, args=(node, node.started), daemon=True)
        back.start()
        back.join(timeout=45)
        self._restarts.append(how.name)
        shown = f"{node.back[-1]:.1f} s" if node.back and not back.is_alive() else "not yet"
        minutes = (time.monotonic() - self._began) / 60
        say(f"{minutes:5.1f} min  {node.name} ended by {how.name}, back with links in {shown}")

    def _sample(self, turn: int) -> None:
        now = time.monotonic() - self._began
        for node in self.nodes[:UNTOUCHED]:
            node.sample(now)
        if int(now) % 300 < SAMPLE_S:
            shown = ", ".join(
                f"{node.name} {node.samples[-1][1] / 2**20:.1f} MB {node.samples[-1][2]} fds "
                f"{node.samples[-1][3]} threads"
                for node in self.nodes[:UNTOUCHED]
            )
            say(f"{now / 60:5.1f} min  {shown}")

    def _order(self, node: Node, do: str, **more: Any) -> None:
        try:
            node.order(do, **more)
        except OSError as error:
            last = (node.home.parent / f"{node.name}.err").read_text().splitlines()[-5:]
            raise SystemExit("\n".join([f"{node.name} ended by itself: {error}", *last])) from error

    def _await_back(self, node: Node, started: float) -> None:
        self._linked([node], 45)
        node.back.append(time.monotonic() - started)

    def _linked(self, nodes: list[Node], limit_s: float) -> None:
        wanted = min(LINKS_BACK, len(self.nodes) - 1)
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for node in nodes:
                self._order(node, "links")
            found = self._answers("links", len(nodes), 10)
            if len(found) == len(nodes) and all(x["links"] >= wanted for x in found.values()):
                return
            time.sleep(0.2)
        raise SystemExit(f"not linked within {limit_s:.0f} s: {found}")

    def _answers(self, what: str, count: int, limit_s: float) -> dict[str, Told]:
        found: dict[str, Told] = {}
        deadline = time.monotonic() + limit_s
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            try:
                told = self._told.get(timeout=left)
            except queue.Empty:
                break
            if told["told"] == what:
                found[told["at"]] = told
        return found

    # ---- the end ---------------------------------------------------------------------------------

    def _judge(self) -> dict[str, Any]:
        self._sample(0)
        stopped = time.monotonic()
        views: dict[str, Told] = {}
        while time.monotonic() - stopped < CONVERGE_S:
            for node in self.nodes:
                self._order(node, "view")
            views = self._answers("view", len(self.nodes), 20)
            if len(views) == len(self.nodes) and len({x["hash"] for x in views.values()}) == 1:
                break
            time.sleep(1)
        converged_s = time.monotonic() - stopped
        for node in self.nodes:
            assert node.process is not None
            node.process.terminate()
        self._stubborn += sum(not node.end(signal.SIGTERM) for node in self.nodes)
        hashes = {x["hash"] for x in views.values()} | {on_disk(node) for node in self.nodes}
        back = [each for node in self.nodes for each in node.back]
        growth = {
            name: max(
                _growth_pct([s[0] for s in n.samples], [s[i] for s in n.samples])
                for n in self.nodes[:UNTOUCHED]
            )
            for i, name in ((1, "rss"), (2, "fds"), (3, "threads"))
        }
        refused: dict[str, int] = {}
        for view in views.values():
            for reason, count in view["refused"].items():
                refused[reason] = refused.get(reason, 0) + count
        equal = len(hashes) == 1 and len(views) == len(self.nodes)
        return {
            "ok": equal and all(value <= GROWTH_PCT_MAX for value in growth.values()),
            "nodes": len(self.nodes),
            "minutes": round((stopped - self._began) / 60, 1),
            "dropped": dropped(),
            "restarts": len(self._restarts),
            "published": sum(node.version for node in self.nodes),
            "retracted": sum(node.retracted for node in self.nodes),
            "equal": equal,
            "converged_s": round(converged_s, 1),
            "back_s": round(statistics.median(back), 2) if back else None,
            "back_s_max": round(max(back), 2) if back else None,
            "growth_pct": growth,
            "rss_mb": [round(node.samples[-1][1] / 2**20, 1) for node in self.nodes[:UNTOUCHED]],
            "stubborn": self._stubborn,
            "refused": refused,
            "complaints": complaints(self.nodes),
        }


def _growth_pct(times: list[float], values: list[int]) -> float:
    whole = times[-1]
    early = [v for t, v in zip(times, values, strict=True) if 0.2 * whole <= t < 0.4 * whole]
    late = [v for t, v in zip(times, values, strict=True) if t >= 0.8 * whole]
    return round(100 * (statistics.median(late) / statistics.median(early) - 1), 1)


def on_disk(node: Node) -> str:
    """The hash of what a node that has ended holds."""
    from swarm_worker import view

    from node.app import App

    app = App(node.home)
    shown: str = view(app.mesh_replica(Random(0), lambda _: True))["hash"]
    app.mesh_store.close()
    return shown


def complaints(nodes: list[Node]) -> list[str]:
    """What the nodes logged as errors, without its time; the first of each kind."""
    found: dict[str, None] = {}
    for node in nodes:
        for path in (node.home / "node.log", node.home.parent / f"{node.name}.err"):
            if path.exists():
                for line in path.read_text(errors="replace").splitlines():
                    if " ERROR " in line or "Traceback" in line:
                        found[f"{node.name}: {line[24:]}"] = None
    return list(found)[:20]


# ---- a network of its own ------------------------------------------------------------------------


def enter_network(loss: int) -> None:
    """Run again in a new network namespace, where that is allowed; it falls with the process."""
    if loss == 0 or os.environ.get(INSIDE):
        return
    tools = all(map(shutil.which, ("unshare", "ip", "nft")))
    inside = ["unshare", "--net", "--"]
    if not tools or subprocess.run([*inside, "true"], capture_output=True).returncode:
        say("no packet is dropped: that takes CAP_NET_ADMIN, unshare, ip and nft")
        os.environ[INSIDE] = "plain"
        return
    os.environ[INSIDE] = "lossy"
    os.execvp(inside[0], [*inside, sys.executable, *sys.argv])


def lose(loss: int) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES.format(loss=loss), text=True, check=True)


def dropped() -> int:
    """Packets lost so far, by the kernel's count."""
    if os.environ.get(INSIDE) != "lossy":
        return 0
    shown = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    counted = re.search(r"packets (\d+)", shown.stdout)
    return int(counted[1]) if counted else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--loss", type=int, default=5, help="per cent of the packets; 0 for none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    arguments = parser.parse_args()
    enter_network(arguments.loss)
    if os.environ.get(INSIDE) == "lossy":
        lose(arguments.loss)
    with tempfile.TemporaryDirectory(prefix="groove-soak-") as folder:
        try:
            figures = Soak(Path(folder), arguments).run()
        except KeyboardInterrupt:
            say("interrupted: all nodes were ended")
            raise SystemExit(130) from None
    text = json.dumps(figures, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")
    raise SystemExit(0 if figures["ok"] else 1)


if __name__ == "__main__":
    main()
