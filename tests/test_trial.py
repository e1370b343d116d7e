"""What a peer's leaf has to beat before it may serve here, whatever the peer brings with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_mesh import leaf, other, vector

from gossip.downloads import FetchError
from leaves.bundle import BundleError
from leaves.model import Adapter, Forest
from leaves.ports import EvaluateJob, Losses, Report, silent
from leaves.store import Role
from leaves.training.chassis import Chassis, Linear
from leaves.training.general import general_examples
from node import trial
from node.app import App
from node.foreign import LOOKS, Known, State
from node.trial import margin, own_control, tried

CHASSIS = Chassis(Path(), "d" * 64, {"q_proj": Linear(100, 100, 1.0)}, {})
ASKS = [f"s{n:02d}" for n in range(40)]
NOISE = np.random.default_rng(1).normal(0, 0.05, len(ASKS))
BARE = 3.0 + np.random.default_rng(2).normal(0, 0.3, len(ASKS))
STYLED = BARE - 0.1  # what style alone brings


class Measured:
    """Stands where the evaluator stands: losses as they are told, by label."""

    def __init__(self, rise: float = 0.0, **by_label: Sequence[float]) -> None:
        self._by_label, self._rise = by_label, rise
        self.asked: list[EvaluateJob] = []

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        self.asked.append(job)
        labels = [label for label, _ in job.adapters]
        if job.examples == general_examples():
            same = (2.0,) * len(job.examples)
            raised = tuple(each + self._rise for each in same)
            return Losses({"parent": same, "candidate": raised}, (9,) * len(same))
        numbers = [ASKS.index(each.session) for each in job.examples]
        found = {
            label: tuple(float(self._by_label[label.replace(" ", "_")][n]) for n in numbers)
            for label in labels
        }
        return Losses(found, (9,) * len(numbers))


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = App.open(create=True)
    assert app.origin
    any_app: Any = app
    any_app.chassis = CHASSIS
    any_app.region = lambda leaf: ASKS
    any_app.sessions = lambda: {
        id_: SimpleNamespace(session_id=id_, prompt="ask", completion="answer", group=id_)
        for id_ in ASKS
    }
    any_app.adapter_files = lambda roots: nullcontext([Path(root) for root in roots])
    app.embeddings.append(ASKS, [1] * len(ASKS), np.stack([vector(n) for n in range(len(ASKS))]))
    return app


def judged(
    app: App, evaluator: Measured, known: Known | None = None
) -> tuple[State, Mapping[str, Any]]:
    any_app: Any = app
    any_app.evaluator = evaluator
    return tried(app, known or Known(other(), State.FETCHED, "graphs", {}), "c" * 64)


def with_own_control(app: App, learned: Sequence[str] = ()) -> None:
    """The home has a leaf of its own, trained on this chassis."""
    control = app.bundles.put(b"an own style control")
    adapter = Adapter("a" * 64, "b" * 64, control, CHASSIS.tag8.hex(), 8)
    own = leaf(5, adapter=adapter)
    forests: Any = SimpleNamespace(
        forest=lambda: Forest({own.id: own}, 1, b"\1" * 32),
        used=lambda id_, role: set(learned) if (id_, role) == (own.id, Role.CONTROL) else set(),
    )
    app.__dict__["forests"] = forests


SPOILT = {
    "worse than the chassis": BARE + 0.3,
    "as good as the chassis": BARE,
    "hardly trained": BARE - 0.001,
    "good on half of the sessions": BARE + np.where(np.arange(len(ASKS)) % 2, 1.0, -0.5),
}


@pytest.mark.parametrize("control", SPOILT.values(), ids=SPOILT.keys())
def test_a_peer_cannot_choose_a_control_that_lets_a_style_win(app: App, control: Any) -> None:
    with_own_control(app)
    style_alone = STYLED - 0.02 + NOISE * 0.1
    found = Measured(parent=BARE, candidate=style_alone, style=control, own_style=STYLED)
    state, detail = judged(app, found)
    assert state is State.REFUSED and detail["style_control"] == "own"
    honest = Measured(parent=BARE, candidate=style_alone, style=STYLED, own_style=STYLED + 0.05)
    state, detail = judged(app, honest)
    assert state is State.REFUSED and detail["style_control"] == "the peer's", "only harder"


def test_a_control_whose_losses_are_no_numbers_judges_nothing(app: App) -> None:
    with_own_control(app)
    astray = np.full(len(ASKS), np.nan)
    found = Measured(parent=BARE, candidate=BARE - 0.5, style=astray, own_style=STYLED)
    with pytest.raises(BundleError, match="not finite"):
        judged(app, found)


@pytest.mark.parametrize("control", [BARE + 0.3, BARE], ids=["worse", "equal"])
def test_without_an_own_control_one_that_teaches_nothing_is_no_control(
    app: App, control: Any
) -> None:
    found = Measured(parent=BARE, candidate=BARE - 0.5, style=control)
    state, detail = judged(app, found)
    assert state is State.REFUSED and "style control is no control" in detail["reason"]
    assert LOOKS not in detail, "nothing was decided on these sessions"


@pytest.mark.parametrize("own", [False, True], ids=["never trained", "trained"])
def test_a_leaf_that_knows_its_subject_is_accepted_by_an_honest_control(
    app: App, own: bool
) -> None:
    if own:
        with_own_control(app)
    found = Measured(
        parent=BARE, candidate=STYLED - 0.3 + NOISE, style=STYLED, own_style=STYLED + 0.02
    )
    state, detail = judged(app, found)
    assert state is State.ACCEPTED and detail["style_control"] == "the peer's"
    assert detail["over_style"]["low"] > 0.2 and detail[LOOKS] == 1


def test_an_own_control_judges_no_session_that_it_learned(app: App) -> None:
    with_own_control(app, ASKS[:10])
    found = Measured(parent=BARE, candidate=BARE, style=STYLED, own_style=STYLED)
    judged(app, found)
    assert {each.session for each in found.asked[0].examples} == set(ASKS[10:])
    with_own_control(app, ASKS[:30])
    judged(app, found)
    labels = [label for label, _ in found.asked[2].adapters]
    assert labels == ["parent", "candidate", "style"], "too few sessions are left for it"
    assert len(found.asked[2].examples) == len(ASKS)


def test_of_own_controls_the_one_that_learned_least_of_the_region_is_taken(app: App) -> None:
    near, far = (
        leaf(n, adapter=Adapter("a" * 64, "b" * 64, root, CHASSIS.tag8.hex(), 8))
        for n, root in ((0, app.bundles.put(b"near")), (1, app.bundles.put(b"far")))
    )
    alien = leaf(2, adapter=replace(near.adapter, chassis="e" * 16))
    forest = Forest({each.id: each for each in (near, far, alien)}, 3, b"\1" * 32)
    learned = {near.id: set(ASKS[:2]), far.id: {ASKS[0], "elsewhere"}}
    forests: Any = SimpleNamespace(
        forest=lambda: forest, used=lambda id_, role: learned.get(id_, set())
    )
    app.__dict__["forests"] = forests
    assert near.adapter and far.adapter
    taken = own_control(app, other(), ASKS)
    assert taken is not None and (taken.bundle, taken.learned) == (far.adapter.control, {"s00"})
    learned[near.id] = set()
    learned[far.id] = set()
    taken = own_control(app, other(), ASKS)
    assert taken is not None and taken.bundle == near.adapter.control, "of the nearest leaf"


def test_a_peers_leaf_that_spoils_other_text_is_refused(app: App) -> None:
    good = {"parent": BARE, "candidate": STYLED - 0.3, "style": STYLED}
    assert judged(app, Measured(rise=0.01, **good))[0] is State.ACCEPTED
    state, detail = judged(app, Measured(rise=0.05, **good))
    assert state is State.REFUSED and detail["general_rise"] > 0.02
    assert "other text" in detail["reason"]


def test_the_margin_over_the_control_is_the_larger_of_configured_and_measured(app: App) -> None:
    configured = app.config.training.style_margin
    assert margin(app) == configured
    training = app.config.training
    name = trial.recipe(
        CHASSIS.tag8.hex(),
        trial.Schedule(steps=training.steps, learning_rate=training.learning_rate),
    )
    folder = app.home / "training"
    folder.mkdir()
    for difference, larger in ((0.3, True), (0.001, False)):
        pairs = {str(n): difference for n in range(12)}
        (folder / "margins.json").write_text(json.dumps({name: pairs}))
        assert (margin(app) > configured) is larger and margin(app) >= configured
    (folder / "margins.json").write_text("{")
    assert margin(app) == configured


def test_a_leaf_that_comes_in_ever_new_versions_has_to_win_by_more_each_time(app: App) -> None:
    drawn = np.random.default_rng(1).normal(0, 0.2, len(ASKS))
    gain = drawn - drawn.mean() + 0.17  # over the style control: what a few looks allow
    found = Measured(parent=gain + 2, candidate=gain * 0, style=gain)
    states = []
    for version in range(1, 7):
        app.foreign.replace_origin("02" * 32, [other(root=f"{version:064x}", version=version)])
        known = app.foreign.all()[0]
        state, detail = judged(app, found, known)
        app.foreign.settle(known, state, dict(detail))
        assert detail[LOOKS] == version
        states.append(state)
    assert states[0] is State.ACCEPTED and states[-1] is State.REFUSED


def test_a_bundle_that_goes_before_the_trial_is_not_judged_as_the_bare_chassis(app: App) -> None:
    any_app: Any = app
    any_app.adapter_files = lambda roots: nullcontext([Path("leaf"), None])
    with pytest.raises(FetchError):
        judged(app, Measured())
