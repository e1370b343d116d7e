"""`python tests/screenshots.py [--home FOLDER]`: the pictures in docs/screenshots, of a grown home.

Run by hand when the pages change. Needs Chromium and playwright; takes a minute, most of it UMAP.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("GROOVE_STATE", tempfile.mkdtemp(prefix="groove-state-"))

from playwright.sync_api import sync_playwright  # noqa: E402
from support_dashboard import CHROMIUM, Dashboard, dashboard  # noqa: E402
from support_pages import grown  # noqa: E402

from node.api.pages.make_map import make  # noqa: E402
from node.app import App  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
SHOTS = (  # name, path, width, height, scheme
    ("home", "/", 1280, 900, "light"),
    ("tree", "/leaves", 1280, 900, "light"),
    ("leaf", "/leaves/async-python", 1280, 1000, "light"),
    ("map", "/map", 1440, 900, "light"),
    ("routing", "/routing", 1280, 1000, "light"),
    ("rounds", "/rounds", 1280, 900, "light"),
    ("rights", "/rights", 1280, 1000, "light"),
    ("home-dark-mobile", "/", 375, 812, "dark"),
    ("tree-dark-mobile", "/leaves", 375, 812, "dark"),
)


@contextmanager
def running(app: App) -> Iterator[Dashboard]:
    """The pages of a home, as if it had been used for a while."""
    with dashboard(app) as found:
        found.counts.answered.update(leaf=312, chassis=41, upstream=7)
        found.counts.fallbacks.update(encoder_busy=2)
        yield found


def take(
    dashboard: Dashboard, folder: Path, shots: tuple[tuple[str, str, int, int, str], ...]
) -> None:
    """One picture of each page, as it looks a second after it was opened."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path, wide, high, scheme in shots:
            context = browser.new_context(
                viewport={"width": wide, "height": high},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            context.add_cookies([dashboard.cookie])  # type: ignore[list-item]
            page = context.new_page()
            page.goto(dashboard.url + path, wait_until="load")
            page.wait_for_timeout(600)
            page.screenshot(path=folder / f"{name}.png")
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="of a node; else one is grown for it")
    parser.add_argument("--to", type=Path, default=FOLDER)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        app = (
            App(given.home) if given.home else grown(Path(folder) / "home", evil="terraform-state")
        )
        make(app)
        given.to.mkdir(parents=True, exist_ok=True)
        with running(app) as found:
            take(found, given.to, SHOTS)


if __name__ == "__main__":
    main()
