"""``simmim bench EXPERIMENT``: the experiments of the source tree's benchmarks folder."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from .errors import SimMIMError

# Experiment -> what it does, module of the source tree.
EXPERIMENTS = {
    "compression": (
        "every criterion at the same budget and the same training",
        "benchmarks.compression.tournament",
    ),
    "cost": ("what scoring, selection and compression take", "benchmarks.compression.cost"),
    "pretrained": (
        "networks with their published weights, made smaller by each criterion",
        "benchmarks.compression.pretrained",
    ),
    "bars": ("the recipe against the figures it must reach", "benchmarks.compression.bars"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a parser for each experiment."""
    experiments = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    for name, (summary, module) in EXPERIMENTS.items():
        try:
            experiment = import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or " "):
                raise
            raise SimMIMError(
                f"the experiments are part of the source tree, and {root} holds no benchmarks "
                "folder; clone the repository and pip install -e . there"
            ) from error
        inner = experiments.add_parser(
            name, help=summary, description=f"{name}: {summary}.", allow_abbrev=False
        )
        experiment.add_arguments(inner)
        inner.set_defaults(run=experiment.run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the experiment that was chosen."""
    arguments.run(arguments)
