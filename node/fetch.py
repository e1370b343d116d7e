"""From a peer's card to a leaf that may serve here: fetch by hash, check, judge on own sessions.

A peer's claims count for nothing. A bundle is taken only if its form is exactly what the chassis
allows, and a leaf is routed to only if it beats what serves its region now, and a style control,
on this node's own sessions.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import trio

from gossip.downloads import FetchError, FetchResult
from gossip.driver import GossipDriver
from gossip.wire import CHUNK_BYTES, CHUNKS_MAX
from leaves.bundle import BundleError, CheckedBundle, check_form, encode_label
from leaves.model import Matrix, Stage, Vector
from leaves.ports import EvaluateJob, Example
from leaves.training.evaluate import HELD_OUT_MIN, judge
from leaves.training.preprocess import stable
from router.calibrate import FALSE_REJECTS

from .foreign import Known, State
from .show import evaluation_line
from .told import Tell, Told

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A leaf's bundle and its style control's, checked and on disk."""

    leaf: CheckedBundle
    control: CheckedBundle | None
    sources: dict[str, int]
    size_bytes: int


class Fetcher:
    """Brings foreign leaves from HEARD to ACCEPTED or REFUSED, one at a time."""

    def __init__(
        self,
        app: App,
        driver: GossipDriver,
        serve: Callable[[], Awaitable[None]],
        tell: Tell,
        rng: Random,
    ) -> None:
        """serve: answers for the bundles that may be had now."""
        self._app = app
        self._driver = driver
        self._serve = serve
        self._tell = tell
        self._rng = rng
        self._woken = trio.Event()

    def wake(self) -> None:
        """There may be something new to fetch."""
        self._woken.set()

    async def run(self) -> None:
        """Fetch what is wanted whenever woken."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            wanted = await trio.to_thread.run_sync(self._wanted)
            if wanted:
                delay_s = self._app.config.mesh.fetch_delay_s
                await trio.sleep(self._rng.uniform(delay_s / 2, delay_s))
            self._rng.shuffle(wanted)  # so that peers who want the same do not ask in one order
            for known in wanted:
                await self.bring(known)

    async def bring(self, known: Known) -> Known:
        """Fetch, check and judge one leaf; returns how far it came."""
        try:
            fetched = await self._fetch(known)
        except FetchError as problem:
            log.info("bundle not had leaf=%s reason=%s", known.leaf.leaf, problem)
            return known  # stays HEARD: asked for again when a peer or a card comes
        except BundleError as problem:
            await self._driver.remove_bundle(bytes.fromhex(known.leaf.root or ""))
            return self._settled(known, State.REFUSED, {"reason": str(problem)})
        known = self._settled(known, State.FETCHED, _origins(fetched), fetched.leaf.label.name)
        await self._serve()  # how good it is, each node finds out for itself
        try:
            state, detail = await trio.to_thread.run_sync(self._judge, known, fetched)
        except BundleError as problem:
            state, detail = State.REFUSED, {"reason": str(problem)}
        known = self._settled(known, state, detail)
        if state is State.ACCEPTED:
            await trio.to_thread.run_sync(self._app.deploy)
        if state is State.REFUSED:
            for root in (known.leaf.root, known.detail["control_root"]):
                if root and root not in self._app.roots_to_serve():
                    await self._driver.remove_bundle(bytes.fromhex(root))
        return known

    def _wanted(self) -> list[Known]:
        """Mature leaves on our chassis, in a region where we have sessions to judge them by."""
        if not self._app.allows("fetch"):
            return []
        chassis = self._app.chassis.tag8.hex()
        heard = [
            known
            for known in self._app.foreign.all()
            if known.state in (State.HEARD, State.FETCHED, State.WAITING)
            and known.leaf.stage is Stage.MATURE
            and known.leaf.root is not None
            and known.leaf.chassis == chassis
        ]
        return [known for known in heard if len(self._app.region(known.leaf)) >= HELD_OUT_MIN]

    async def _fetch(self, known: Known) -> Fetched:
        assert known.leaf.root is not None
        result = await self._get(known.leaf.root, known.leaf.size_bytes)
        leaf = await trio.to_thread.run_sync(self._check, known.leaf.root)
        if hashlib.sha256(encode_label(leaf.label)).hexdigest() != known.leaf.label:
            raise BundleError("label is not the one that the card names")
        label = leaf.label
        sources: dict[str, int] = {str(p): size for p, size in result.sources.items()}
        control = None
        if label.control_root and 0 < label.control_bytes <= CHUNK_BYTES * CHUNKS_MAX:
            other = await self._get(label.control_root, label.control_bytes)
            control = await trio.to_thread.run_sync(self._check, label.control_root)
            for peer, size in other.sources.items():
                sources[peer] = sources.get(peer, 0) + size
        return Fetched(leaf, control, sources, result.size_bytes)

    async def _get(self, root: str, size_bytes: int) -> FetchResult:
        return await self._driver.fetch(bytes.fromhex(root), size_bytes)

    def _check(self, root: str) -> CheckedBundle:
        blob = self._app.bundles.get(root)
        if blob is None:
            raise BundleError("gone")
        return check_form(blob, self._app.chassis)

    def _judge(self, known: Known, fetched: Fetched) -> tuple[State, dict[str, Any]]:
        app = self._app
        rows = app.region(known.leaf)
        sessions = app.sessions()
        chosen = sorted(rows, key=stable)[: app.config.mesh.evaluate_sessions]
        examples = tuple(
            Example(s.session_id, s.prompt, s.completion, s.group)
            for s in (sessions[id_] for id_ in chosen)
            if s.completion
        )
        if len(examples) < HELD_OUT_MIN:
            return State.WAITING, {"reason": f"{len(examples)} own sessions to judge it by"}
        roots = [known.leaf.root, fetched.leaf.label.control_root if fetched.control else None]
        with app.adapter_files(roots) as (leaf, control):
            adapters = (("parent", None), ("candidate", leaf), ("style", control))
            job = EvaluateJob(app.chassis.path, examples, adapters if control else adapters[:2])
            losses = app.evaluator.losses(job).by_label
        evaluation = judge(
            losses if control else {**losses, "style": losses["parent"]},
            groups=[example.group or example.session for example in examples],
            style_margin=app.config.training.style_margin if control else 0.0,
            at=app.now(),
        )
        vectors = app.embeddings.vectors()
        scores = [float(vectors[id_] @ known.leaf.centroid) for id_ in rows]
        detail = {
            "gate": float(np.quantile(scores, FALSE_REJECTS)),
            "sessions": len(examples),
            "verdict": evaluation.verdict.value,
            "over_parent": msgspec.to_builtins(evaluation.over_parent),
            "over_style": msgspec.to_builtins(evaluation.over_style) if control else None,
            "reason": evaluation_line(evaluation),
        }
        return State.ACCEPTED if evaluation.won else State.REFUSED, detail

    def _settled(
        self, known: Known, state: State, detail: dict[str, Any], name: str | None = None
    ) -> Known:
        settled = self._app.foreign.settle(known, state, detail, name)
        reason = detail.get("reason", "")
        self._tell(
            Told(
                state.value,
                f"{settled.name} of {settled.leaf.origin[:8]}: {state}"
                + (f"; {reason}" if reason else ""),
                {"leaf": known.leaf.leaf, "origin": known.leaf.origin, **detail},
            )
        )
        return settled


def _origins(fetched: Fetched) -> dict[str, Any]:
    total = sum(fetched.sources.values())
    return {
        "bytes": total,
        "sources": fetched.sources,
        "control_root": fetched.leaf.label.control_root if fetched.control else "",
        "reason": f"{total / 1e6:.1f} MB from {len(fetched.sources)} peers, hashes verified",
    }


def region(
    ids: Sequence[str], vectors: Matrix, leaf: Vector, others: Sequence[Vector], cosine_min: float
) -> list[str]:
    """Sessions that stand nearer to a leaf than to any other centroid, and near enough to it.

    vectors: shape (n, d), row i of session ids[i]. Ties go to the leaf.
    """
    if not len(ids):
        return []
    own = vectors @ leaf
    near = own >= cosine_min
    if others:
        near &= own >= (vectors @ np.stack(others).T).max(axis=1)
    return [id_ for id_, inside in zip(ids, near, strict=True) if inside]
