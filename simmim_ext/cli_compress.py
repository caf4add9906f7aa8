"""``simmim compress RECIPE.toml``: from a recipe to a saved smaller model."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from .cli import check_empty, make_folder, say
from .compression import compress
from .folders import remove_folder
from .recipe import read_recipe
from .report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE.toml", help="names the model, its data and the budget"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="new or empty folder (default: the recipe's path without .toml)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Compresses what the recipe names, saves the result and shows its report."""
    recipe = read_recipe(arguments.recipe)
    recipe.check_budget()
    folder = arguments.output or arguments.recipe.with_suffix("")
    check_empty(folder)
    whole = folder.resolve()
    state = recipe.checkpoint_dir or whole.with_name(f"{whole.name}.checkpoint")
    # Standard output is the report's, whatever the recipe's code prints.
    with redirect_stdout(sys.stderr):
        model, inputs = recipe.load()
        make_folder(folder)
        if (state / "manifest.json").exists():
            say(f"Going on from {state}")
        else:
            say(f"After an interruption the same command goes on from {state}")
        result = compress(
            model,
            **{"constraints": {}, **recipe.settings},
            **inputs,
            config=recipe.config,
            checkpoint_dir=state,
        )
    result.save(folder)
    remove_folder(state)
    if arguments.json:
        print(json.dumps(result.report, indent=2))
    else:
        show(result.report)
    say(f"Model and report are in {folder}: simmim_ext.load({str(folder)!r}, model)")
