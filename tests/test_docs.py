"""The documents say what the code says: each is made of it, or its commands and links are tried."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import make_what_leaves
import pytest

from node import config_reference
from node.cli import command
from node.config import Config
from node.settings import values

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_CONSOLE = re.compile(r"```(?:console|sh|bash|shell)\n(.*?)```", re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(DOCS))


def test_the_reference_of_settings_is_what_the_code_says() -> None:
    made = config_reference.markdown()
    assert (DOCS / "configuration.md").read_text() == made, (
        "make it anew: groove-node config reference > docs/configuration.md"
    )


def test_every_setting_is_in_the_reference() -> None:
    made = config_reference.markdown()
    for key in values(Config()):
        section, _, name = key.rpartition(".")
        part = made.partition(f"\n## [{section}]\n")[2].partition("\n## ")[0]
        assert f"\n| `{name}` |" in part, key


def test_the_list_of_what_leaves_is_made_of_the_wire() -> None:
    made = make_what_leaves.page()
    assert make_what_leaves.PATH.read_text() == made, (
        "make it anew: python tests/make_what_leaves.py"
    )


def test_every_structure_of_the_wire_is_in_the_list_of_what_leaves() -> None:
    made = make_what_leaves.page()
    for kind in make_what_leaves.kinds():
        assert re.search(rf"^(### |\| |- \*\*){kind.__name__}\b", made, re.MULTILINE), kind


def shown(page: Path) -> list[list[str]]:
    """The words of each groove-node command of a page, without what the shell does."""
    found = []
    for block in _CONSOLE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s\|\s|\s&&\s|;\s|\$\(", line.removeprefix("$ ")):
                typed = re.split(r"\s[<>]", part.strip().removesuffix("&"))[0]
                if typed.startswith("groove-node "):
                    found.append(shlex.split(typed, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_page_is_one_that_the_program_takes(page: Path) -> None:
    for words in shown(page):
        words = ["/dev/stdin" if each == "-" else each.rstrip(")") for each in words]
        command.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_in_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_the_index_links_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    linked = {(DOCS / each).resolve() for each in re.findall(r"\]\(([^)#]+\.\w+)\)", index)}
    missing = {name_of(page) for page in PAGES if page.resolve() not in linked}
    assert missing == {"README.md"}


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w*]+\.py)`", (DOCS / "threat-model.md").read_text()))
    assert len(named) > 15
    for pattern in named:
        assert list(ROOT.glob(pattern)), pattern


def test_the_quick_start_shows_the_commands_in_the_order_that_needs_nothing_before() -> None:
    commands = [words[0] for words in shown(DOCS / "quick-start.md")]
    first = ["init", "doctor", "ask", "run"]
    assert commands[:4] == first
    assert commands.index("consent") < commands.index("import") < commands.index("round")


def test_no_page_names_a_folder_of_the_machine_that_it_was_written_on() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w~.])/(root|work)/", page.read_text()), page
