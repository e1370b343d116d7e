"""What long histories cost the lifecycle, and that nothing breaks in them.

    python tests/bench/lifecycle.py [--json FILE|-] [--topics N] [--days N] [--seeds N]

Seeded traffic of topics that begin, drift, burst, sleep, come in near pairs or fall into parts
goes day by day through decide, due, conclude and apply; observations are built with the errors
of a clusterer. After each round it is checked that no leaf is in two stages or comes back from an
end, that lineage and parents are acyclic, that every session is in one place (each 30 days), and
that no leaf changes its stage twice in seven days unless traffic moved tenfold. The first
breach ends the run with a message that begins with the seed.

leaves_most        live leaves on the fullest day; the smallest of the seeds
leaves_ever        leaves that were born, over all seeds
sessions           that came, over all seeds
lifecycle_s        processor time of one history in the lifecycle alone; the largest of the seeds
us_per_leaf_day    of that, for one live leaf on one day
whole_s            with building observations and checking them
transitions.KIND   how many there were, over all seeds
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support_lives import Lives, Traffic  # noqa: E402  after the path is set


def measure(topics: int, days: int, seeds: int) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    most, ever, sessions = [], 0, 0
    spent, each_us, whole = [], [], []
    for seed in range(1, seeds + 1):
        begun = time.process_time()
        traffic = Traffic(seed, topics, days)
        lives = Lives(traffic)
        live_days = 0
        fullest = 0
        for day in range(days):
            lives.live(day)
            live = len(lives.forest.live())
            live_days += live
            fullest = max(fullest, live)
        whole.append(time.process_time() - begun)
        most.append(fullest)
        ever += lives.forest.births
        sessions += int(traffic.counts.sum())
        spent.append(lives.seconds)
        each_us.append(1e6 * lives.seconds / max(live_days, 1))
        kinds += lives.tally
    return {
        "leaves_most": min(most),
        "leaves_ever": ever,
        "sessions": sessions,
        "lifecycle_s": round(max(spent), 2),
        "us_per_leaf_day": round(max(each_us), 1),
        "whole_s": round(max(whole), 2),
        "transitions": {kind.lower(): count for kind, count in sorted(kinds.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--topics", type=int, default=650)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    found = measure(arguments.topics, arguments.days, arguments.seeds)
    text = json.dumps(found, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
