"""What the endpoint costs and gives: latency, throughput, routed answers, pages, and faults.

    python tests/bench/serve.py [--data FILE...] [--json FILE|-] [--only latency,tokens,routed,...]
                                [--probes N] [--requests N] [--work DIR] [--home DIR]
                                [--domains NAME,...] [--sessions N]

FILE is JSON Lines of instructions, gzipped, as for `train.py`. Parts: latency, rps, overload,
tokens, routed, faults, pages. About half an hour of one core in all, most of it training; `--work`
keeps adapters and losses, so that it is done once. `--home` keeps the big home of the pages.

added_ms_p50, _p99        milliseconds to the first byte of a body beyond the same upstream asked
                          directly, 50 streams open; the worse of a model passed on and a named one
auto_ms_p50, _p99         the same of `groove/auto` at 10 new chats a second, encoding included
rps_nonblocking           answers a second, 50 at a time, of a back end that needs no time
overload                  200 new chats at once, by the fallback that they took: all are answered
tokens_ratio, first_token_ratio, switch_ms, adapters_mb
                          the built-in back end against bare transformers: see serve_tokens.py
routed.D                  losses in nats per token of `groove/auto`, the chassis and the best leaf
pages.P                   milliseconds of each page at 100,000 sessions and 500 leaves
faults                    10,000 requests with faults: see serve_faults.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ["HF_HUB_OFFLINE"] = "1"

import trio  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "instructions"
# Not `knowledge`: a part of its questions reads as those of `sql` do ("Where was ... born?").
DOMAINS = ("coding", "math", "medical", "shell", "sql")
PARTS = ("latency", "rps", "overload", "tokens", "routed", "faults", "pages")


def main() -> None:
    args = _arguments()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as fallback:
        work = args.work or Path(fallback)
        for part in args.only:
            folder = Path(fallback) / part
            folder.mkdir(mode=0o700)
            figures |= _measured(part, args, folder, work)
            if args.json not in (None, "-"):
                Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    if args.json in (None, "-"):
        print(json.dumps(figures, indent=1))


def _measured(part: str, args: argparse.Namespace, folder: Path, work: Path) -> dict[str, Any]:
    match part:
        case "tokens":
            import serve_tokens

            return dict(serve_tokens.run())
        case "routed":
            import serve_routed

            files = [path for path in args.data if path.name.split(".")[0] in args.domains]
            made = serve_routed.grown(files, folder / "home", work / "domains", args.sessions)
            return {"routed": serve_routed.routed(made)}
        case "pages":
            import serve_pages

            return {"pages": serve_pages.pages(args.home or folder / "home")}
        case "faults":
            import serve_faults
            import serve_load

            with serve_load.stand(args.data, folder, capture=True) as (where, node, app):
                return {"faults": serve_faults.faults(where, node, app, args.requests)}
        case _:
            return _load(part, args, folder)


def _load(part: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import serve_load

    with serve_load.stand(args.data, folder) as (where, _, _):
        if part == "latency":
            return trio.run(serve_load.latency, where, args.probes, args.probes)
        if part == "rps":
            return trio.run(serve_load.throughput, where, args.requests // 2)
        return trio.run(serve_load.overload, where)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", type=Path, default=sorted(DATA.glob("*.jsonl.gz")))
    parser.add_argument("--only", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--probes", type=int, default=400)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=3000, help="of each domain, routed")
    parser.add_argument("--domains", type=lambda text: text.split(","), default=DOMAINS)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--json")
    args = parser.parse_args()
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"--only takes some of {', '.join(PARTS)}; not {', '.join(sorted(unknown))}")
    if not args.data:
        parser.error("no data: give --data FILE...")
    return args


if __name__ == "__main__":
    main()
