"""The command line: ``simmim COMMAND``.

A command is a module with ``add_arguments(parser)`` and ``run(arguments)``, and one line of
``COMMANDS``. What it has to say as its result goes to standard output, everything else to
standard error.
"""

import argparse
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from ._version import __version__
from .errors import SimMIMError

# Command -> what it does, module.
COMMANDS = {
    "bench": ("experiments of the source tree", ".bench"),
    "compress": ("compress the model of a recipe and save it", ".cli_compress"),
    "demo": ("train, compress and compare on real images", ".demo"),
    "info": ("versions, devices and the kernels compiled in", ".info"),
    "report": ("show the report of a saved model, as a table, picture or page", ".cli_report"),
    "score": ("score the units of a recipe's model", ".cli_score"),
    "tune": ("measure on this machine which sparse kernels are fastest", ".tune"),
}


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(
        prog="simmim",
        description="Compress trained PyTorch networks by information.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"simmim_ext {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: commands.add_parser(
            name, help=summary, description=f"{name}: {summary}.", allow_abbrev=False
        )
        for name, (summary, _) in COMMANDS.items()
    }
    name = next(iter(arguments), None)
    try:
        # Only the command's own module is imported: `simmim --help` and `simmim info` should not
        # wait for, or fail by, what they do not need.
        if name not in COMMANDS:
            parser.parse_args(arguments)
            return 0
        module = import_module(COMMANDS[name][1], __package__)
        module.add_arguments(parsers[name])
        chosen = parser.parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            module.run(chosen)
    except BrokenPipeError:
        # Whoever read standard output has read enough; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SimMIMError, ImportError, OSError) as error:
        say(f"simmim {name}: error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say(f"simmim {name}: interrupted")
        return 130
    return 0


def say(*words: object) -> None:
    """Words for a person, on standard error."""
    print(*words, file=sys.stderr, flush=True)


def integer(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An argparse type: an integer of at least ``low`` and at most ``high``."""
    rule = f"of at least {low}" + (f" and at most {high}" if high < math.inf else "")

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be an integer {rule}, got {text}")
        return int(text)

    return parse


def integers(low: int) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: integers of at least ``low``, separated by commas."""
    one = integer(low)
    return lambda text: tuple(one(part.strip()) for part in text.split(","))


def fraction(text: str) -> float:
    """An argparse type: a number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a fraction in (0, 1], got {text}")
    return value


def check_empty(folder: Path) -> None:
    """Raises SimMIMError unless ``--output`` is a new or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SimMIMError(f"--output {folder} is not an empty folder; name a new one")


def make_folder(folder: Path) -> None:
    """Makes ``--output``, and a file in it, which no permission bit tells for certain."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SimMIMError(
            f"--output {folder} cannot be written to ({error.strerror}); name another"
        ) from error


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    say(f"simmim: warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
