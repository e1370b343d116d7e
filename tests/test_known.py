"""Values that only this machine knows to be secret are found anywhere, and never written down."""

from __future__ import annotations

import base64
import json
import random
import string
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_steps import steps

from node.capture.known import FILE, KEY_FILE, Known, open_known
from node.capture.known_sources import gather, keyring_values
from node.config import CaptureConfig, load

ON = CaptureConfig()


def drawn(seed: int, length: int = 40) -> str:
    """A value as a service would give out; digits and letters by turns, so that it looks drawn."""
    rng = random.Random(seed)
    return "".join(
        rng.choice(string.digits if n % 3 == 0 else string.ascii_letters) for n in range(length)
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "groove"
    (folder / "keys").mkdir(parents=True, mode=0o700)
    return folder


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """The owner's own home, where credential files lie."""
    folder = tmp_path / "owner"
    folder.mkdir()
    return folder


def found(known: Known, text: str) -> list[str]:
    data = text.encode()
    return [data[start:end].decode() for start, end in sorted(known.spans(data))]


def holds(value: str) -> Known:
    return Known([value], None)


@pytest.mark.parametrize(
    "spell",
    [
        lambda value: value,
        lambda value: quote(value, safe=""),
        lambda value: json.dumps(value)[1:-1],
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
        lambda value: base64.b64encode(f"me:{value}".encode()).decode(),
        lambda value: base64.b64encode(f"you:{value}\n".encode()).decode(),
        lambda value: base64.b64encode(f"admin:{value}".encode()).decode(),
    ],
    ids=["plain", "url", "json", "base64", "base64url", "basic", "with newline", "phase 2"],
)
def test_a_value_is_found_whole_in_its_usual_encodings(spell: Callable[[str], str]) -> None:
    value = 'drawn/by"hand+7=' + drawn(1, 13)
    assert found(holds(value), f"header: {spell(value)} end") == [spell(value)]


def test_a_short_value_is_found_as_a_word_and_not_within_one() -> None:
    known = holds("tig3rlily")
    assert found(known, "password tig3rlily, again: tig3rlily") == ["tig3rlily"] * 2
    assert found(known, "mytig3rlily tig3rlilys") == []


@given(st.lists(st.text(min_size=1), max_size=5), st.text())
def test_offsets_are_of_the_bytes_given_and_in_range(values: list[str], text: str) -> None:
    data = text.encode("utf-8", "replace")
    for start, end in Known(values, None).spans(data):
        assert 0 <= start < end <= len(data)


def test_a_repr_tells_no_value() -> None:
    assert drawn(1) not in repr(holds(drawn(1)))


def test_the_environment_tells_its_secrets_and_not_its_settings() -> None:
    env = {
        "PATH": "/usr/local/bin:/usr/bin",
        "LANG": "en_GB.UTF-8",
        "USER": "annabel7x",
        "DB_PASSWORD": "annabel7x",
        "APP_SECRET_MODE": "production",
        "TOKENIZERS_PARALLELISM": "true",
        "AUTH_HOST": "localhost",
        "AUTH0_DOMAIN": "dev-7abc12x.eu.auth.example",
        "JWT_ALG": "HS256",
        "NEXTAUTH_URL": "http://localhost:3000",
        "KEY_FILE": "/etc/ssl/private/key-1a2b3c.pem",
        "TOKEN": "${CI_TOKEN}",
        "PORT_KEY": "8080",
        "GIT_COMMIT": "0f9e8d7c6b5a49382716051423324150af9e8d7c",
        "REQUEST_ID": "123e4567-e89b-42d3-a456-426614174000",
        "MAIL_PASSWORD": "blue-hunter2!",
        "PASSPHRASE": "correct horse battery staple",
        "SERVICE_TOKEN": drawn(2),
        "OPAQUE": drawn(3),
        "SENTRY_DSN": f"https://{drawn(9)}@sentry.example/42",
        "DATABASE_URL": f"postgres://al:{drawn(4)}@db.example/x?sslmode=require",
    }
    assert set(gather(env, [])) == {
        "blue-hunter2!",
        "correct horse battery staple",
        *map(drawn, (2, 3, 4, 9)),
    }


def test_an_env_file_of_a_project_is_read_and_its_example_is_not(tmp_path: Path) -> None:
    service = tmp_path / "services" / "web"
    service.mkdir(parents=True)
    (tmp_path / ".env").write_text(f'# ours\nexport API_KEY="{drawn(5)}"\nDEBUG=true\n')
    (tmp_path / ".env.local").write_text(f"STRIPE_SECRET={drawn(6)} # live\n")
    (tmp_path / ".env.example").write_text(f"API_KEY={drawn(7)}\n")
    (service / ".env").write_text(f"TOKEN = '{drawn(8)}'\n")
    assert set(gather({}, [tmp_path])) == set(map(drawn, (5, 6, 8)))


def test_the_usual_credential_files_are_read(owner: Path) -> None:
    auth = base64.b64encode(f"al:{drawn(15)}".encode()).decode()
    files = {
        ".aws/credentials": f"[default]\naws_secret_access_key = {drawn(10)}\nregion = eu-west-1\n",
        ".netrc": f"machine a.example login al password {drawn(11)}\n",
        ".npmrc": f"//registry.example/:_authToken={drawn(12)}\n",
        ".pypirc": f"[pypi]\nusername = __token__\npassword = {drawn(13)}\n",
        ".git-credentials": f"https://al:{drawn(14)}@git.example\n",
        ".docker/config.json": json.dumps({"auths": {"r.example": {"auth": auth}}}),
        ".config/gh/hosts.yml": f"git.example:\n    user: al\n    oauth_token: {drawn(16)}\n",
        ".pgpass": f"db.example:5432:shop:al:{drawn(17)}\n",
    }
    for name, text in files.items():
        (owner / name).parent.mkdir(parents=True, exist_ok=True)
        (owner / name).write_text(text)
    assert set(gather({"HOME": str(owner)}, [])) == {auth, *map(drawn, range(10, 18))}


def test_a_file_that_is_damaged_or_closed_is_passed_over(owner: Path) -> None:
    (owner / ".docker").mkdir()
    (owner / ".docker/config.json").write_text("[1, {")
    (owner / ".netrc").write_bytes(b"\xff\xfe\0password")
    (owner / ".env").mkdir()
    assert gather({"HOME": str(owner)}, [owner / "nowhere"]) == []


def test_a_value_that_is_gone_from_the_machine_is_still_found(home: Path) -> None:
    old = f"sk-proj-{drawn(20)}"
    open_known(home, ON, {"OPENAI_API_KEY": old}, [])
    known = open_known(home, ON, {}, [])
    for text in (f"key={old}", f'{{"k": "{old}"}}', f"line\\n{old}", f"({old})"):
        assert [text.encode()[a:b].decode() for a, b in known.spans(text.encode())] == [old], text
    assert not list(known.spans(f"key={drawn(21)} and sk-proj-{drawn(22)}".encode()))


def test_a_value_with_other_signs_in_it_is_remembered_whole(home: Path) -> None:
    old = f"ab+/{drawn(23)}/x+y="
    open_known(home, ON, {"SIGNING_KEY": old}, [])
    text = f"key: {old};".encode()
    assert list(open_known(home, ON, {}, []).spans(text)) == [(5, len(text) - 1)]


def test_the_disk_holds_no_value_in_any_encoding(home: Path) -> None:
    values = [drawn(seed, 16 + seed) for seed in range(30)] + ["blue-hunter2!", "s3same-0pen-you"]
    open_known(home, ON, {f"S{n}_PASSWORD": value for n, value in enumerate(values)}, [])
    disk = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert len(json.loads((home / FILE).read_bytes())["values"]) == 30
    for value in values:
        data = value.encode()
        for form in (data, base64.b64encode(data)[:8], data.hex().encode(), data[:6], data[-6:]):
            assert form not in disk


def test_a_guessable_value_leaves_no_hash(home: Path) -> None:
    open_known(home, ON, {"DB_PASSWORD": "hunter2024", "PASSPHRASE": "correct horse battery x"}, [])
    assert not (home / FILE).exists()


def test_the_key_and_the_hashes_are_the_owners_alone(home: Path) -> None:
    open_known(home, ON, {"API_TOKEN": drawn(30)}, [])
    for path in (home / FILE, home / "keys" / KEY_FILE):
        assert path.stat().st_mode & 0o777 == 0o600


def test_two_homes_write_different_hashes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name / "keys").mkdir(parents=True)
        open_known(tmp_path / name, ON, {"API_TOKEN": drawn(31)}, [])
        files.append((tmp_path / name / FILE).read_bytes())
    assert files[0] != files[1]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format":1}'])
