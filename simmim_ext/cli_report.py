"""``simmim report DIR``: the report of a saved result again, as a table, a picture or a page."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from .cli import say
from .report import draw, read_report, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a saved result")
    parser.add_argument(
        "--html", type=_file(".html"), metavar="FILE", help="write one page with everything in it"
    )
    parser.add_argument(
        "--png", type=_file(".png"), metavar="FILE", help="draw the information of every unit"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Shows the report, and writes what is asked for."""
    report = read_report(arguments.folder)
    if arguments.png:
        draw(report, arguments.png)
        say(f"Wrote {arguments.png}")
    if arguments.html:
        from .page import write_page

        write_page(report, arguments.html, title=arguments.folder.resolve().name)
        say(f"Wrote {arguments.html}")
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def _file(suffix: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        if Path(text).suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"must be a file name ending in {suffix}, got {text}")
        return Path(text)

    return parse
