"""Pins that a command and the running node change at the same time: none is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gossip.bundle_files import BundleFiles
from node.shelf import FILE, PinsError, Shelf

ROOT = Path(__file__).parent.parent
EACH = 30
BEGIN = """
import sys
from pathlib import Path
from types import SimpleNamespace as Some
from gossip.bundle_files import BundleFiles
from node.shelf import Shelf

home = Path(sys.argv[1])
shelf = Shelf(home, BundleFiles(home / "bundles"))

def known(i, version=0):
    leaf = Some(origin="%064x" % i, leaf="%032x" % i, root="%064x" % (i + version))
    return Some(leaf=leaf, name=f"n{i}", detail={})

print("ready", flush=True)
sys.stdin.readline()
"""
PIN = BEGIN + "for i in range(int(sys.argv[2]), int(sys.argv[3])): shelf.pin(known(i))"
UNPIN = BEGIN + (
    "for i in range(int(sys.argv[2]), int(sys.argv[3])):\n"
    "    assert shelf.unpin('%064x' % i, '%032x' % i)"
)
RENEW = BEGIN + (
    "for version in range(int(sys.argv[2]), int(sys.argv[3])):\n"
    "    shelf.pinned_roots([known(i, version) for i in range(9000, 9003)])"
)


def at_once(home: Path, *works: tuple[str, int, int]) -> None:
    """Start processes, then let all of them go at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home), str(first), str(end)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for code, first, end in works
    ]
    try:
        for each in started:
            assert each.stdout is not None and each.stdout.readline() == b"ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.close()
        assert [each.wait(timeout=120) for each in started] == [0] * len(started)
    finally:
        for each in started:
            each.kill()
            each.wait()
            if each.stdout is not None:
                each.stdout.close()


def pinned(home: Path) -> set[int]:
    return {int(pin.leaf, 16) for pin in Shelf(home, BundleFiles(home / "bundles")).pins()}


def test_two_processes_that_pin_lose_no_pin(tmp_path: Path) -> None:
    at_once(tmp_path, (PIN, 1, 1 + EACH), (PIN, 1001, 1001 + EACH))
    assert len(pinned(tmp_path)) == 2 * EACH


def test_what_is_pinned_or_let_go_while_the_node_renews_pins_stays_so(tmp_path: Path) -> None:
    at_once(tmp_path, (PIN, 9000, 9003), (PIN, 1, 1 + EACH))
    at_once(
        tmp_path,
        (RENEW, 1, 1 + EACH),
        (PIN, 1001, 1001 + EACH),
        (UNPIN, 1, 1 + EACH),
    )
    assert pinned(tmp_path) == {*range(1001, 1001 + EACH), *range(9000, 9003)}


@pytest.mark.parametrize("blob", [b"[" * 100_000, b"\xff", b'[{"origin":"\xff"}]'])
def test_pins_that_hold_anything_are_refused_and_left_as_they_are(
    tmp_path: Path, blob: bytes
) -> None:
    (tmp_path / FILE).write_bytes(blob)
    shelf = Shelf(tmp_path, BundleFiles(tmp_path / "bundles"))
    with pytest.raises(PinsError):
        shelf.pins()
    assert shelf.pinned_roots([]) == set() and (tmp_path / FILE).read_bytes() == blob