def test_damaged_hashes_cost_their_memory_and_nothing_else(home: Path, damage: bytes) -> None:
    open_known(home, ON, {"API_TOKEN": drawn(32)}, [])
    (home / FILE).write_bytes(damage)
    known = open_known(home, ON, {"API_TOKEN": drawn(33)}, [])
    assert list(known.spans(drawn(33).encode()))


def test_a_home_that_is_not_set_up_is_not_written(tmp_path: Path) -> None:
    known = open_known(tmp_path / "none", ON, {"API_TOKEN": drawn(34)}, [])
    assert list(known.spans(drawn(34).encode()))
    assert not (tmp_path / "none").exists()


def test_who_only_looks_leaves_nothing_behind(home: Path) -> None:
    env = {"API_TOKEN": drawn(38)}
    assert list(open_known(home, ON, env, [], remember=False).spans(drawn(38).encode()))
    assert not any(path.is_file() for path in home.rglob("*"))
    open_known(home, ON, env, [])
    before = (home / FILE).read_bytes()
    known = open_known(home, ON, {"OTHER_TOKEN": drawn(39)}, [], remember=False)
    assert list(known.spans(drawn(38).encode()))
    assert (home / FILE).read_bytes() == before


def test_groove_toml_says_what_is_looked_for(home: Path) -> None:
    (home / "groove.toml").write_text(
        '[capture]\nknown_values = false\ntool_output = true\nkeyring = ["mail/al"]\n'
    )
    capture = load(home).capture
    assert (capture.known_values, capture.tool_output) == (False, True)
    assert capture.keyring == ("mail/al",)


