"""Off means off: what is loaded, what it costs, and that consent opens and shuts the gate."""

from __future__ import annotations

import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import gate
from node.capture import CaptureItem, ConsentManager, Scope, TrainingCorpus
from node.home import get_or_create_user_id, groove_home

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    gate.close_gate(5.0)


def consented() -> tuple[ConsentManager, str]:
    home = groove_home()
    user = get_or_create_user_id(home)
    consent = ConsentManager()
    consent.record_consent(user, opted_in=True, consent_version="1.0")
    return consent, user


def test_nothing_of_capture_is_imported_and_nothing_is_made_while_it_is_off(home: Path) -> None:
    program = (
        "import sys; from node import gate; assert gate.capture_gate() is None; "
        "heavy = ('node.capture', 'node.consent', 'numpy', 'sqlite3', 'platformdirs'); "
        "print([m for m in sys.modules if m.startswith(heavy)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
    assert not home.exists()


def test_off_costs_a_caller_less_than_a_microsecond() -> None:
    assert gate.capture_gate() is None
    loops = 100_000
    seconds = min(timeit.repeat("gate.queue is not None", globals={"gate": gate}, number=loops))
    assert seconds / loops < 1e-6


def test_consent_opens_the_gate_and_its_end_shuts_it() -> None:
    consent, user = consented()
    queue = gate.capture_gate()
    assert queue is not None
    assert gate.queue is queue
    assert gate.capture_gate() is queue
    consent.revoke_scope(user, Scope.CAPTURE)
    assert gate.capture_gate() is None
    assert gate.queue is None
    assert not queue.offer(CaptureItem("s", "after the end", "prompt"))


def test_consent_to_something_else_does_not_open_the_gate() -> None:
    home = groove_home()
    user = get_or_create_user_id(home)
    ConsentManager().record_consent(user, True, "1.0", scopes={Scope.FETCH})
    assert gate.capture_gate() is None


def test_what_was_offered_through_the_gate_is_in_the_corpus_once_it_is_closed() -> None:
    consented()
    queue = gate.capture_gate()
    assert queue is not None
    assert queue.offer(CaptureItem("s", "Write to ann@example.com", "prompt"))
    gate.close_gate(10.0)
    contents = [r.content for r in TrainingCorpus().records() if not r.closes]
    assert contents == ["Write to [EMAIL]"]


def test_a_consent_database_that_others_can_read_means_no_capture_and_no_exception() -> None:
    consent, _ = consented()
    consent.close()
    (groove_home() / "consent.db").chmod(0o644)
    assert gate.capture_gate() is None
