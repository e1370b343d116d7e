"""Resources: why unattended work waits and until when, what nights cost, what there is left."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec

from node import night_book, show_night, started
from node.api.pages.desk import Desk
from node.api.pages.page import Ask, Page
from node.morning import HEADINGS

WAITS_SHOWN = 10


def resources(desk: Desk, ask: Ask) -> Page:
    app, node = desk.app, desk.running()
    night = show_night.standing(app, node)
    pages = night_book.read(app.home)
    config = msgspec.to_builtins(app.config.night)
    waited = sorted((pages.waited_s if pages else {}).items(), key=lambda x: -x[1])[:WAITS_SHOWN]
    report = night["last"]
    facts = {
        "night": night,
        "window": app.config.night.window,
        "rules": [(name, _plain(value)) for name, value in config.items()],
        "rounds": msgspec.to_builtins(app.config.rounds),
        "book": pages,
        "waited": [(why, f"{seconds / 60:,.0f} min") for why, seconds in waited if seconds >= 60],
        "report": report,
        "headings": [(name, report.get(name, [])) for name in HEADINGS] if report else [],
        "machine": _machine(desk, node),
        "unknown": show_night.unknown(night),
        "changed": started.changes(app, node),
    }
    return Page("resources.html", "Resources", facts, ("night", "node", "settings", "forest"))


def _plain(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value)) or "none"
    return str(value)


def _machine(desk: Desk, node: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the node takes, and what there is left of it."""
    import psutil

    usage = shutil.disk_usage(desk.home)
    memory = psutil.virtual_memory()
    found = [
        ("Disk", f"{_gb(usage.free)} free of {_gb(usage.total)}"),
        ("Memory", f"{_gb(memory.available)} free of {_gb(memory.total)}"),
        ("Load", f"{psutil.getloadavg()[0]:.1f} of {psutil.cpu_count()} cores, over a minute"),
    ]
    try:
        process = psutil.Process(node["pid"] if node and node["pid"] else None)
        children = process.children(recursive=True)
        resident = sum(each.memory_info().rss for each in [process, *children])
        many = f" with {len(children)} children" if children else ""
        found.append(("This node", f"process {process.pid}{many}, {_gb(resident)} of memory"))
    except psutil.Error:
        pass  # it has ended meanwhile
    return found


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
