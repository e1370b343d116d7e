"""The secrets that the owner's own machine knows: environment, `.env` files, credentials, keyring.

A pattern finds what looks like a secret; only the machine knows that `hunter-2-blue` is one. What
is read here stays in memory. Words that anybody writes ("production", "true", a user's name, a
path) are not taken: each of them would be a false alarm in every text.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from .known_folders import env_files, read

log = logging.getLogger(__name__)

VALUES_MAX = 1_000
VALUE_CHARS_MIN, VALUE_CHARS_MAX = 6, 4_096

_TELLING = re.compile(
    r"(?i)(?:^|[_.-])(?:key|pass|pwd|pw|auth|pat|dsn|cookie|jwt|salt|seed|sig)(?:$|[_.\d-])"
    r"|api_?key|access_?key|passw|passphrase|secret|token|credential|bearer"
)
_PASSWORD = re.compile(r"(?i)pass|pwd|(?:^|_)pw(?:$|_)|secret")
_ORDINARY_NAME = re.compile(
    r"(?i)_|(?:.*_)?(?:path|home|dir|root|file|sock|pid|sha\d*|commit|hash|digest|checksum|revision"
    r"|version|invocation_id|domain|host(?:name)?|port|region|endpoint|name|email|user(?:name)?"
    r"|mode|type|level|ttl|issuer|audience|alg(?:orithm)?|scopes?)|(?:old)?pwd|lang|lc_.*|shell"
    r"|term.*|logname|editor|pager|ls_colors|display|xdg_.*|dbus_.*|ssh_.*|gpg_key|python.*"
    r"|journal_stream"
)
_TEMPLATE = re.compile(r"\$\{|\$\(|\{\{|^<.*>$|^\*+$|^\$\w+$")
_TOKEN = re.compile(r"[A-Za-z0-9_+/=~.-]{20,512}")
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DRAWN = re.compile(r"[0-9][A-Za-z]+[0-9]")
_WORDLIKE = re.compile(r"(?:[A-Za-z]+\d{0,4}|\d{1,4})?")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([^\s=#;\[][^=]*?)\s*=\s*(.*)")


def gather(env: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    """Values worth looking for, of an environment, of folders' `.env` and of credential files.

    The home is that of `env`; without one no file under it is read. At most VALUES_MAX values,
    each once; a file that cannot be read is passed over.
    """
    owner = owner_home(env)
    found = (*_of_machine(env, owner), *_of_folders(owner, folders))
    return limited(_not_words(env, found))


def gather_more(env: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    """The values of more folders' `.env` alone."""
    return limited(_not_words(env, _of_folders(owner_home(env), folders)))


def limited(values: Iterable[str]) -> list[str]:
    """Each once, and at most VALUES_MAX: the first."""
    found = list(dict.fromkeys(values))
    if len(found) > VALUES_MAX:
        log.warning("known values left out kept=%d found=%d", VALUES_MAX, len(found))
    return found[:VALUES_MAX]


def owner_home(env: Mapping[str, str]) -> Path | None:
    return Path(env["HOME"]) if env.get("HOME") else None


def _not_words(env: Mapping[str, str], values: Iterable[str]) -> Iterator[str]:
    """Without the owner's names, and without what stands for a value."""
    words = {env.get(name, "").lower() for name in ("USER", "LOGNAME", "HOSTNAME", "HOST")}
    for value in values:
        if value.lower() not in words and not _TEMPLATE.search(value):
            yield value


def looks_drawn(value: str) -> bool:
    """True of a long token without words in it, whatever its name is."""
    if not _TOKEN.fullmatch(value) or not _DRAWN.search(value) or _UUID.fullmatch(value):
        return False
    path = value.startswith(("/", ".", "~")) and len(value) != 40  # so long is an AWS secret
    if path or value.count("/") > 3 or ("." in value and not value.startswith("ey")):
        return False
    return len(set(value)) >= 10 and entropy(value) > 3.3


