"""What simulating the mesh costs: events a second, and whole nights of many nodes.

    python tests/bench/mesh_speed.py [--json FILE|-] [--only swarm|night1000|night10000] [--hours H]

An event is what a core has handled; what the simulator does beside it (broadcasts that were seen
before, heartbeats, dials) is not counted, and is paid for. Each part runs in a child process, whose
processor time and peak memory are its own; nothing runs beside it.

swarm        days of faults at 20 nodes, every invariant checked after every event
night1000    1,000 nodes hold the tables of all, 20 leaves each; in the night each changes five of
             its leaves once, at a time of its own, and in the end all hold the same
night10000   the same of 10,000 nodes, of which 200 publish, in a quarter of the time

events_per_s.PART    core events for each second of processor time
NIGHT.minutes        of processor time, with the making of the nodes and the last comparison
NIGHT.wall_minutes   by the clock
NIGHT.rss_mb         peak of the process; rss_gb for the large one
NIGHT.bytes_per_node sent on the bulk plane, by a node on average
NIGHT.simulated_h    of the night
NIGHT.converged_s    after its end, until all agreed
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

from mesh_kit import table  # noqa: E402  after the path is set

from gossip.ports import PeerId  # noqa: E402
from simnet.network import Network, Node  # noqa: E402
from simnet.runs import play  # noqa: E402

SWARM_SEEDS = range(8)
LEAVES, CHANGED = 20, 5
NIGHT_H = 4.0  # from one to five
PARTS = ("swarm", "night1000", "night10000")


def swarm() -> dict[str, float]:
    begun, events = time.process_time(), 0
    for seed in SWARM_SEEDS:
        run = play("swarm", nodes=20, seed=seed)
        assert run.broken is None, run.broken
        events += run.events
    return {"events_per_s": events / (time.process_time() - begun), "events": events}


def night(size: int, publishing: int, hours: float) -> dict[str, float]:
    """Play a night, and return what it cost. Fails if not all agree in the end."""
    begun, wall = time.process_time(), time.monotonic()
    net = Network(size=size, seed=1, disks=False, checked="never")
    authors = list(net.nodes)[:publishing]
    net.preload({name: table(net.nodes[name], LEAVES) for name in authors})
    # Almost nothing that lives now will die, and the collector would look at it again and again.
    gc.collect()
    gc.freeze()
    gc.disable()
    chance, length_s = Random("night"), hours * 3600
    for name in authors:
        at = chance.uniform(0, length_s - 600)
        net.at(at, f"publish {name}", lambda name=name: _publish(net, name))
    played = time.process_time()
    net.run(length_s)
    took = time.process_time() - played
    events = net.events
    late = _agree(net, authors)
    return {
        "minutes": (time.process_time() - begun) / 60,
        "wall_minutes": (time.monotonic() - wall) / 60,
        "events": events,
        "events_per_s": events / took,
        "bytes_per_node": net.sent["bulk_bytes"] / size,
        "frames_per_node": net.sent["bulk_frames"] / size,
        "body_duplicates": net.sent["body_duplicate"] / max(1, net.sent["body_first"]),
        "simulated_h": hours,
        "converged_s": late,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _publish(net: Network, name: PeerId) -> None:
    net.publish(name, *table(net.nodes[name], LEAVES, changed=CHANGED))


def _agree(net: Network, authors: list[PeerId]) -> float:
    """Run until every node holds what each author has signed last."""
    signed = {}
    for name in authors:
        replica = net.nodes[name].replica
        assert replica is not None
        signed[net.nodes[name].origin] = replica.own_head()

    def holds(node: Node) -> bool:
        replica = node.replica
        assert replica is not None
        return all(replica.view(origin).head == head for origin, head in signed.items())

    late = net.run_until(holds, within_s=600, step_s=5)
    assert late is not None, "seed 1: not all agree ten minutes after the night"
    assert all(head and head.n_live == LEAVES for head in signed.values())
    return late


def measure(part: str, hours: float) -> dict[str, float]:
    match part:
        case "swarm":
            return swarm()
        case "night1000":
            return night(1_000, 1_000, hours)
        case _:
            found = night(10_000, 200, hours / 4)
            return found | {"rss_gb": found["rss_mb"] / 1024}


def in_a_child(part: str, hours: float) -> dict[str, float]:
    """Measure a part in a process of its own."""
    command = [sys.executable, __file__, "--child", part, "--hours", str(hours)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", help="a file, or - for standard output")
    parser.add_argument("--only", choices=PARTS, action="append", help="which parts; all")
    parser.add_argument("--hours", type=float, default=NIGHT_H, help="length of the night")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        sys.stdout.write(json.dumps(measure(asked.child, asked.hours)))
        return
    result: dict[str, Any] = {"events_per_s": {}}
    for part in asked.only or PARTS:
        found = {name: round(value, 4) for name, value in in_a_child(part, asked.hours).items()}
        result["events_per_s"][part] = round(found.pop("events_per_s"))
        if part != "swarm":
            result[part] = found
        if asked.json != "-":
            print(part, *(f"{name}={value:g}" for name, value in found.items()))
    text = json.dumps(result, indent=1)
    if asked.json == "-":
        print(text)
    elif asked.json:
        Path(asked.json).write_text(text + "\n")
    print(f"events a second: {result['events_per_s']}", file=sys.stderr)


if __name__ == "__main__":
    main()
