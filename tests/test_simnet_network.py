"""The simulated mesh: scenarios hold, runs repeat, and a rule that is dropped is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from gossip import author, core, envelope, keys, origin, pull, records
from gossip.events import Save, Send
from gossip.ports import Record, Store
from simnet import scenarios
from simnet.disk import SimDisk
from simnet.faults import Links, flipped, tampered
from simnet.network import Network
from simnet.runs import Run, play
from simnet.scenarios import SCENARIOS

SEEDS = range(3)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def held(run: Run) -> Run:
    assert run.broken is None, f"{run.broken}\n  replay: {run.replay}"
    return run


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_invariant_holds(scenario: str, seed: int) -> None:
    run = held(play(scenario, nodes=12, seed=seed))
    assert run.checks["authenticity"] > 0, f"seed {seed}: nothing was checked"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "scenario", ["propagation", "partition-heal", "churn", "retraction", "fork"]
)
def test_every_invariant_holds_where_a_third_of_the_frames_is_lost(
    scenario: str, seed: int
) -> None:
    held(play(scenario, nodes=12, seed=seed, loss=0.3))


@pytest.mark.parametrize("seed", range(100, 120))
def test_every_invariant_holds_under_any_mixture_of_faults(seed: int) -> None:
    held(play("swarm", nodes=5, seed=seed))


def test_a_hundred_nodes_hear_of_a_leaf_within_seconds() -> None:
    run = held(play("propagation", nodes=100, seed=1))
    assert run.figures["t100_s"] < 5, f"seed 1: {run.figures}"


# Determinism --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = (play("churn", nodes=8, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.trace_hash != other.trace_hash


def test_the_trace_does_not_depend_on_how_python_hashes_strings() -> None:
    code = "from simnet.runs import play; print(play('swarm', nodes=6, seed=3).trace_hash)"
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0].strip() == play("swarm", nodes=6, seed=3).trace_hash


# The invariants can fail --------------------------------------------------------------------------
# Each mutant drops one guard. A mutant that no seed kills would mean that an invariant sleeps.


def _without_monotonic_heads(patch: pytest.MonkeyPatch) -> None:
    real = origin.Claims.with_head

    def with_head(self: origin.Claims, head: envelope.Signed) -> origin.Claims:  # type: ignore[type-arg]
        claims = real(self, head)
        same_epoch = head.value.epoch == self.epoch and claims.standing.value == 0
        return records.replace(claims, head=head) if same_epoch else claims

    patch.setattr(origin.Claims, "with_head", with_head)
    patch.setattr(core.Replica, "_hear_head", _trusting_hear_head)


def _trusting_hear_head(self: core.Replica, sealed, via) -> Iterator[object]:  # type: ignore[no-untyped-def]
    claims = self._held[sealed.value.origin].claims
    known = claims.head is not None and claims.head.id == sealed.id
    if not known and sealed.value.epoch == claims.epoch and claims.standing.value == 0:
        yield from self._want(core.open_head(sealed, claims), via)


def _without_signatures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(envelope, "verify", lambda public, signature, message: True)


def _without_the_merkle_root(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pull, "commits_to", lambda head, index: True)
    patch.setattr(pull, "_add", _trusting_add)


def _trusting_add(pull_, index, cards, usage, held) -> None:  # type: ignore[no-untyped-def]
    by_leaf = {card.leaf: card for card in (*held.live(), *cards)}
    for row in index.rows:
        if row.leaf in by_leaf:
            pull_.cards[row.card] = by_leaf[row.leaf]
    pull_.usage = usage


def _without_the_echo(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(author.Author, "heard", lambda self, head: False)


def _without_retractions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(origin.Claims, "is_retracted", lambda self, leaf: False)


def _telling_before_saving(patch: pytest.MonkeyPatch) -> None:
    real = core.Replica.handle

    def handle(self: core.Replica, event: core.Event) -> list[core.Effect]:
        return sorted(real(self, event), key=lambda effect: not isinstance(effect, Send))

    patch.setattr(core.Replica, "handle", handle)


def _saving_without_sync(patch: pytest.MonkeyPatch) -> None:
    real = core.changes

    def changes(old: core.Held, new: core.Held, *, durable: bool) -> Save | None:
        return real(old, new, durable=False)

    patch.setattr(core, "changes", changes)


def _without_fork_detection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(origin, "conflict", lambda a, b: False)


def _without_reconciliation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(core.Holdings, "compared", lambda self, theirs: iter(()))


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, set[str]]] = {
    _without_monotonic_heads: ("churn", {"monotonic", "no resurrection"}),
    _without_signatures: ("tampering", {"authenticity", "monotonic", "fork"}),
    _without_the_merkle_root: ("tampering", {"authenticity"}),
    _without_the_echo: ("restored-backup", {"no self-fork", "fork"}),
    _without_retractions: ("retraction", {"retraction", "liveness", "authenticity"}),
    _telling_before_saving: ("churn", {"no self-fork", "fork", "monotonic", "authenticity"}),
    _saving_without_sync: ("churn", {"no self-fork", "fork", "monotonic"}),
    _without_fork_detection: ("fork", {"liveness", "convergence"}),
    _without_reconciliation: ("late-joiner", {"liveness", "convergence"}),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_dropping_a_guard_breaks_an_invariant_on_some_seed(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, expected = MUTANTS[mutant]
    keys.verify.cache_clear()
    mutant(monkeypatch)
    for seed in range(12):
        run = play(scenario, nodes=8, seed=seed)
        if run.broken is not None:
            assert run.broken.invariant in expected, str(run.broken)
            return
    pytest.fail(f"no seed from 0 to 11 noticed in {scenario}")


# Parts --------------------------------------------------------------------------------------------


def test_a_crash_loses_only_writes_after_the_last_durable_one_and_none_from_the_middle() -> None:
    for seed in range(20):
        disk: SimDisk = SimDisk()
        store: Store = disk
        for n in range(10):
            store.write([Record("card", bytes([n]), b"x")], [], durable=n == 4)
        disk.crash(Random(seed))
        kept = [record.key[0] for record in disk.load()]
        assert kept == list(range(len(kept))), f"seed {seed}"
        assert len(kept) >= 5, f"seed {seed}"


def test_a_backup_does_not_change_with_the_disk() -> None:
    disk = SimDisk()
    disk.write([Record("own", b"a", b"1")], [], durable=False)
    backup = disk.snapshot()
    disk.write([], [("own", b"a")], durable=True)
    assert [record.value for record in backup.load()] == [b"1"]
    assert disk.load() == []


def test_links_lose_double_and_delay_as_often_as_they_are_told() -> None:
    net = Network(size=4, seed=1)
    links = Links(loss=0.3, duplicate=0.2, delay=0.1)
    chance = Random(1)
    arrivals = [
        list(links.deliveries(b"frame", chance, net.faults, urgent=False)) for _ in range(4000)
    ]
    assert abs(sum(not copies for copies in arrivals) / 4000 - 0.3) < 0.03
    assert abs(net.faults["duplicate"] / 2800 - 0.2) < 0.03
    assert max(after for copies in arrivals for after, _ in copies) > 10


def test_tampering_changes_what_it_can_read_and_leaves_the_rest() -> None:
    chance = Random(1)
    assert tampered(b"\x00", chance) is None
    assert tampered(b"\x92\xaaecho-get/1\xc4\x20" + bytes(32), chance) is None
    assert flipped(b"\x00", chance) != b"\x00"


def test_every_scenario_says_what_it_plays() -> None:
    for name, scenario in SCENARIOS.items():
        assert scenario.__doc__, name
    assert scenarios.ROUNDS_MAX == 40


# The command --------------------------------------------------------------------------------------


def sim(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simnet.cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


def test_the_command_lists_the_scenarios() -> None:
    listed = sim("list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(SCENARIOS)


def test_the_command_writes_what_was_checked_as_json(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    done = sim("run", "retraction", "--nodes", "6", "--seed", "3", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"trace_hash", "invariants", "faults", "figures"} <= set(result)
    assert result["invariants"]["retraction"]["checks"] > 0
    many = sim("run", "retraction", "--nodes", "6", "--seeds", "0..2", "--json", "-")
    assert json.loads(many.stdout)["seeds"] == 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nowhere",), "no scenario 'nowhere'"),
        (("fork", "--nodes", "2"), "--nodes must be at least 4, not 2"),
        (("fork", "--loss", "1"), "--loss must be from 0 to below 1, not 1.0"),
        (("fork", "--seeds", "3"), "--seeds '3' is not a range"),
    ],
)
def test_the_command_says_what_was_wrong_and_exits_with_two(
    arguments: tuple[str, ...], problem: str
) -> None:
    done = sim("run", *arguments)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_broken_run_shows_its_seed_its_tail_and_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simnet.cli import run

    _without_retractions(monkeypatch)
    assert run("retraction", nodes=6, seed=2) == 1
    shown = capsys.readouterr().out
    assert "seed 2: " in shown
    assert "replay: groove-sim run retraction --nodes 6 --seed 2" in shown
