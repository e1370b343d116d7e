"""`groove-node scrub`: an owner sees what would be replaced in a text, and nothing leaks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node import scrubbing
from node.capture.scrubber import Finding, Label
from node.errors import MisuseError
from node.home import groove_cache

ROOT = Path(__file__).parent.parent
SECRET = "q7Rk2mZ9" + "tW4xL8vB3nC6"
TEXT = f"Hello,\nwrite to al@example.org from 198.51.100.7.\nmy value is {SECRET}\n"
CLEAN = "Hello,\nwrite to [EMAIL] from [IP].\nmy value is [API_KEY]\n"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def scrub(
        *arguments: str, given: str = TEXT, folder: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "GROOVE_HOME": str(tmp_path / "home"), "MY_TOKEN": SECRET}
        return subprocess.run(
            [sys.executable, "-m", "node.cli", "scrub", *arguments],
            env={
                **env,
                "GROOVE_CACHE": str(groove_cache()),
                "HOME": str(tmp_path),
                "PYTHONPATH": str(ROOT),
            },
            cwd=folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return scrub


def test_the_text_goes_to_stdout_and_the_reasons_to_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(TEXT)
    done = run(str(tmp_path / "notes.txt"))
    assert (done.returncode, done.stdout) == (0, CLEAN)
    places = [line.split()[:2] for line in done.stderr.splitlines()[:-1]]
    name = str(tmp_path / "notes.txt")
    assert places == [
        [f"{name}:2:10", "EMAIL"],
        [f"{name}:2:30", "IP"],
        [f"{name}:3:13", "API_KEY"],
    ]
    assert done.stderr.splitlines()[-1].startswith("3 replaced: ")
    assert SECRET not in done.stderr and "al@example" not in done.stderr
    assert not (tmp_path / "home").exists()


def test_standard_input_and_a_quiet_run_print_the_text_alone(run: Run) -> None:
    done = run("--quiet")
    assert (done.stdout, done.stderr) == (CLEAN, "")


def test_json_is_one_document_without_the_values(run: Run) -> None:
    done = run("--json", "--second")
    document = json.loads(done.stdout)
    assert document["text"] == CLEAN and document["second"] is None
    assert document["counts"] == {"EMAIL": 1, "IP": 1, "API_KEY": 1}
    first = document["replaced"][0]
    assert {k: first[k] for k in ("line", "column", "characters", "label")} == {
        "line": 2,
        "column": 10,
        "characters": 14,
        "label": "EMAIL",
    }
    assert first["reason"] and SECRET not in done.stdout + done.stderr


def test_what_a_later_round_finds_is_told_at_its_place_in_the_text_given() -> None:
    """One place a placeholder: what a later find takes in counts no more."""

    def find(text: str) -> list[Finding]:
        first = [Finding(*m.span(), Label.IP, "digits") for m in re.finditer(r"\d+", text)]
        later = re.finditer(r"x\[IP\]y|q+", text)
        return first or [Finding(*m.span(), Label.EMAIL, "later") for m in later]

    text = "aä 123 qq x4567y 8 end"
    found = scrubbing.found_in_rounds(find, text)
    assert [(text[each.start : each.end], str(each.label)) for each in found] == [
        ("123", "IP"),
        ("qq", "EMAIL"),
        ("x4567y", "EMAIL"),
        ("8", "IP"),
    ]


@pytest.mark.parametrize("text", [TEXT, "a@example.org, b@example.org\n" * 2])
def test_as_many_are_listed_as_placeholders_are_printed(text: str) -> None:
    done = scrubbing.scrub(text, {"MY_TOKEN": SECRET})
    assert len(done.replaced) == len(re.findall(r"\[[A-Z_]+\]", done.text)) > 0


def test_the_secrets_of_the_project_that_holds_the_working_folder_are_found(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "kettle" / "sub"
    folder.mkdir(parents=True)
    (tmp_path / "kettle" / ".env").write_text("KETTLE_PASSWORD=blue-hunter2!kettle\n")
    done = run(given="it is blue-hunter2!kettle\n", folder=folder)
    assert done.stdout == "it is [API_KEY]\n"


def test_a_text_with_nothing_in_it_is_printed_as_it_is(run: Run) -> None:
    done = run(given="plain words\nno end of line")
    assert (done.stdout, done.stderr) == ("plain words\nno end of line", "0 replaced\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\x89PNG\r\n\x1a\n\xff", "is not UTF-8"), (b"a\0b", "is a zero byte")],
)
def test_what_is_no_text_is_refused(run: Run, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "image.png").write_bytes(content)
    done = run(str(tmp_path / "image.png"))
    assert done.returncode == 2 and done.stdout == ""
    assert why in done.stderr and "Nothing was scrubbed." in done.stderr


def test_a_missing_file_is_named(run: Run, tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.txt"))
    assert done.returncode == 2 and "none.txt cannot be read" in done.stderr


def test_a_file_beyond_the_limit_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "TEXT_BYTES_MAX", 10)
    (tmp_path / "long.txt").write_text("x" * 11)
    with pytest.raises(MisuseError, match="larger than"):
        scrubbing.read_text(tmp_path / "long.txt")


def test_help_says_what_is_not_found(run: Run) -> None:
    assert "Names of people" in run("--help").stdout
