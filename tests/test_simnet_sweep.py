"""Many seeds on several cores: the runs, their order and their totals do not depend on how."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec

import pytest
from kept_seeds import KEPT

from simnet import scenarios
from simnet.invariants import InvariantError
from simnet.network import Network
from simnet.runs import Plan, Run, carry_out, play
from simnet.sweep import SweepError, bound, carry_out_all, sweep, totals


def failing(net: Network) -> dict[str, float]:
    """Break on the seeds that 3 divides."""
    net.run(1)
    if net.seed % 3 == 0:
        raise InvariantError(net.seed, "liveness", "as it was told to")
    return {"ran": 1.0}


def raising(net: Network) -> dict[str, float]:
    """Raise what nobody expects."""
    raise KeyError("what nobody expects")


@pytest.fixture(autouse=True)
def more_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scenarios.SCENARIOS, "failing", failing)
    monkeypatch.setitem(scenarios.SCENARIOS, "raising", raising)


def test_the_runs_are_the_same_and_in_order_on_one_core_and_on_two() -> None:
    alone = list(sweep("propagation", range(5), nodes=5, jobs=1))
    together = list(sweep("propagation", range(5), nodes=5, jobs=2))
    assert alone == together
    assert [run.seed for run in alone] == [0, 1, 2, 3, 4]
    assert alone[2] == play("propagation", nodes=5, seed=2)


def test_a_sweep_ends_with_the_first_broken_seed() -> None:
    runs = list(sweep("failing", [1, 2, 3, 4, 6], nodes=4, jobs=1))
    assert [run.seed for run in runs] == [1, 2, 3]
    assert [run.broken is not None for run in runs] == [False, False, True]


def test_a_sweep_goes_on_if_it_is_told_to() -> None:
    runs = list(sweep("failing", range(1, 8), nodes=4, jobs=1, keep_going=True))
    assert [run.seed for run in runs if run.broken] == [3, 6]
    assert totals(runs)["violations"] == 2
    assert totals(runs)["bound"] is None


def test_what_raises_is_a_finding_with_its_seed_and_where_it_was() -> None:
    run = play("raising", nodes=4, seed=7)
    assert run.broken is not None
    assert str(run.broken) == "seed 7: no error: KeyError: 'what nobody expects'"
    assert any("raise KeyError" in line for line in run.broken.tail)


def test_totals_add_up() -> None:
    runs = [play("churn", nodes=5, seed=seed) for seed in range(3)]
    sums = totals(runs)
    assert sums["seeds"] == sums["runs_played"] == 3
    assert sums["nodes"] == [5]
    assert sums["events"] == sum(run.events for run in runs)
    assert sums["invariant_checks"] == sum(sum(run.checks.values()) for run in runs)
    assert all(sums["faults"][kind] >= count for kind, count in runs[0].faults.items())
    assert sums["bound"] is None


def test_no_failure_in_n_runs_bounds_the_share_that_fails() -> None:
    assert bound(2000, 0) == "at most 0.15 % of runs break (95 %)"
    assert bound(52, 0) == "at most 5.6 % of runs break (95 %)"
    assert bound(9, 0) is None  # next to nothing is known
    assert bound(2000, 1) is None


def test_without_ray_the_sweep_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SweepError, match="needs Ray"):
        list(sweep("propagation", range(2), nodes=4, executor="ray"))


def test_faults_that_are_kept_off_do_not_happen() -> None:
    plan = Plan("partition-heal", nodes=5, seed=1, loss=0.2, without=("loss", "partition"))
    run = carry_out(plan)
    assert run.broken is None, str(run.broken)
    assert not any("loss" in kind or "partition" in kind for kind in run.faults)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "broke"), KEPT, ids=[f"{p.scenario}-{p.nodes}-{p.seed}" for p, _ in KEPT]
)
def test_what_broke_once_holds(plan: Plan, broke: str) -> None:
    run = carry_out(plan)
    assert run.broken is None, f"{run.broken}\n  it once broke so: {broke}\n  {plan.command}"


@pytest.mark.slow
def test_a_hundred_seeds_of_every_mixture_of_faults_hold_at_twenty_nodes() -> None:
    runs: list[Run] = []
    plans = (Plan("swarm", nodes=20, seed=seed) for seed in range(1000, 1100))
    for run in carry_out_all(plans, jobs=2):
        runs.append(run)
        assert run.broken is None, f"{run.broken}\n  replay: {run.replay}"
    assert totals(runs)["seeds"] == 100


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray, the extra `ray`, is not installed")
def test_ray_plays_the_same_runs() -> None:
    here = list(sweep("propagation", range(4), nodes=5, jobs=1))
    assert list(sweep("propagation", range(4), nodes=5, jobs=2, executor="ray")) == here
