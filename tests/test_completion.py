"""`groove-node completion`: the script is run by bash, as a press of Tab would."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from node.cli import command, main

TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_groove_node
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "groove-node"
    path.write_text(command.generate_completion(shell="bash"))
    return path


def completed(script: Path, *words: str) -> set[str]:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        ["bash", "--norc", "-c", TAB, "tab", str(script), "groove-node", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("sta",), {"status"}),
        (("co",), {"completion", "config", "consent"}),
        (("config", "e"), {"explain"}),
        (("consent", "rev"), {"revoke"}),
        (("ask", "--no"), {"--no-capture"}),
        (("logs", "--fol"), {"--follow"}),
        (("completion", "f"), {"fish"}),
        (("nothing", "xyz"), set()),
    ],
)
def test_a_tab_completes_commands_their_options_and_their_choices(
    script: Path, words: tuple[str, ...], wanted: set[str]
) -> None:
    assert completed(script, *words) == wanted


def test_every_command_is_offered_to_the_first_tab(script: Path) -> None:
    assert completed(script, "") == {name for name in command if not name.startswith("-")}


@pytest.mark.parametrize(
    ("shell", "has"), [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")]
)
def test_each_shell_has_its_script_on_stdout_and_nothing_else(
    shell: str, has: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert has in said.out and "groove-node" in said.out and not said.err


def test_a_shell_that_is_not_known_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "bash" in capsys.readouterr().err
