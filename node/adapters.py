"""What a node reaches its machine and its peers by: the real ones. A simulation brings its own.

Each is made when it is asked for and imports what it needs then, so that no command loads more than
it uses. `App` holds them; nothing else in the node chooses an adapter of these ports.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gossip.ports import PeerId, Transport
from leaves.ports import Answerer, Clusterer, Evaluator, Executor, Report, Schedule, Trainer

if TYPE_CHECKING:
    from gossip.relaying import RelayState
    from gossip.transport_config import TransportConfig
    from router.ports import Encoder

    from .app import App
    from .capture.second_scan import SecondScan
    from .config import NightConfig
    from .examining import Gate
    from .senses import SensesPort

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a running node looks at what it is not told of, in seconds."""

    poll_s: float = 0.5  # the forest, and the owner's orders: an idle poll reads two counters
    refresh_s: float = 5.0  # who is connected, what may be served
    retry_s: float = 60.0  # what was not had of peers
    rounds_s: float = 60.0  # whether a round is due
    night_s: float = 0.8  # whether work may go on: it gives way within two seconds


class MeshTransport(Transport, Protocol):
    """A transport that can be run, and that can reach out."""

    async def run(self, *, task_status: Any) -> None:
        """Carry frames until cancelled. Raises ListenError if it cannot be reached."""
        ...

    async def dial(self, address: str) -> PeerId:
        """Connect; `Connected` follows. Raises DialError."""
        ...

    def standing(self) -> dict[str, Any]:
        """How the host does, for the run file; see `Libp2pTransport`."""
        ...

    async def probe(self, peer: PeerId, within_s: float) -> bool:
        """Whether a connected peer answers in time. One that does not is disconnected."""
        ...

    def relays(self) -> Sequence[RelayState]:
        """How it stands with each relay that this node is to be reached through."""
        ...

    def relayed(self) -> dict[str, int] | None:
        """What is relayed for others; None if nothing ever is."""
        ...


class Examiner(Evaluator, Answerer, Protocol):
    """Measures losses and answers; what it does in another thread can be ended."""

    def stop(self) -> None: ...

    def pause(self) -> None:
        """Stop the computation where it is, if there is one, and its time limit."""
        ...

    def resume(self) -> None: ...


class Adapters:
    """The real ones."""

    pace = Pace()
    watches = True  # the files of other tools, in a thread of its own
    roams = True  # the machine sleeps, and its network changes
    answers = True  # the local endpoint and the dashboard

    def random(self) -> Random:
        """A generator that nobody can guess."""
        return Random(os.urandom(16))

    def secret(self) -> bytes:
        """The 32-byte seed of a new key."""
        from .identity import drawn

        return drawn()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what waits or computes without making the node's loop wait."""
        import trio

        return await trio.to_thread.run_sync(work)

    async def in_spare_thread(self, work: Callable[[], T]) -> T:
        """The same; once it is cancelled it is not waited for, and what it comes to is lost."""
        import trio

        # mypy loses the keywords of a function of no further arguments.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg]

    def senses(self, home: Path, config: NightConfig) -> SensesPort:
        """What is known of the machine."""
        from .senses import MachineSenses

        return MachineSenses(home, config)

    def transport(self, key: bytes, config: TransportConfig) -> MeshTransport:
        from gossip.libp2p_transport import Libp2pTransport

        return Libp2pTransport(key, config)

    def start(
        self, command: list[str], environment: Mapping[str, str], begun: Callable[[int], None]
    ) -> Awaitable[int]:
        """Run one of this node's commands to its end, for its exit code; `begun` hears its id."""
        from .schedule import start_idle

        return start_idle(command, environment, begun)

    def encoder(self) -> Encoder | None:
        """None: the one that groove.toml names."""
        return None

    def clusterer(self, make: Callable[[Executor], Clusterer]) -> Clusterer:
        from .executors import ChildClusterer

        return ChildClusterer(make)

    def trainer(self, threads: int) -> Trainer:
        from leaves.training.child import ChildTrainer

        return ChildTrainer(threads=threads)

    def evaluator(self, threads: int) -> Examiner:
        from leaves.training.child import ChildEvaluator

        return ChildEvaluator(threads=threads)

    def second_scan(self, cache: Path) -> AbstractContextManager[SecondScan]:
        from .capture.second_scan import SecondScan

        return SecondScan(cache)

    def gate(self, app: App, schedule: Schedule, report: Report) -> Gate:
        """What looks into an adapter before it is packed."""
        from . import examining

        return examining.gate(app, schedule, report)
