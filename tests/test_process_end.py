"""A process that ends in the middle of capturing: no crash, no core, no long wait."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support_capture import capture
from support_transcripts import ClaudeChat, written

from node.app import App
from node.capture.halt import halting
from node.capture.scrubber import PIIScrubber, ScrubError
from node.consent import ConsentManager, Scope
from node.home import get_or_create_user_id, groove_home
from node.threads import bring_out

ROOT = Path(__file__).parent.parent
LONG = "mail ann@example.com and bob@example.com now "  # many times over: work for the scrubber


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    home = groove_home()
    with ConsentManager(home / "consent.db") as consent:
        consent.grant(get_or_create_user_id(home), [Scope.CAPTURE])
    return home


def application(body: str) -> subprocess.CompletedProcess[str]:
    program = f"from node.capture import CaptureItem\nfrom node import gate\n{body}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_an_application_that_ends_without_closing_its_queue_loses_no_short_text(
    home: Path,
) -> None:
    done = application("gate.capture_gate().offer(CaptureItem('s', 'a last word', 'prompt'))")
    assert (done.returncode, done.stderr) == (0, "")
    (text,) = (each.content for each in App(home).corpus.records() if not each.closes)
    assert text == "a last word"


def test_an_application_that_ends_while_long_texts_are_scrubbed_gives_them_up_and_does_not_crash(
    home: Path,
) -> None:
    done = application(
        "import time\n"
        "queue = gate.capture_gate()\n"
        f"for _ in range(15): queue.offer(CaptureItem('s', {LONG!r} * 90_000, 'prompt'))\n"
        "while queue.counters.waiting == 15: time.sleep(0.01)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr
    kept = [each for each in App(home).corpus.records() if not each.closes]
    assert len(kept) < 15  # all of them are a minute's work, and its end would wait for it


@pytest.mark.network
def test_a_node_that_is_stopped_while_it_scrubs_ends_with_0(home: Path, tmp_path: Path) -> None:
    project = tmp_path / "kettle"
    project.mkdir()
    app = App.open(create=True)
    app.consent.grant(app.user_id, sources=["claude-code"], folders=[project])
    state = home / "watch.json"
    node = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "run", "--listen", "/ip4/127.0.0.1/tcp/0"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        waited = time.monotonic() + 120
        while not state.exists():  # written when the watching begins
            assert node.poll() is None, node.communicate()[1]
            assert time.monotonic() < waited
            time.sleep(0.05)
        core = resource.prlimit(node.pid, resource.RLIMIT_CORE)
        for number in range(30):
            chat = ClaudeChat(session_id=f"s{number}", prefix=f"p{number}", cwd=str(project))
            chat.ask(LONG * 25_000)
            chat.text("done")
            for row in chat.rows:
                row["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            written(tmp_path / f"claude/projects/kettle/s{number}.jsonl", chat.rows)
        waited = time.monotonic() + 120
        while not list(app.corpus.records()):  # at the first of thirty
            assert node.poll() is None, node.communicate()[1]
            assert time.monotonic() < waited
            time.sleep(0.05)
        node.send_signal(signal.SIGTERM)
        _, said = node.communicate(timeout=120)
    finally:
        node.kill()
        node.wait()
    assert node.returncode == 0, said
    assert core[0] == 0  # a core dump would hold the text


def test_a_halted_scrubber_gives_every_text_up_and_says_nothing_of_it() -> None:
    halt = threading.Event()
    scrubber = PIIScrubber(timer=halting(halt))
    assert scrubber.scrub("ann@example.com") == "[EMAIL]"
    halt.set()
    with pytest.raises(ScrubError, match="the process ends") as caught:
        scrubber.scrub("a private thought")
    assert "private" not in str(caught.value)


def test_a_thread_that_does_not_stop_when_told_is_ended() -> None:
    begun = threading.Event()

    def stubborn() -> None:
        with suppress(SystemExit):  # a thread ends by it without a word, but for pytest
            begun.set()
            while True:
                sum(range(100))

    thread = threading.Thread(target=stubborn, daemon=True)
    thread.start()
    assert begun.wait(60)
    while not bring_out(thread, 0.1):
        pass


def test_a_child_that_was_forked_off_ends_without_its_parents_worker(tmp_path: Path) -> None:
    from node.capture import CaptureQueue

    queue = CaptureQueue(capture(tmp_path).session).start()
    child = os.fork()
    if child == 0:
        try:
            queue._at_exit()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert queue.close(60)