def entropy(value: str) -> float:
    """Bits per character, by the characters' own frequencies."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _of_machine(env: Mapping[str, str], owner: Path | None) -> Iterator[str]:
    for name, value in env.items():
        yield from _secrets(name, value)
    if owner is not None:
        yield from _credentials(owner)


def _of_folders(owner: Path | None, folders: Iterable[Path]) -> Iterator[str]:
    for path, within in env_files(owner, folders):
        for name, value in _assignments(read(path, within)):
            yield from _secrets(name, value)


def _secrets(name: str, value: str) -> Iterator[str]:
    """The parts of one variable that unlock something."""
    value = value.strip()
    if _ORDINARY_NAME.fullmatch(name) or not VALUE_CHARS_MIN <= len(value) <= VALUE_CHARS_MAX:
        return
    if "://" in value:
        yield from _of_url(value)
    elif looks_drawn(value) or (_TELLING.search(name) and not _ordinary(value, name)):
        yield value


def _of_url(url: str) -> Iterator[str]:
    """Its password and its telling parameters; the address itself is no secret."""
    try:
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        return
    if looks_drawn(user):  # a key in place of a name, as in a DSN
        yield user
    if password and not _ordinary(password, "password"):
        yield password
    for name, value in parse_qsl(parts.query):
        if _TELLING.search(name) and not _ordinary(value, name):
            yield value


def _ordinary(value: str, name: str) -> bool:
    """True of words, numbers, addresses, paths: what texts hold without telling a secret."""
    if len(value) < VALUE_CHARS_MIN or len(set(value)) < 4:
        return True
    if looks_drawn(value):
        return False
    path = value.startswith(("/", "~/", "./", "../")) or value[1:3] == ":\\"
    if path or not re.search(r"[A-Za-z]", value):
        return True
    words = re.split(r"[\s_.:/,@-]+", value)
    if not all(_WORDLIKE.fullmatch(word) for word in words):
        return False
    if any(_case_turns(word) >= 4 or (len(word) >= 20 and word.isalpha()) for word in words):
        return False  # letters alone, but in no order that a word has
    if not _PASSWORD.search(name):
        return True
    weak = len(words) == 1 and len(value) >= 8 and any(c.isdigit() for c in value)
    phrase = len(words) >= 4 and len(value) >= 20
    return not (weak or phrase)


def _case_turns(word: str) -> int:
    cases = [c.isupper() for c in word if c.isalpha()]
    return sum(a != b for a, b in pairwise(cases))


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """NAME=value of `.env`, INI and npmrc files alike."""
    for line in text.splitlines():
        if match := _ASSIGNMENT.fullmatch(line):
            name, value = match[1], match[2].strip()
            if value[:1] in ("'", '"') and (end := value.find(value[0], 1)) > 0:
                value = value[1:end]
            else:
                value = value.split(" #", 1)[0].rstrip()
            yield name, value


def _credentials(home: Path) -> Iterator[str]:
    """What the usual tools keep in files of their own under the home."""
    for name in (".aws/credentials", ".npmrc", ".pypirc"):
        for key, value in _assignments(read(home / name)):
            yield from _secrets(key, value)
    yield from _named("password", re.findall(r"\bpassword\s+(\S+)", read(home / ".netrc")))
    for line in read(home / ".git-credentials").splitlines():
        yield from _of_url(line.strip())
    yield from _docker(read(home / ".docker/config.json"))
    hosts = read(home / ".config/gh/hosts.yml")
    yield from _named("token", re.findall(r"oauth_token:\s*[\"']?([^\s\"']+)", hosts))
    for line in read(home / ".pgpass").splitlines():
        fields = re.split(r"(?<!\\):", line)
        if len(fields) == 5 and not line.startswith("#"):
            yield from _named("password", [re.sub(r"\\(.)", r"\1", fields[4])])


def _named(name: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from _secrets(name, value)


def _docker(text: str) -> Iterator[str]:
    """An `auth` is the base64 of `user:password`; both forms are secrets."""
    try:
        auths: Any = json.loads(text or "{}").get("auths")
    except (ValueError, AttributeError):
        return
    for entry in auths.values() if isinstance(auths, dict) else ():
        if not isinstance(entry, dict):
            continue
        for name in ("auth", "identitytoken", "registrytoken", "password"):
            if isinstance(value := entry.get(name), str):
                yield from _secrets("token", value)
        try:
            pair = base64.b64decode(str(entry.get("auth", ""))).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        yield from _named("password", [pair.partition(":")[2]])


_SILENT_BACKENDS: Final = ("SecretService", "macOS", "Windows")  # the others may ask on a terminal


def keyring_values(entries: Iterable[str], *, wait_s: float) -> list[str]:
    """The keyring's passwords named "service/user", and with Secret Service all that lie open.

    Nothing is unlocked and nobody is asked: what is locked, or does not answer within `wait_s`, is
    passed over.
    """
    import threading

    found: list[str] = []

    def read() -> None:
        try:
            found.extend(_of_keyring(entries))
        except Exception as problem:  # any backend, with any error of its own
            log.info("keyring not read reason=%s", type(problem).__name__)

    reader = threading.Thread(target=read, name="keyring", daemon=True)
    reader.start()
    reader.join(wait_s)
    if reader.is_alive():
        log.info("keyring not read reason=no answer in %.0f s", wait_s)
    return [value for value in list(found) if not _ordinary(value, "password")]


def _of_keyring(entries: Iterable[str]) -> Iterator[str]:
    try:
        import keyring
    except ImportError:
        return
    chosen = keyring.get_keyring()
    for backend in getattr(chosen, "backends", [chosen]):
        kind = type(backend).__module__.rpartition(".")[2]
        if kind not in _SILENT_BACKENDS:
            continue
        if kind == "SecretService":  # its get_password asks to unlock, so it is not called
            yield from _of_secret_service()
            continue
        for entry in entries:
            service, _, user = entry.rpartition("/")
            if value := backend.get_password(service, user):
                yield value


def _of_secret_service() -> Iterator[str]:
    """Every item of every collection that is open already."""
    import secretstorage

    bus = secretstorage.dbus_init()
    try:
        for collection in secretstorage.get_all_collections(bus):
            if collection.is_locked():
                continue
            for item in collection.get_all_items():
                if not item.is_locked():
                    yield item.get_secret().decode("utf-8", "replace")
    finally:
        bus.close()
