"""A home of the size that every page must show in 200 ms: 100,000 sessions, 500 leaves, 200 peers'.

    python tests/bench/big_home.py HOME [--sessions 100000] [--leaves 500]

The leaves and their lives are those of the tests of the pages, with more of each; on top there is
the corpus itself, leaves of eight peers, and a thousand events. Takes two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import support_pages  # noqa: E402
from support_capture import record  # noqa: E402

from leaves.model import Stage, leaf_id, unit  # noqa: E402
from node.app import App  # noqa: E402
from node.foreign import State  # noqa: E402
from node.identity import load_or_create  # noqa: E402
from node.mesh import ForeignLeaf  # noqa: E402
from node.told import Told  # noqa: E402

PEERS, LEAVES_OF_PEER = 8, 25
EVENTS = 1000
RECORDS_AT_ONCE = 5000


def build(home: Path, sessions: int = 100_000, leaves: int = 500) -> App:
    """Make the home at `home`, which must not exist."""
    names = tuple(f"domain-{n:03d}" for n in range(leaves))
    app = support_pages.grown(home, sessions, names)
    load_or_create(home, app.clock.now_s(), app.adapters.secret)
    _corpus(app, sessions)
    for number in range(PEERS):
        _peer(app, number)
    app.deploy()
    for number in range(EVENTS):
        app.events.tell(Told("stage", f"domain-{number % leaves:03d}: sprout -> mature"))
    return app


def _corpus(app: App, sessions: int) -> None:
    """Two records for each embedded session: what was asked, and how it ended."""
    ids = list(app.embeddings.snapshot().ids)
    batch = []
    for number, id_ in enumerate(ids):
        at = app.clock.now_s() - 86_400 * 120 * (1 - number / len(ids))
        batch.append(
            record(
                2 * number,
                at=at,
                session_id=id_,
                content=f"How do I write test {number} of the parser in this project?",
            )
        )
        about = {"event": "SESSION_CLOSE", "outcome": "accepted", "reward": 0.8}
        batch.append(
            record(
                2 * number + 1,
                at=at + 60,
                session_id=id_,
                content_type="workflow",
                content="SESSION_CLOSE",
                metadata=about,
            )
        )
        if len(batch) >= RECORDS_AT_ONCE:
            app.corpus.add_records(batch)
            batch = []
    app.corpus.add_records(batch)


def _peer(app: App, number: int) -> None:
    origin = hashlib.sha256(f"peer {number}".encode()).hexdigest()
    rng = np.random.default_rng(number)
    centres = unit(rng.normal(0, 1, (LEAVES_OF_PEER, app.dimensions)).astype(np.float32))
    cards = [
        ForeignLeaf(
            origin=origin,
            leaf=leaf_id(bytes.fromhex(origin), birth),
            version=2,
            stage=Stage.MATURE,
            sessions_log2=9,
            root=hashlib.sha256(f"{origin} {birth}".encode()).hexdigest(),
            label="ab" * 32,
            size_bytes=9_800_000,
            chassis="62c99a05acf4eb68",
            centroid=centre,
        )
        for birth, centre in enumerate(centres)
    ]
    app.foreign.replace_origin(origin, cards)
    states = (State.ACCEPTED, State.ACCEPTED, State.REFUSED, State.WAITING, State.FETCHED)
    for birth, card in enumerate(cards):
        known = app.foreign.get(origin, card.leaf)
        assert known is not None
        detail = {"gate": 0.3, "reason": "over parent +0.212, over style control +0.093"}
        app.foreign.settle(known, states[birth % len(states)], detail, f"theirs-{number}-{birth}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--leaves", type=int, default=500)
    args = parser.parse_args()
    build(args.home, args.sessions, args.leaves)


if __name__ == "__main__":
    main()
