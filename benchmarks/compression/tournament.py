"""``simmim bench compression``: every criterion at the same budget and the same training.

Baselines get what they ask for: labels on the calibration images, reconstruction as well as none,
SimMIM's layer widths as well as their own. The learning rate is chosen for each contestant and
length of training by the KL divergence on validation images of the first seed. Each result is
kept in the output folder as it ends, and a run goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from simmim_ext._version import __version__
from simmim_ext.cli import fraction, integers, say
from simmim_ext.errors import SimMIMError

from .chart import draw, table
from .contest import (
    LEARNING_RATES,
    METHODS,
    SCRATCH,
    Cell,
    Contest,
    Store,
    add_run_arguments,
    contestants,
    seeds_of,
)
from .networks import RECIPES, load_data
from .weights import METHODS as WEIGHT_METHODS

OURS = ("simmim", "shared", True)
RIVALS = (
    "simmim",
    "magnitude_l1",
    "magnitude_l2",
    "fpgm",
    "taylor",
    "hessian",
    "activation",
    "random",
    *SCRATCH,
)
_FIGURES = ("accuracy", "kl", "agreement")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--model", choices=tuple(RECIPES), default="mlp", help="default: mlp")
    parser.add_argument(
        "--epochs",
        type=integers(1),
        default=(1, 3, 10),
        metavar="LIST",
        help="lengths of distillation (default: 1,3,10)",
    )
    parser.add_argument(
        "--zeros",
        type=fraction,
        default=0.0,
        metavar="FRACTION",
        help="compare ways to remove that fraction of single weights, not units",
    )
    parser.add_argument(
        "--methods",
        metavar="LIST",
        help=f"of {', '.join((*METHODS, *SCRATCH))}; with --zeros of {', '.join(WEIGHT_METHODS)}",
    )
    parser.add_argument(
        "--shared-widths",
        action="store_true",
        help="compare at SimMIM's layer widths alone, not at each criterion's own as well",
    )
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Plays, and prints the standings."""
    known = WEIGHT_METHODS if arguments.zeros else (*METHODS, *SCRATCH)
    methods = WEIGHT_METHODS if arguments.zeros else RIVALS
    if arguments.methods is not None:
        methods = tuple(name.strip() for name in arguments.methods.split(","))
    if not set(methods) <= set(known) or "simmim" not in methods:
        raise SimMIMError(
            f"--methods must hold simmim and others of {', '.join(known)}, got {arguments.methods}"
        )
    results = play(
        arguments.model,
        seeds_of(arguments),
        arguments.epochs,
        methods,
        arguments.output,
        zeros=arguments.zeros,
        own_widths=not arguments.shared_widths,
        data_dir=arguments.data_dir,
    )
    suffix = f"-{100 * arguments.zeros:g}%-zeros" if arguments.zeros else ""
    path = arguments.output / f"compression-{arguments.model}{suffix}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    picture = path.parent / f"{path.stem}.png"
    draw(results, picture)
    say(f"Results and picture are {path} and {picture.name}")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        from rich.console import Console

        Console().print(table(results))


