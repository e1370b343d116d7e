"""`groove-node demo`: the main job, end to end, with real processes over real libp2p.

The demo types the same commands as an owner would and reads the same event files. It knows what
has to happen, in which order and within which time; a step that does not happen ends it. It looks
after its nodes as a service manager does: one that is killed is started again, and the demo ends as
it would have; one that ends by itself has failed.
"""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from .errors import MisuseError
from .overview import RUN_FILE
from .told import FILE as EVENTS

# How much of each package is taken: all of the small ones, and of the large ones what makes leaves
# of every stage in a few minutes.
PACKAGES = {"libp2p": 1.0, "networkx": 1.0, "sympy": 0.17, "transformers": 0.07}
LEFT_WHOLE = ("sympy", "transformers")  # imported at once: they stay seeds
SHARES = {"A": (0.0, 0.65), "B": (0.65, 0.83), "C": (0.83, 1.0)}  # of the modules, by hash
FIRST_PART, SECOND_PART = "0:0.79", "0.79:1"  # of A's sessions, before and after its first round
SCOPES = {
    "A": ("capture", "train", "publish", "fetch"),
    "B": ("capture", "fetch"),
    "C": ("capture", "fetch"),
}
MANY_CHUNKS_BYTES = 4 << 20  # a bundle this large comes from every holder
ROWS_MAX = 5000  # of a file: about what the packages give
# What has to be seen, and by whom; anything missing at the end is a failure.
EVIDENCE_OF_ONE = ("consent", "captured", "clustered", "seed", "sprout", "judged", "mature")
EVIDENCE_OF_THREE = {
    "A": (*EVIDENCE_OF_ONE, "allowed", "deleted"),
    "B": ("consent", "captured", "head", "fetched", "accepted", "routed", "dropped"),
    "C": ("consent", "captured", "head", "fetched", "accepted", "routed", "dropped"),
}
SMALL = "[training]\nsteps = {steps}\ncontrol_pairs = 0\n"
# What is shown is shown at any hour, in the order of the steps.
UNATTENDED = {"rounds": "auto = false", "night": 'window = "always"'}
SETTLED = ("accepted", "refused", "waiting")
HAD = ("fetched", "accepted", "waiting")  # the bundle is here
WATCH_S = 0.1
QUIET = ("listening", "connected", "disconnected")  # printed by the step that waits for them


class StepError(Exception):
    """A step of the demo did not happen."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to show. `without` names a step to leave out, to see that the demo notices."""

    folder: Path
    nodes: int
    source: Path | None
    steps: int
    config: Path | None
    without: str | None
    patience_s: float = 120.0  # for something to cross the mesh


@dataclass
class Node:
    """One node of the demo: a home of its own and, while it runs, a process of its own."""

    name: str
    home: Path
    process: subprocess.Popen[bytes] | None = None
    listen: str = "/ip4/127.0.0.1/tcp/0"  # after the first start, the port that it got then
    killed: int = 0  # times that it was killed and started again
    caught_up: int = 0  # those after which its state was looked at
    read: int = 0  # bytes of its event file that were read
    events: list[dict[str, Any]] = field(default_factory=list)

    def command(self, *arguments: str, check: bool = True) -> dict[str, Any]:
        """Run `groove-node ARGUMENTS --json` in this home and return its document."""
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments, "--json"],
            env=self._environment(),
            capture_output=True,
            text=True,
        )
        if check and done.returncode != 0:
            raise StepError(f"{self.name}: groove-node {arguments[0]}: {done.stderr.strip()}")
        document: dict[str, Any] = msgspec.json.decode(done.stdout) if done.stdout.strip() else {}
        return document

    def start(self) -> None:
        log = (self.home / "run.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.cli", "run", "--listen", self.listen],
            env=self._environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()

    def revive(self) -> bool:
        """Start it again if it was killed; True if so."""
        if self.process is None or (self.process.poll() or 0) >= 0:
            return False
        with suppress(OSError, msgspec.DecodeError):
            addresses = msgspec.json.decode((self.home / RUN_FILE).read_bytes())["addresses"]
            self.listen = str(addresses[0]).split("/p2p/")[0]  # where its peers look for it
        self.start()
        self.killed += 1
        return True

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def fresh(self) -> Iterator[dict[str, Any]]:
        """Events since the last call."""
        path = self.home / EVENTS
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                event = msgspec.json.decode(line)
                self.events.append(event)
                yield event

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "GROOVE_HOME": str(self.home),
            "GROOVE_STATE": str(self.home / "state"),  # a demo leaves nothing outside its folder
            "GROOVE_API_LISTEN": "",  # three nodes would want one port
            "HF_HUB_OFFLINE": "1",
        }


