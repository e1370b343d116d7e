"""A whole node (`node.daemon`) in a process, with a door for orders: what `soak.py` runs ten of.

    GROOVE_HOME=HOME python tests/soak_node.py LISTEN NAME

It takes the orders `publish`, `retract`, `links` and `view` of `swarm_worker.py`, and answers as
that does. The leaves are made up, so no model is needed; all the rest is the node that owners run,
ended by SIGTERM or killed like theirs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trio  # noqa: E402
from swarm_worker import leaf, table, tell, view  # noqa: E402

from gossip.driver import GossipDriver  # noqa: E402
from node.app import App  # noqa: E402
from node.daemon import Daemon  # noqa: E402
from node.logfile import log_to  # noqa: E402
from node.told import Told  # noqa: E402


async def obey(daemon: Daemon, name: str, order: dict[str, Any]) -> None:
    driver: GossipDriver = daemon._driver
    match order["do"]:
        case "publish":
            await driver.publish(table(name, order["version"]), (), (), urgent=True)
        case "retract":
            await driver.retract(leaf(name, order["leaf"]))
        case "links":
            tell("links", at=name, links=len(driver.peers()))
        case "view":
            tell("view", at=name, refused=dict(driver.refused), **view(daemon.replica))


async def work(app: App, listen: str, name: str) -> None:
    def hear(told: Told) -> None:
        if told.event in ("listening", "connected", "disconnected"):
            tell(told.event, at=name, t=time.monotonic())

    daemon = Daemon(app, listen, app.telling(hear))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await daemon.run_until_told()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            nursery.start_soon(obey, daemon, name, json.loads(line))
        nursery.cancel_scope.cancel()


def main() -> None:
    listen, name = sys.argv[1:]
    app = App.open()
    log_to(app.home, verbose=False)
    with app.lock("run", "a node is running here already"):
        trio.run(work, app, listen, name)


if __name__ == "__main__":
    main()
