"""What an owner types and sees, above all when something is wrong: one clear line, nothing lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def groove(home: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments],
            env={**os.environ, "GROOVE_HOME": str(home), "HF_HUB_OFFLINE": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def ready(groove: Run) -> Run:
    assert groove("init", "--json").returncode == 0
    return groove


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The error text of a command that failed as it should: no traceback, and advice."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_help_teaches_the_first_steps(groove: Run) -> None:
    done = groove("--help")
    assert done.returncode == 0
    for word in ("init", "consent", "import", "round", "tree", "doctor", "GROOVE_HOME"):
        assert word in done.stdout


def test_an_unknown_command_or_option_is_misuse(groove: Run) -> None:
    assert groove("rouns").returncode == 2
    assert groove("tree", "--depth", "3").returncode == 2


def test_a_command_without_a_home_says_to_run_init(groove: Run) -> None:
    assert "groove-node init" in refused(groove("status"), code=2)


def test_init_makes_a_private_home_and_a_second_one_changes_nothing(ready: Run, home: Path) -> None:
    keys = {path.name: path.read_bytes() for path in (home / "keys").iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))
    again = json.loads(ready("init", "--json").stdout)
    assert {path.name: path.read_bytes() for path in (home / "keys").iterdir()} == keys
    assert again["home"] == str(home)


def test_everything_is_off_until_it_is_allowed(ready: Run) -> None:
    assert json.loads(ready("consent", "show", "--json").stdout)["scopes"] == []
    assert "consent grant capture" in refused(ready("import", "pydoc", "json"))
    assert "consent grant capture" in refused(ready("round"))


def test_a_grant_that_nobody_answers_changes_nothing(ready: Run) -> None:
    done = ready("consent", "grant", "capture")
    assert "consent grant capture --yes" in refused(done, code=2)
    assert "Names of people and street addresses" in done.stdout
    assert json.loads(ready("consent", "show", "--json").stdout)["scopes"] == []


def test_scopes_are_granted_revoked_and_logged(ready: Run) -> None:
    granted = json.loads(ready("consent", "grant", "capture", "fetch", "--yes", "--json").stdout)
    assert granted == {"scopes": ["capture", "fetch"], "sources": [], "folders": []}
    assert json.loads(ready("consent", "revoke", "fetch", "--json").stdout)["scopes"] == ["capture"]
    records = json.loads(ready("consent", "log", "--json").stdout)["records"]
    assert [record["scopes"] for record in records][-1] == "capture"


def test_an_unreadable_file_is_one_clear_line(ready: Run, tmp_path: Path) -> None:
    ready("consent", "grant", "capture", "--yes")
    text = refused(ready("import", "jsonl", str(tmp_path / "absent.jsonl")))
    assert "no file or folder" in text and "absent.jsonl" in text
    assert "Nothing was imported." in text
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(b"\x1f\x8b\x08garbage")
    assert "damaged.jsonl.gz" in refused(ready("import", "jsonl", str(damaged)))


def test_lines_that_are_no_session_are_counted(ready: Run, tmp_path: Path) -> None:
    ready("consent", "grant", "capture", "--yes")
    file = tmp_path / "some.jsonl"
    file.write_text('{"prompt": "a b", "completion": "c d"}\nnot json\n[]\n{"prompt": "x"}\n')
    result = json.loads(ready("import", "jsonl", str(file), "--json").stdout)
    assert (result["added"], result["malformed"]) == (1, 3)
    told = ready("import", "jsonl", str(file)).stderr
    assert "line 2: no JSON\n" in told and "line 3: no JSON object" in told
    assert "not json" not in told and "warning" not in told
    again = json.loads(ready("import", "jsonl", str(file), "--json").stdout)
    assert (again["added"], again["skipped_known"]) == (0, 1)


def test_a_file_without_any_session_is_refused_and_nothing_of_it_is_remembered(
    ready: Run, tmp_path: Path
) -> None:
    ready("consent", "grant", "capture", "--yes")
    file = tmp_path / "some.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n')
    assert "`prompt` and `completion`" in refused(ready("import", "jsonl", str(file)))


def test_sessions_are_read_from_the_standard_input(ready: Run, home: Path) -> None:
    ready("consent", "grant", "capture", "--yes")
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", "import", "jsonl", "-", "--json"],
        env={**os.environ, "GROOVE_HOME": str(home)},
        cwd=ROOT,
        input='{"prompt": "a b", "completion": "c d"}\n',
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["added"] == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "extra"], "`groove-node status` does not take 'extra'"),
        (["import"], "`groove-node import` needs its SOURCE"),
        (["import", "jsonl", "--since"], "`groove-node import --since` needs a value"),
        (["tree", "--depht", "3"], "`groove-node tree` has no option --depht"),
        (["rouns"], 'there is no command "rouns". Did you mean "round"?'),
        (["demo", "--steps", "x"], "--steps takes a number, not 'x'"),
        (["tree", "--json", "--json"], "--json is given twice"),
    ],
)
def test_a_command_line_that_is_wrong_is_told_in_three_lines(
    groove: Run, arguments: list[str], said: str
) -> None:
    lines = refused(groove(*arguments), code=2).splitlines()
    assert lines[0] == f"error: {said}"
    assert lines[1] == "Nothing was done." and lines[2].endswith("--help` shows what it takes.")
    assert len(lines) == 3


def test_an_address_that_is_no_multiaddr_is_told_with_one_that_is(ready: Run) -> None:
    text = refused(ready("run", "--listen", "foo"), code=2)
    assert "it is no TCP multiaddr" in text and "/ip4/0.0.0.0/tcp/4131" in text
    assert "End what listens there" not in text and "INFO" not in text


def test_a_share_that_is_none_is_misuse(ready: Run) -> None:
    ready("consent", "grant", "capture", "--yes")
    assert "0.0:0.65" in refused(ready("import", "pydoc", "json", "--share", "half"), code=2)


def test_a_typo_in_the_config_names_the_key_and_what_was_meant(ready: Run, home: Path) -> None:
    (home / "groove.toml").write_text("[rules]\nseed_sesions = 10\n")
    text = refused(ready("status"), code=2)
    assert "seed_sesions" in text and "did you mean `seed_sessions`?" in text
    assert "groove.toml" in text and "Nothing was started" in text


@pytest.mark.parametrize(
    "line", ["[rules]\nseed_sessions = -1", "[rules]\nseed_sessions = 'many'", "[rules", "[wrong]"]
)
def test_a_config_that_cannot_be_is_refused(ready: Run, home: Path, line: str) -> None:
    (home / "groove.toml").write_text(line + "\n")
    assert "groove.toml" in refused(ready("status"), code=2)


def test_a_key_that_others_can_read_stops_the_node(ready: Run, home: Path) -> None:
    (home / "keys" / "op.key").chmod(0o644)
    text = refused(ready("run"), code=2)
    assert "op.key" in text and "0644" in text and "chmod 600" in text
    assert (home / "keys" / "op.key").stat().st_mode & 0o777 == 0o644, "left as it was"


def test_a_missing_key_is_never_replaced_by_a_new_one(ready: Run, home: Path) -> None:
    (home / "keys" / "op.key").unlink()
    text = refused(ready("status"), code=2)
    assert "op.key missing" in text and "backup" in text
    assert not (home / "keys" / "op.key").exists()


@pytest.mark.network
def test_what_trying_again_cannot_mend_ends_with_the_code_at_which_the_service_stays_down(
    ready: Run, home: Path, tmp_path: Path
) -> None:
    from node import service

    place = service.Place(sys.executable, home, tmp_path, tmp_path)
    assert "RestartPreventExitStatus=2\n" in service.systemd(place, 252).text
    assert "--listen" in refused(ready("run", "--listen", "/ip4/nowhere/tcp/1"), code=2)
    (home / "groove.toml").write_text("[nigth]\n")
    assert "did you mean" in refused(ready("run"), code=2)


@pytest.mark.network
def test_a_port_in_use_is_one_clear_line(ready: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = refused(ready("run", "--listen", f"/ip4/127.0.0.1/tcp/{port}"))
    assert str(port) in text and "--listen" in text


def test_a_leaf_that_nobody_has_is_named_in_the_error(ready: Run) -> None:
    assert "no leaf is called 'async-python'" in refused(ready("leaf", "show", "async-python"))


def test_starters_answer_right_after_init(ready: Run) -> None:
    text = ready("route", "Write a Python function with a decorator").stdout
    assert "python-starter" in text and "0 of 1,000 sessions for the first discovery" in text


def test_a_fetch_without_a_running_node_says_so(ready: Run) -> None:
    ready("consent", "grant", "fetch", "--yes")
    assert "no leaf is called" in refused(ready("fetch", "k8s-networking"))


def test_an_address_that_is_none_is_misuse(ready: Run) -> None:
    assert "nothing was remembered" in refused(ready("peers", "add", "example.org:4021"), code=2)


def test_doctor_finds_a_healthy_home_healthy(ready: Run) -> None:
    findings = json.loads(ready("doctor", "--json").stdout)["findings"]
    assert {f["check"] for f in findings} >= {"python", "encoder", "chassis", "home", "keys"}
    assert not [f for f in findings if f["verdict"] == "bad"]


def test_the_first_round_routes_by_starters(ready: Run, tmp_path: Path) -> None:
    ready("consent", "grant", "capture", "--yes")
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "How do I sort a list in Python?", "completion": "sorted(x)"}\n')
    ready("import", "jsonl", str(file))
    events = json.loads(ready("round", "--json").stdout)["events"]
    assert [e["event"] for e in events] == ["embedded", "too few", "deployed"]
    routed = json.loads(ready("route", "Write a Python function with a decorator", "--json").stdout)
    assert routed["served_by_name"] == "python-starter"
    plan = json.loads(ready("round", "--dry-run", "--json").stdout)
    assert plan["transitions"] == [] and "1,000 sessions" in plan["note"]


def test_deletion_leaves_no_trace_of_what_was_captured(
    ready: Run, home: Path, tmp_path: Path
) -> None:
    ready("consent", "grant", "capture", "--yes")
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "What is a zymurgical qwxv?", "completion": "A kvlt brew."}\n')
    ready("import", "jsonl", str(file))
    ready("round")
    assert any(b"zymurgical" in p.read_bytes() for p in home.rglob("*") if p.is_file())
    result = json.loads(ready("data", "--delete", "--yes", "--json").stdout)
    assert result["records_deleted"] == 2 and result["consent_revoked"]
    traces = [p for p in home.rglob("*") if p.is_file() and b"zymurgical" in p.read_bytes()]
    assert traces == []
    assert json.loads(ready("consent", "show", "--json").stdout)["scopes"] == []


def test_a_deletion_that_was_killed_is_finished_by_the_next_command(
    ready: Run, home: Path, tmp_path: Path
) -> None:
    ready("consent", "grant", "capture", "--yes")
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "What is a zymurgical qwxv?", "completion": "A kvlt brew."}\n')
    ready("import", "jsonl", str(file))
    (home / "deletion.pending").write_bytes(b"{}")  # what a kill right after the order leaves
    (home / "deletion.pending").chmod(0o600)
    ready("status")
    assert not any(b"zymurgical" in p.read_bytes() for p in home.rglob("*") if p.is_file())
    assert not (home / "deletion.pending").exists()


def test_a_file_that_cannot_be_written_is_one_clear_line(ready: Run, tmp_path: Path) -> None:
    ready("consent", "grant", "capture", "--yes")
    text = refused(ready("data", "--export", str(tmp_path / "absent" / "mine.jsonl")))
    assert "absent" in text


@pytest.mark.parametrize("verbose", [False, True])
def test_a_running_node_logs_to_a_private_file_unless_it_is_asked_to_show_it(
    home: Path, verbose: bool
) -> None:
    program = (
        "import logging; from pathlib import Path; from node.logfile import log_to; "
        f"log_to(Path({str(home)!r}), verbose={verbose}); log = logging.getLogger('node.x'); "
        "log.info('leaf promoted'); log.error('disk full')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    file = home / "node.log"
    if verbose:
        assert "INFO node.x leaf promoted" in done.stderr and not file.exists()
    else:
        assert done.stderr == "error: disk full\n"
        assert "INFO node.x leaf promoted" in file.read_text()
        assert file.stat().st_mode & 0o077 == 0