def play(
    model: str,
    seeds: Sequence[int],
    epochs: Sequence[int],
    methods: tuple[str, ...],
    folder: Path,
    *,
    zeros: float = 0.0,
    own_widths: bool = True,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """All cells, and what they come to; see ``summary``."""
    store = Store(folder)
    data = load_data(RECIPES[model], data_dir)
    found: list[tuple[Cell, dict[str, Any]]] = []
    rates: dict[tuple[Any, ...], float] = {}
    field = list(contestants(model, methods, zeros=zeros, own_widths=own_widths))
    for seed in seeds:
        contest = Contest(model, seed, folder, data)
        for number, one in enumerate(field):
            say(f"seed {seed}, {number + 1} of {len(field)}: {title(*one)}")
            for length in (0, *epochs):
                if length == 0 and one[0] in SCRATCH:
                    continue
                key = (*one, length)
                tried = (rates[key],) if key in rates else LEARNING_RATES if length else (0.0,)
                cells = [Cell(model, seed, *one, length, lr, zeros) for lr in tried]
                results = [(cell, _result(contest, store, cell)) for cell in cells]
                best = min(results, key=lambda pair: pair[1]["validation"]["kl"])
                rates[key] = best[0].lr
                found.append(best)
    budget = {"sparsity": zeros} if zeros else RECIPES[model].budget
    return summary(model, data.name, budget, found)


def _result(contest: Contest, store: Store, cell: Cell) -> dict[str, Any]:
    kept = store.get(cell.name)
    if kept is None:
        kept = {**asdict(cell), **contest.run(cell)}
        store.put(cell.name, kept)
    return kept


def summary(
    model: str,
    data: str,
    budget: dict[str, float],
    found: Iterable[tuple[Cell, dict[str, Any]]],
) -> dict[str, Any]:
    """Mean and spread over seeds of every contestant, and where SimMIM stands, by column."""
    by_contestant: dict[tuple[Any, ...], list[tuple[Cell, dict[str, Any]]]] = defaultdict(list)
    for cell, result in found:
        by_contestant[cell.method, cell.widths, cell.reconstruct, cell.epochs].append(
            (cell, result)
        )
    rows = []
    for (method, widths, refit, epochs), results in by_contestant.items():
        row = {"method": method, "widths": widths, "reconstruct": refit, "epochs": epochs}
        row |= {"lr": results[0][0].lr, "seeds": len(results)}
        row["params"] = statistics.mean(result["params"] for _, result in results)
        for figure in _FIGURES:
            row[figure] = [round(result["test"][figure], 5) for _, result in results]
        rows.append(row)
    teachers = {cell.seed: result["test"]["teacher_accuracy"] for cell, result in found}
    return {
        "model": model,
        "data": data,
        "budget": budget,
        "seeds": list(teachers),
        "teacher_accuracy": list(teachers.values()),
        "learning_rates": LEARNING_RATES,
        "standings": standings(rows),
        "rows": rows,
        "versions": {"simmim_ext": __version__, "torch": torch.__version__},
    }


def standings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By column and figure: the best rival, and by how much it is behind SimMIM."""
    columns: dict[tuple[bool | None, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        # Trained from where it may: only untrained models are compared with their like.
        columns[row["reconstruct"] if row["epochs"] == 0 else None, row["epochs"]].append(row)
    table = []
    for (refit, epochs), entries in columns.items():
        ours = next(r for r in entries if is_ours(r) or (refit is False and is_ours(r, raw=True)))
        rivals = [row for row in entries if row["method"] != "simmim"]
        for figure in _FIGURES if rivals else ():
            sign = -1 if figure == "kl" else 1
            best = max(rivals, key=lambda row: sign * statistics.mean(row[figure]))
            lead = sign * (statistics.mean(ours[figure]) - statistics.mean(best[figure]))
            noise = 2 * math.hypot(_error(ours[figure]), _error(best[figure]))
            place = 1 + sum(
                sign * statistics.mean(row[figure]) > sign * statistics.mean(ours[figure])
                for row in rivals
            )
            table.append(
                {
                    "column": column_name(refit, epochs),
                    "figure": figure,
                    "place": place,
                    "best_rival": title(best["method"], best["widths"], best["reconstruct"]),
                    "lead": round(lead, 5),
                    "noise": round(noise, 5),
                }
            )
    return table


def is_ours(row: dict[str, Any], *, raw: bool = False) -> bool:
    """Whether the row is SimMIM as it is meant to be used, or without reconstruction."""
    return (row["method"], row["widths"], row["reconstruct"]) == (*OURS[:2], not raw)


def column_name(refit: bool | None, epochs: int) -> str:
    if epochs:
        return f"{epochs} epoch{'s' if epochs > 1 else ''}"
    return "reconstructed" if refit else "raw"


def title(method: str, widths: str, refit: bool) -> str:
    """A contestant in words."""
    if method in SCRATCH:
        return method
    return method + (", own widths" if widths == "own" else "") + ("" if refit else ", no refit")


def _error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
