"""The soak in small: a few whole nodes, a lossy network, a kill, and equal views at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SOAK = Path(__file__).parent / "soak.py"

pytestmark = [pytest.mark.slow, pytest.mark.network]


def test_nodes_that_lose_packets_and_are_killed_agree_at_the_end() -> None:
    asked = [sys.executable, str(SOAK), "--minutes", "1.1", "--nodes", "4", "--seed", "3"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=500)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)  # a minute says nothing of growth, so the exit may be 1
    assert figures["restarts"] == 1 and figures["published"] > 2, figures
    assert figures["equal"] and not figures["stubborn"] and not figures["complaints"], figures


def test_a_soak_that_is_interrupted_leaves_no_process_behind() -> None:
    asked = [sys.executable, str(SOAK), "--minutes", "5", "--nodes", "2"]
    running = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if "min  n0" in line:  # the first sample: all are linked
            break
    nodes = [
        child
        for child in psutil.Process(running.pid).children()
        if any(word.endswith("soak_node.py") for word in child.cmdline())
    ]
    assert len(nodes) == 2
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=90)
    assert running.returncode == 130 and "interrupted" in told
    assert not any(node.is_running() for node in nodes)
