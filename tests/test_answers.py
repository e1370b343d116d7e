"""Right answers: which are, and that finding out can hurt nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_capture import USER, capture

from leaves.ports import Check, CheckKind, EvaluateJob, Example, Report, silent
from leaves.training import cage
from leaves.training.answers import (
    ANSWERS_MAX,
    TOKENS,
    TOKENS_MAX,
    Right,
    measure_right,
    rate,
    right,
)
from leaves.training.checks import CHARS_MAX, parse_check
from leaves.training.orders import EvaluateOrder, Limits, decode_order, encode
from node.capture.sources.importing import import_sessions
from node.capture.sources.jsonl import JsonlSource

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
DOUBLE = Check(CheckKind.TESTS, tests=("assert double(3) == 6",))


def check(kind: str, answer: object = "", **more: object) -> Check:
    parsed = parse_check({"kind": kind, "answer": answer, **more})
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("expected", "said", "is_right"),
    [
        ("15", "That makes 15 children.\nAnswer: 15", True),
        ("15", "First 15, then 16", False),
        ("1000", "It costs $1,000.", True),
        ("1,000", "1000.00", True),
        ("-4", "x = -4", True),
        ("4", "between 3-4", True),
        ("-4", "x = \N{MINUS SIGN}4", True),
        ("0.5", "0.50", True),
        ("5", "version v5", False),  # part of a word is no number
        ("5", "none at all", False),
        (7, "7", True),
    ],
)
def test_the_last_number_of_an_answer_counts(expected: object, said: str, is_right: bool) -> None:
    assert right(check("number", expected), said) is is_right


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("ls -l | wc -l", True),
        ("  ls  -l |\n wc -l ;", True),
        ("```bash\nls -l | wc -l\n```", True),
        ("`ls -l | wc -l`", True),
        ("LS -l | wc -l", False),
        ("ls -l | wc -l # counts", False),
    ],
)
def test_an_exact_answer_may_differ_in_spaces_and_quotes_alone(said: str, is_right: bool) -> None:
    assert right(check("exact", "ls -l | wc -l"), said) is is_right


@pytest.mark.parametrize(
    ("expected", "said", "is_right"),
    [
        ("Fibonacci", "They are called the FIBONACCI numbers.", True),
        ("New York", "It is in new\nyork, of course.", True),
        ("art", "From the start", False),
        ("New York", "York is new", False),
        ("++", "i++ is", True),
    ],
)
def test_a_contained_answer_is_found_by_whole_words(
    expected: str, said: str, is_right: bool
) -> None:
    assert right(check("contains", expected), said) is is_right


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("B", True),
        ("(B) because of the tide", True),
        ("The answer is B.", True),
        ("Answer: C", False),
        ("A dog is not it; the moon is.", True),  # by its words: "A" begins a sentence
        ("The sun or the moon", False),
        ("neither", False),
    ],
)
def test_a_choice_is_named_by_its_letter_or_its_words(said: str, is_right: bool) -> None:
    options = ["the sun", "the moon", "the sea"]
    assert right(check("choice", "B", options=options), said) is is_right
    assert right(check("choice", "the moon", options=options), said) is is_right


@pytest.mark.parametrize(
    "data",
    [
        None,
        "number",
        {},
        {"kind": "opinion", "answer": "x"},
        {"kind": "number", "answer": "none"},
        {"kind": "number", "answer": True},
        {"kind": "contains", "answer": "  "},
        {"kind": "python", "tests": []},
        {"kind": "python", "tests": ["assert 1", 2]},
        {"kind": "choice", "answer": "something"},
        {"kind": "exact", "answer": "x" * (CHARS_MAX + 1)},
        {"kind": ["number"], "answer": "1"},
    ],
)
def test_what_is_no_check_is_none(data: object) -> None:
    assert parse_check(data) is None


@given(st.sampled_from(["number", "exact", "contains", "choice"]), st.text(), st.text())
def test_any_answer_is_right_or_not(kind: str, expected: str, said: str) -> None:
    parsed = parse_check({"kind": kind, "answer": expected})
    if parsed is not None:
        assert right(parsed, said) in (True, False)
    if parsed is not None and parsed.kind is not CheckKind.EXACT:
        assert right(parsed, expected) or parsed.kind is CheckKind.CONTAINS


def test_code_is_run_only_if_that_is_allowed() -> None:
    with pytest.raises(ValueError, match="was not allowed"):
        right(DOUBLE, "def double(x): return 2 * x")


@pytest.fixture(scope="module")
def caged() -> None:
    if not cage.available():
        pytest.skip("this system gives a process no namespaces of its own")


@pytest.mark.usefixtures("caged")
@pytest.mark.parametrize(
    ("code", "is_right"),
    [
        ("def double(x): return 2 * x", True),
        ("Like this:\n```python\ndef double(x):\n    return x + x\n```\nIt adds.", True),
        ("def double(x): return x", False),
        ("def double(x) return x", False),
        ("import math, collections\ndouble = lambda x: math.prod([2, x])", True),
    ],
)
def test_code_is_right_if_its_tests_pass(code: str, is_right: bool) -> None:
    assert right(DOUBLE, code, allow_code=True) is is_right


@pytest.mark.usefixtures("caged")
@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd')",
        "import os\nos.listdir('/proc')",
        "import os\nassert os.listdir('/')",  # the root that it sees is empty
        "import os\nos.mkdir('/made')\nos.chdir('/made')\nos.chroot('.')",
        "import os\nos.fork()",
        "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
        "import threading\nthreading.Thread(target=print).start()",
        "import socket\nsocket.socket()",
        "import os\nassert os.getppid() != 0",  # nobody but itself is there
        "import os, signal\nos.kill(2, signal.SIGKILL)",
        "held = 'x' * 10**10",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    os.write(fd, b'x' * 10_000)",
        "raise KeyboardInterrupt",
    ],
)
def test_hostile_code_gets_nowhere_and_is_not_right(code: str) -> None:
    assert not cage.passes(code, ["assert True"])


@pytest.mark.usefixtures("caged")
def test_code_that_does_not_end_is_ended() -> None:
    assert not cage.passes("while True: pass", [], cpu_s=1)
    assert not cage.passes("import time\ntime.sleep(1000)", [], wall_s=1.0)


@pytest.mark.usefixtures("caged")
@pytest.mark.parametrize(
    "closing",
    ["", "for fd in range(64):\n  try: os.close(fd)\n  except OSError: pass\n"],
    ids=["holds", "closes"],
)
def test_code_that_clears_its_death_signal_is_ended_all_the_same(closing: str) -> None:
    name = f"cage-{os.urandom(4).hex()}"
    code = f"""
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.prctl({PR_SET_NAME}, {name.encode()!r}, 0, 0, 0)
libc.prctl({PR_SET_PDEATHSIG}, 0, 0, 0, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
{closing}"""
    assert cage.passes(code, []) is (not closing), "it may do all of that"
    assert not cage.passes(f"{code}time.sleep(1e6)", [], wall_s=1.0)
    assert name not in running()


def running() -> set[str]:
    """What all processes call themselves."""
    names = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            names.add(path.read_text().strip())
    return names


@pytest.mark.usefixtures("caged")
def test_output_without_end_is_not_read(capfd: pytest.CaptureFixture[str]) -> None:
    assert cage.passes("print('x' * 1_000_000)", []), "what it prints goes nowhere"
    loud = "import os\nwhile True:\n    for fd in range(64):\n        try: os.write(fd, b'x')\n"
    assert not cage.passes(loud + "        except OSError: pass", [], cpu_s=1)
    assert capfd.readouterr() == ("", "")


# Rates


class Scripted:
    """Answers by label; knows what it was asked."""

    def __init__(self, **answers: str) -> None:
        self._answers = answers
        self.asked: list[tuple[Sequence[str], int]] = []

    def generate(
        self,
        chassis: Path,
        adapters: Sequence[tuple[str, Path | None]],
        prompts: Sequence[str],
        tokens: int,
        report: Report = silent,
    ) -> dict[str, tuple[str, ...]]:
        self.asked.append((prompts, tokens))
        return {label: (self._answers[label],) * len(prompts) for label, _ in adapters}


def example(number: int, asked: Check | None) -> Example:
    return Example(f"session-{number}", f"ask {number}", "…", check=asked)


def test_a_rate_is_the_share_of_right_answers() -> None:
    checks = [check("number", "1"), check("number", "2"), check("contains", "two")]
    assert rate(checks, ["1", "3", "It is two."]) == pytest.approx(2 / 3)
    assert rate([], []) == 0


def test_both_adapters_answer_the_same_held_out_asks_that_can_be_checked() -> None:
    answerer = Scripted(before="It is 3.", after="It is 4.")
    sessions = [example(number, check("number", 3 + number % 2)) for number in range(6)]
    sessions += [example(number, None) for number in range(6, 50)]
    found = measure_right(answerer, Path("chassis"), None, Path("leaf"), sessions)
    assert found == Right(0.5, 0.5, 6)
    ((prompts, tokens),) = answerer.asked
    assert sorted(prompts) == [f"ask {number}" for number in range(6)]
    assert tokens < TOKENS[CheckKind.NUMBER], "what is known to be short may not take for ever"


def test_of_many_sessions_a_bounded_part_is_asked_and_always_the_same() -> None:
    asked = []
    for order in (1, -1):
        answerer = Scripted(before="1", after="2")
        sessions = [example(number, check("number", 2)) for number in range(200)][::order]
        found = measure_right(answerer, Path("chassis"), None, None, sessions)
        assert found == Right(0.0, 1.0, ANSWERS_MAX)
        asked.append(answerer.asked)
    assert asked[0] == asked[1]


def test_of_long_answers_fewer_are_asked_for() -> None:
    answerer = Scripted(before="1", after="2")
    long = [Example(str(number), "?", "1" * 900, check=check("number", 2)) for number in range(50)]
    found = measure_right(answerer, Path("chassis"), None, None, long)
    ((prompts, tokens),) = answerer.asked
    assert found is not None and found.answers == len(prompts) < ANSWERS_MAX
    assert tokens == TOKENS[CheckKind.NUMBER] and len(prompts) * tokens <= TOKENS_MAX


def test_where_nothing_can_be_checked_nothing_is_asked() -> None:
    answerer = Scripted()
    sessions = [example(1, None), example(2, DOUBLE)]
    assert measure_right(answerer, Path("chassis"), None, None, sessions) is None
    assert not answerer.asked


def test_a_check_goes_with_its_example_to_a_child_and_stays_what_it_is() -> None:
    asked = (example(1, DOUBLE), example(2, check("choice", "B", options=["x", "y"])))
    order = EvaluateOrder(EvaluateJob(Path("chassis"), asked, (("bare", None),)), Limits())
    assert decode_order(encode(order)) == order


# From a file to a session


def test_a_check_comes_with_its_session_through_the_scrubber(tmp_path: Path) -> None:
    made = capture(tmp_path / "home")
    rows = [
        {"prompt": "Whom?", "completion": "ann@example.com", "check": {"kind": "contains"}},
        {
            "prompt": "Who is asked?",
            "completion": "ann@example.com",
            "check": {"kind": "contains", "answer": "ann@example.com"},
        },
        {"prompt": "3 + 4?", "completion": "7", "check": {"kind": "number", "answer": "7"}},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_sessions(JsonlSource(path), made.intake, USER, "jsonl")
    found = {session.prompt: session.check for session in made.corpus.sessions()}
    assert found == {
        "Whom?": None,
        "Who is asked?": Check(CheckKind.CONTAINS, "[EMAIL]"),
        "3 + 4?": Check(CheckKind.NUMBER, "7"),
    }
    assert b"ann@example" not in made.on_disk()
