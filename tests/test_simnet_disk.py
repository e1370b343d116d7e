"""What a loss of power leaves: of the simulated log, and of SQLite's, cut and torn at any point."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from gossip_kit import card
from hypothesis import given
from hypothesis import strategies as st

from gossip.ports import Record, Store
from gossip.sqlite_store import SqliteStore, StoreDamagedError
from simnet import log_store
from simnet.disk import DiskFaults, FaultyDisk, LogDamagedError, NoDisk, SimDisk
from simnet.files import SECTOR_BYTES, SimFiles
from simnet.log_store import LogStore
from simnet.network import Network, Node

WORST = DiskFaults(lost=0.5, torn=1.0, flip=1.0)


class Step(NamedTuple):
    """One write of the tests: a row that tells which it was, and a long one written over again."""

    number: int
    durable: bool
    size_bytes: int = 40

    def into(self, store: Store) -> None:
        counted = Record("own", self.number.to_bytes(2, "big"), b"x")
        long = Record("card", b"k", bytes([self.number % 251]) * self.size_bytes)
        gone = [("own", (self.number - 3).to_bytes(2, "big"))] if self.number % 5 == 4 else []
        store.write([counted, long], gone, durable=self.durable)


def steps(rng: Random, count: int = 24) -> list[Step]:
    return [Step(n, rng.random() < 0.3, rng.choice([1, 40, 700, 1500])) for n in range(count)]


def after(written: Sequence[Step]) -> list[Record]:
    """What a store that fails never holds after these."""
    model = SimDisk()
    for step in written:
        step.into(model)
    return list(model.load())


def prefix_of(records: Sequence[Record], written: Sequence[Step]) -> int:
    """How many of the writes these records are the whole of; -1 if they are no prefix."""
    found = (n for n in range(len(written), -1, -1) if after(written[:n]) == list(records))
    return next(found, -1)


def kept(written: Sequence[Step]) -> int:
    """How many writes must survive: all up to the last durable one."""
    return max((n + 1 for n, step in enumerate(written) if step.durable), default=0)


# The simulated log --------------------------------------------------------------------------------


def crash_at(operation: int, seed: int, faults: DiskFaults = WORST) -> tuple[bool, SimFiles]:
    """Write until the power goes at an operation, twice over; say whether it came so far."""
    rng, count = Random(seed), Counter[str]()
    files = SimFiles(faults, rng, count)
    written: list[Step] = []
    acknowledged = 0
    files.fails_at = operation
    try:
        store = LogStore(files, checkpoint_bytes=6000)
        for step in steps(rng):
            written.append(step)
            step.into(store)
            acknowledged = kept(written)
    except OSError:
        files.crash()
    else:
        return False, files
    found = prefix_of(LogStore(files).load(), written)
    assert found >= acknowledged, f"seed {seed}, operation {operation}: {found} of {acknowledged}"
    return True, files


@pytest.mark.parametrize("seed", range(8))
def test_whatever_operation_the_power_goes_at_a_prefix_with_all_that_was_durable_is_left(
    seed: int,
) -> None:
    points = next(k for k in range(1, 500) if not crash_at(k, seed)[0]) - 1
    assert points > 30, f"seed {seed}: only {points} points"


@given(seed=st.integers(0, 2**32), crashes=st.integers(1, 4))
def test_a_log_survives_one_crash_after_another(seed: int, crashes: int) -> None:
    rng = Random(seed)
    files = SimFiles(WORST, rng, Counter())
    survived: list[Step] = []
    for life in range(crashes):
        store = LogStore(files, checkpoint_bytes=4000)
        assert list(store.load()) == after(survived), f"seed {seed}: other after a second look"
        written = list(survived)
        for step in steps(rng, 8):
            written.append(step._replace(number=len(written), durable=step.durable))
            written[-1].into(store)
        files.crash()
        found = prefix_of(LogStore(files).load(), written)
        assert found >= max(kept(written), len(survived)), f"seed {seed}, life {life}"
        survived = written[:found]


def test_without_its_checksums_the_log_gives_back_what_was_never_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_store, "crc32", lambda data, value=0: 0)

    def breaks(seed: int, operation: int) -> bool:
        try:
            crash_at(operation, seed)
        except Exception:  # it may fail in any way, and must not go unnoticed
            return True
        return False

    assert any(breaks(seed, operation) for seed in range(4) for operation in range(5, 60))


def test_a_name_that_was_not_synced_is_lost_with_its_bytes() -> None:
    lost = set()
    for seed in range(20):
        files = SimFiles(DiskFaults(), Random(seed), Counter())
        files.create("a")
        files.append("a", b"bytes")
        files.sync("a")
        files.crash()
        lost.add("a" not in files.names())
    assert lost == {True, False}


def test_a_file_renamed_before_it_was_synced_can_come_back_short_and_never_with_other_bytes() -> (
    None
):
    sizes = set()
    for seed in range(40):
        files = SimFiles(DiskFaults(), Random(seed), Counter())
        files.create("new")
        files.append("new", b"y" * (3 * SECTOR_BYTES))
        files.rename("new", "name")
        files.sync_directory()
        files.crash()
        left = files.read("name")
        assert left.strip(b"y\0") == b"", f"seed {seed}"
        sizes.add(len(left.rstrip(b"\0")))
    assert len(sizes) > 3


def test_a_full_disk_writes_a_part_and_says_so_and_the_part_is_cut_off_later() -> None:
    files = SimFiles(DiskFaults(), Random(3), Counter())
    store = LogStore(files)
    Step(0, durable=True).into(store)
    files.faults = DiskFaults(full=1.0)
    with pytest.raises(OSError) as raised:
        Step(1, durable=True).into(store)
    assert raised.value.errno == errno.ENOSPC
    files.faults = DiskFaults()
    assert list(LogStore(files).load()) == after([Step(0, durable=True)])


def test_a_base_whose_bit_has_turned_is_reported_and_never_read() -> None:
    for seed in range(20):
        files = SimFiles(DiskFaults(), Random(seed), Counter())
        store = LogStore(files, checkpoint_bytes=500)
        for number in range(10):
            Step(number, durable=True, size_bytes=100).into(store)
        files.rot("base")
        with pytest.raises(LogDamagedError):
            LogStore(files)


def test_a_disk_that_failed_is_not_written_again_before_it_is_opened_anew() -> None:
    disk = FaultyDisk(DiskFaults(failed_sync=1.0), Random(1), Counter())
    with pytest.raises(OSError):
        Step(0, durable=True).into(disk)
    with pytest.raises(AssertionError):
        Step(1, durable=False).into(disk)
    disk.faults = DiskFaults()
    disk.crash(Random(1))
    assert list(disk.load()) in ([], after([Step(0, durable=True)]))


# The disk that does what SQLite promises ----------------------------------------------------------


def test_a_crash_loses_only_writes_after_the_last_durable_one_and_none_from_the_middle() -> None:
    for seed in range(20):
        disk = SimDisk()
        written = steps(Random(seed), 10)
        for step in written:
            step.into(disk)
        disk.crash(Random(seed))
        assert prefix_of(disk.load(), written) >= kept(written), f"seed {seed}"


def test_a_backup_does_not_change_with_the_disk() -> None:
    faulty = FaultyDisk(DiskFaults(), Random(1), Counter())
    for disk in (SimDisk(), faulty):
        disk.write([Record("own", b"a", b"1")], [], durable=False)
        backup = disk.snapshot()
        disk.write([], [("own", b"a")], durable=True)
        assert [record.value for record in backup.load()] == [b"1"]
        assert list(disk.load()) == []


def test_no_disk_keeps_nothing() -> None:
    Step(0, durable=True).into(disk := NoDisk())
    assert (disk.load(), disk.crash(Random(1)), disk.keeps) == ([], 0, False)


# SQLite itself ------------------------------------------------------------------------------------


def test_of_sqlites_own_log_cut_and_torn_anywhere_a_prefix_with_all_that_was_durable_is_left(
    tmp_path: Path,
) -> None:
    rng = Random(7)
    path, wal = tmp_path / "store.db", tmp_path / "store.db-wal"
    store = SqliteStore(path)
    written = steps(rng, 30)
    durable_at: list[tuple[int, int]] = [(wal.stat().st_size, 0)]  # size of log, writes in it
    for number, step in enumerate(written, 1):
        step.into(store)
        if step.durable:
            durable_at.append((wal.stat().st_size, number))
    base, log = path.read_bytes(), wal.read_bytes()
    store.close()
    for _ in range(150):
        size = rng.randrange(len(log))
        torn = bytearray(log[:size])
        synced_bytes, synced = max(at for at in durable_at if at[0] <= size or at[1] == 0)
        for at in range(synced_bytes, size):
            if rng.random() < 0.01:
                torn[at] ^= 1 << rng.randrange(8)
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "store.db").write_bytes(base)
        (copy / "store.db-wal").write_bytes(torn)
        try:
            again = SqliteStore(copy / "store.db")
        except StoreDamagedError:
            pytest.fail(f"a torn log of {size} bytes was taken for damage")
        found = prefix_of(again.load(), written)
        again.close()
        assert found >= synced, f"log of {size} bytes: {found} writes, {synced} were durable"


# Under replicas -----------------------------------------------------------------------------------


def holds(node: Node, origin: bytes) -> int:
    return 0 if node.replica is None else len(node.replica.view(origin).cards)


@pytest.mark.parametrize("seed", range(6))
def test_nodes_on_failing_disks_stop_and_come_back_and_all_agree_in_the_end(seed: int) -> None:
    from simnet.scenarios import SCENARIOS

    net = Network(size=8, seed=seed)
    net.disk_faults = DiskFaults(flip=0.3, full=0.01, power=0.005, failed_sync=0.01)
    SCENARIOS["churn"](net)
    failures = [f for f in net.faults if f[:3] in ("F10", "F13", "F14")]
    assert failures, f"seed {seed}: no disk failed"
    assert net.faults["F11 torn write"] > 0, f"seed {seed}"


def test_a_node_whose_store_is_damaged_puts_it_aside_and_hears_all_from_its_peers() -> None:
    net = Network(size=6, seed=1)
    leaves = [card(n) for n in range(12)]
    net.preload(dict.fromkeys(net.nodes, leaves))
    net.disk_faults = DiskFaults(rot=1.0)
    net.run(5)
    damaged = net.up()[0]
    net.crash(damaged.name)
    net.start(damaged.name)
    assert net.faults["F16 rotten"] == 1
    assert damaged.replica is None, "it is started again after a while"
    net.run(60)
    assert damaged.replica is not None
    origins = [node.origin for node in net.nodes.values()]
    waited = net.run_until(
        lambda node: all(holds(node, origin) == 12 for origin in origins), within_s=300
    )
    assert waited is not None, "seed 1: what was lost did not come back"
