"""``simmim score RECIPE.toml``: what the units of a recipe's model are worth."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import CRITERIA
from .progress import bar
from .recipe import read_recipe
from .scoring import Scores, score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE.toml", help="names the model, its data and the budget"
    )
    parser.add_argument(
        "--criterion",
        choices=CRITERIA,
        metavar="NAME",
        help=f"{', '.join(CRITERIA)} (default: the recipe's)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the scores of every layer's units as JSON"
    )


def run(arguments: argparse.Namespace) -> None:
    """Scores the recipe's model, and shows what its layers' units are worth."""
    recipe = read_recipe(arguments.recipe)
    settings = {k: v for k, v in recipe.settings.items() if k in ("output", "ignored_layers")}
    with redirect_stdout(sys.stderr):
        model, inputs = recipe.load(("calibration", "example_inputs"))
        if recipe.config.device is not None:
            model = model.to(recipe.config.device)
        with bar("score"):
            scores = score(
                model, **inputs, **settings, criterion=arguments.criterion, config=recipe.config
            )
    if arguments.json:
        print(json.dumps({name: values.tolist() for name, values in scores.items()}, indent=2))
        return
    from rich.console import Console

    Console().print(table(scores))


def table(scores: Scores) -> Any:
    """The least, the median and the most of every layer's units, a rich table."""
    from rich.table import Table
    from rich.text import Text

    found = Table(
        "layer",
        title=f"{scores.criterion}: least, median and most of a layer's units",
        title_justify="left",
    )
    for heading in ("units", "score", "entropy, nats", "information, nats"):
        found.add_column(heading, justify="right")
    for name, values in scores.items():
        columns = (values, scores.entropy[name], scores.information[name])
        # Text: names may hold what rich takes for markup.
        found.add_row(Text(name), f"{len(values):,}", *map(_spread, columns))
    return found


def _spread(values: Tensor) -> str:
    ordered = values.sort().values
    return "  ".join(f"{ordered[i]:.4g}" for i in (0, len(ordered) // 2, -1))