class Demo:
    """Runs the steps and prints one line per event, with seconds since the start."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._began = time.monotonic()
        names = ("A", "B", "C")[: plan.nodes]
        self._evidence: set[tuple[str, str]] = set()
        self._nodes = {name: Node(name, plan.folder / name) for name in names}
        self._over = threading.Event()

    def run(self) -> bool:
        """True if everything happened. Whatever happens, no process is left behind."""
        signal.signal(signal.SIGTERM, _leave)
        watch = threading.Thread(target=self._look_after_nodes)
        watch.start()
        try:
            for name, step in self._steps():
                if name == self._plan.without:
                    self._line("-", f"left out: {name}")
                    continue
                step()
            self._check_evidence()
        except StepError as missing:
            self._line("-", f"FAILED: {missing}")
            return False
        finally:
            self._over.set()
            watch.join()
            for node in self._nodes.values():
                node.stop()
        self._line("-", "every step happened")
        return True

    def _look_after_nodes(self) -> None:
        while not self._over.wait(WATCH_S):
            for node in self._nodes.values():
                if node.revive():
                    self._line(node.name, f"was killed ({node.killed}), and is started again")

    def _steps(self) -> list[tuple[str, Callable[[], None]]]:
        steps: list[tuple[str, Callable[[], None]]] = [
            ("init", self._init),
            ("consent", self._consent),
            ("import", self._import),
            ("round", self._first_round),
            ("more", self._more),
            ("retrain", self._second_round),
        ]
        if self._plan.nodes > 1:
            steps[3:3] = [("run", self._run), ("join", self._join)]
            steps += [
                ("allow", self._allow),
                ("share", self._share),
                ("route", self._route),
                ("delete", self._delete),
            ]
        names = [name for name, _ in steps]
        if self._plan.without not in (None, *names):
            raise MisuseError(
                f"no step is called {self._plan.without!r}; the steps are {', '.join(names)}"
            )
        return steps

    def _init(self) -> None:
        shutil.rmtree(self._plan.folder, ignore_errors=True)
        for node in self._nodes.values():
            node.home.mkdir(parents=True, mode=0o700)
            self._configure(node)
            node.command("init")
        self._line("-", f"{len(self._nodes)} homes under {self._plan.folder}")

    def _configure(self, node: Node) -> None:
        """The thresholds are the real ones; only the training budget is small."""
        config = self._plan.config
        text = config.read_text() if config else SMALL.format(steps=self._plan.steps)
        for section, line in UNATTENDED.items():
            if f"[{section}]" not in text:
                text += f"\n[{section}]\n{line}\n"
        (node.home / "groove.toml").write_text(text)

    def _consent(self) -> None:
        for node in self._nodes.values():
            allowed = node.command("consent", "grant", *SCOPES[node.name], "--yes")["scopes"]
            if set(allowed) >= set(SCOPES[node.name]):
                self._saw(node, "consent")
            self._line(node.name, f"consent: {', '.join(allowed)}")

    def _import(self) -> None:
        with ThreadPoolExecutor(len(self._nodes)) as together:
            parts = {name: FIRST_PART if name == "A" else "0:1" for name in self._nodes}
            for _ in together.map(self._import_share, self._nodes.values(), parts.values()):
                pass

    def _import_share(self, node: Node, part: str) -> None:
        source = self._plan.source
        share = SHARES[node.name]
        if source is not None:
            wanted = [(("jsonl", str(source.resolve())), self._part_of(source))]
        else:
            wanted = [(("pydoc", package), taken) for package, taken in PACKAGES.items()]
        result: Counter[str] = Counter()
        for what, taken in wanted:
            low, high = (f"{bound * taken:.4f}" for bound in share)
            asked = part
            if what[-1] in LEFT_WHOLE:
                if part == SECOND_PART:
                    continue
                asked = "0:1"
            done = node.command("import", *what, "--share", f"{low}:{high}", "--part", asked)
            result.update({name: done[name] for name in ("added", "scrubbed")})
        if not result["added"]:
            raise StepError(f"{node.name} captured no session")
        self._saw(node, "captured")
        self._line(
            node.name,
            f"captured {result['added']:,} sessions, {result['scrubbed']:,} values scrubbed",
        )

    def _part_of(self, source: Path) -> float:
        """A demo of a large file takes a part of it, by hash."""
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rb") as lines:
            rows = sum(1 for _ in lines)
        return min(1.0, ROWS_MAX / max(rows, 1))

    def _run(self) -> None:
        for node in self._nodes.values():
            node.start()
        for node in self._nodes.values():
            event = self._await(node, "listening", 30)
            self._line(node.name, event["text"])

    def _join(self) -> None:
        self._dial("B", "A")

    def _dial(self, name: str, *others: str) -> None:
        addresses = [self._address(other) for other in others]
        if addresses:
            self._nodes[name].command("peers", "add", *addresses)
        for _ in others:
            self._line(name, self._await(self._nodes[name], "connected", 30)["text"])

    def _address(self, name: str) -> str:
        """Where a node listens, once it does."""
        deadline = time.monotonic() + self._plan.patience_s
        while time.monotonic() < deadline:
            if addresses := self._nodes[name].command("peers", "list")["addresses"]:
                return str(addresses[0])
            time.sleep(WATCH_S)
        raise StepError(f"{name} does not listen within {self._plan.patience_s:.0f} s")

    def _first_round(self) -> None:
        for name in sorted(set(self._nodes) - {"A"}):
            self._round(self._nodes[name])
        self._round(self._nodes["A"])
        grown = self._nodes["A"].command("tree")["leaves"]
        if not any(leaf["stage"] in ("sprout", "mature") for leaf in grown):
            raise StepError(f"no leaf of A sprouted: {_verdicts(grown)}")

    def _more(self) -> None:
        self._import_share(self._nodes["A"], SECOND_PART)

    def _second_round(self) -> None:
        self._round(self._nodes["A"])
        leaves = self._nodes["A"].command("tree")["leaves"]
        if not any(leaf["stage"] == "mature" for leaf in leaves):
            raise StepError(f"no leaf of A matured: {_verdicts(leaves)}; --steps trains longer")
        self._print_tree("A")

    def _allow(self) -> None:
        """A topic that no peer shows waits for its owner's word."""
        node = self._nodes["A"]
        for kept in node.command("leaf", "publish")["kept_back"]:
            self._line("A", f"kept back: {kept['name']}: {kept['reason']}")
        allowed = node.command("leaf", "publish", "--all")["published"]
        if not allowed:
            raise StepError("no leaf of A waits for its owner's word")
        self._saw(node, "allowed")
        self._line("A", f"the owner allows {len(allowed)} of them to be shown")

    def _share(self) -> None:
        """B hears of the mature leaves and fetches; C comes late, and fetches from A and B."""
        matured = sum(leaf["stage"] == "mature" for leaf in self._tree("A")["leaves"])
        late = self._nodes["C"]
        for name, others in (("B", ()), ("C", ("A", "B"))):
            self._dial(name, *others)
            self._await(self._nodes[name], "head", self._plan.patience_s)
            self._await(self._nodes[name], "fetched", self._plan.patience_s)
        for name in ("B", "C"):
            while len({x["leaf"] for x in self._all(self._nodes[name], *SETTLED)}) < matured:
                self._await(self._nodes[name], SETTLED, self._plan.patience_s)
            if not self._all(self._nodes[name], "accepted"):
                raise StepError(f"{name} found no leaf of A better on its own sessions")
            self._print_tree(name)
        fetched = self._all(late, "fetched")
        alone = all(len(each.get("sources", ())) < 2 for each in fetched) and not late.killed
        if alone and any(each["bytes"] > MANY_CHUNKS_BYTES for each in fetched):
            raise StepError("C had every bundle from one peer only")

    def _route(self) -> None:
        for name in ("B", "C"):
            node = self._nodes[name]
            accepted = self._all(node, "accepted")[0]
            prompt, answer = self._sample(node, accepted["leaf"])
            result = node.command("route", prompt, "--answer", answer)
            if result["served_by"] != accepted["leaf"]:
                raise StepError(f"{name} routed to {result['served_by']}, not to the new leaf")
            self._saw(node, "routed")
            self._line(
                name,
                f"{prompt!r} -> {result['served_by_name']} of {accepted['origin'][:8]}, confidence "
                f"{result['confidence']:.2f}; loss of its answer {result['loss']['leaf']:.3f} "
                f"under the leaf, {result['loss']['chassis']:.3f} under the chassis",
            )

    def _all(self, node: Node, *kinds: str) -> list[dict[str, Any]]:
        """The figures of all events of these kinds so far."""
        return [event["data"] for event in node.events if event["event"] in kinds]

    def _tree(self, name: str) -> dict[str, Any]:
        return self._nodes[name].command("tree")

    def _sample(self, node: Node, leaf: str) -> tuple[str, str]:
        """A session of the node's own that the new leaf serves."""
        sample = node.command("leaf", "show", leaf)["sample"]
        return sample["prompt"], sample["completion"]

    def _delete(self) -> None:
        result = self._nodes["A"].command("data", "--delete", "--yes")
        self._line(
            "A",
            f"deleted {result['records_deleted']:,} records, retracted "
            f"{result['leaves_retracted']} leaves",
        )
        self._saw(self._nodes["A"], "deleted")
        for name in ("B", "C"):
            accepted = self._all(self._nodes[name], "accepted")[0]["leaf"]
            while True:
                dropped = self._await(self._nodes[name], "dropped", self._plan.patience_s)
                if dropped["data"]["leaf"] == accepted:
                    break
        for name in ("B", "C"):
            left = self._nodes[name].command("tree")["foreign"]
            if left:
                raise StepError(f"{name} still holds {left[0]['name']}")

    def _round(self, node: Node) -> None:
        """Run a round, printing what is told while it goes on."""
        with ThreadPoolExecutor(1) as aside:
            running = aside.submit(node.command, "round")
            while not running.done():
                self._print_fresh(node)
                wait([running], timeout=0.1)
            running.result()
        self._print_fresh(node)

    def _print_tree(self, name: str) -> None:
        node = self._nodes[name]
        shown = subprocess.run(
            [sys.executable, "-m", "node.cli", "tree"],
            env=node._environment(),
            capture_output=True,
            text=True,
        )
        for line in shown.stdout.splitlines():
            self._say(f"            {line}")

    def _await(self, node: Node, wanted: str | tuple[str, ...], limit_s: float) -> dict[str, Any]:
        """Wait for an event of a running node, printing those that come before it."""
        kinds = (wanted,) if isinstance(wanted, str) else wanted
        for event in node.events:
            if event["event"] in kinds and not event.get("seen"):
                event["seen"] = True
                return event
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for event in node.fresh():
                self._note(node, event)
                if event["event"] in kinds:
                    event["seen"] = True
                    return event
            if self._catch_up(node):
                return self._await(node, wanted, limit_s)
            code = node.process.poll() if node.process is not None else None
            if code is not None and code >= 0:  # one that was killed is started again
                raise StepError(f"{node.name} ended: see {node.home / 'run.log'}")
            time.sleep(0.1)
        raise StepError(f"{node.name}: no {wanted!r} within {limit_s:.0f} s")

    def _catch_up(self, node: Node) -> bool:
        """Note what a node that was killed had done and did not come to tell; True if it was."""
        if node.caught_up == node.killed:
            return False
        node.caught_up = node.killed
        told = {(event["event"], event["data"].get("leaf")) for event in node.events}
        there = {leaf["leaf_id"]: leaf for leaf in node.command("tree")["foreign"]}
        done = [("head", None, leaf) for leaf in list(there.values())[:1]]
        for id_, leaf in there.items():
            done += [("fetched", id_, leaf)] * (leaf["state"] in HAD)
            done += [(leaf["state"], id_, leaf)] * (leaf["state"] in SETTLED)
        for event in [each for each in node.events if each["event"] in HAD]:
            data = event["data"]
            if data["leaf"] not in there:
                done.append(("dropped", data["leaf"], {**data, "origin_key": data["origin"]}))
        for kind, id_, leaf in done:
            if (kind, id_) not in told:
                told.add((kind, id_))
                what = f"{leaf.get('name', id_)} of {leaf['origin_key'][:8]}" if id_ else "a peer"
                data = {**leaf, "leaf": id_, "origin": leaf["origin_key"]}
                text = f"{what}: {kind}, as it shows after its restart"
                node.events.append({"event": kind, "text": text, "data": data})
                self._note(node, node.events[-1])
        return True

    def _saw(self, node: Node, evidence: str) -> None:
        self._evidence.add((node.name, evidence))

    def _note(self, node: Node, event: dict[str, Any]) -> None:
        """Print an event, and keep it as evidence."""
        self._saw(node, event["event"])
        if event["event"] == "stage":
            self._saw(node, event["data"]["stage"])
        if event["event"] not in QUIET:
            self._line(node.name, event["text"])

    def _check_evidence(self) -> None:
        wanted = EVIDENCE_OF_THREE if self._plan.nodes > 1 else {"A": EVIDENCE_OF_ONE}
        missing = [
            f"{name}: {evidence}"
            for name, all_of_it in wanted.items()
            for evidence in all_of_it
            if (name, evidence) not in self._evidence
        ]
        if missing:
            raise StepError(f"not seen: {', '.join(missing)}")

    def _print_fresh(self, node: Node) -> None:
        for event in node.fresh():
            self._note(node, event)

    def _line(self, who: str, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:7.1f} s  {who}  {text}")


def _leave(number: int, _: object) -> None:
    """End like Ctrl-C does, by way of all that is to be done at the end."""
    raise SystemExit(128 + number)


def _verdicts(leaves: list[dict[str, Any]]) -> str:
    """Which leaves were judged, and with what interval."""
    judged = [leaf for leaf in leaves if leaf["verdict"]]
    return (
        "; ".join(
            f"{leaf['name']} is {leaf['verdict']}, over the style control {leaf['eval_vs_style']}"
            for leaf in judged
        )
        or "none was trained"
    )