def test_it_can_be_switched_off(home: Path) -> None:
    off = CaptureConfig(known_values=False)
    assert not list(open_known(home, off, {"API_TOKEN": drawn(35)}, []).spans(drawn(35).encode()))
    assert not (home / FILE).exists()


@pytest.mark.parametrize(
    "unit", ["a1", "1a2b-", "0aA0", "====", "a" * 40 + "1b2 ", "1a2b" * 10 + " "]
)
def test_hostile_text_costs_linear_time(home: Path, unit: str) -> None:
    open_known(home, ON, {"API_TOKEN": drawn(36)}, [])
    known = open_known(home, ON, {"OTHER_TOKEN": drawn(37)}, [])

    def found(size: int) -> list[tuple[int, int]]:
        return list(known.spans((unit * size)[:size].encode()))

    small, large = (steps(partial(found, size)) for size in (25_000, 100_000))
    assert large < 6 * small, f"{small} steps, then {large} for four times as much"
    assert not found(1_000_000)


class Ring:
    """A keyring of one backend that would hang whoever asks it."""

    def __init__(self, answer: Callable[[str, str], str | None]) -> None:
        self.get_password = lambda service, user: answer(service, user)


def install(monkeypatch: pytest.MonkeyPatch, module: str, ring: Ring) -> None:
    monkeypatch.setattr(Ring, "__module__", module)
    fake = types.SimpleNamespace(get_keyring=lambda: ring)
    monkeypatch.setitem(sys.modules, "keyring", fake)


def test_named_entries_of_a_keyring_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {("mail/imap", "al"): drawn(40), ("x", "y"): "production"}
    ring = Ring(lambda service, user: kept.get((service, user)))
    install(monkeypatch, "keyring.backends.Windows", ring)
    entries = ["mail/imap/al", "x/y", "no/entry"]
    assert keyring_values(entries, wait_s=60) == [drawn(40)]


def test_a_keyring_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = threading.Event()
    answered: list[bool] = []

    def answer(service: str, user: str) -> str:
        answered.append(enough.wait(60))
        return drawn(42)

    install(monkeypatch, "keyring.backends.Windows", Ring(answer))
    assert keyring_values(["a/b"], wait_s=0.1) == []
    assert not answered
    enough.set()


def test_a_keyring_that_may_ask_on_the_terminal_is_not_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(service: str, user: str) -> str:
        raise AssertionError("it was asked")

    install(monkeypatch, "keyrings.alt.file", Ring(asked))
    assert keyring_values(["a/b"], wait_s=2) == []
