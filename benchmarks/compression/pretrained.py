"""``simmim bench pretrained``: networks with their published weights, made smaller untrained.

A sentence encoder on English sentences and a classifier of photographs on crops of two. Units are
picked by each criterion, with the layer widths that SimMIM sets and with those of the criterion's
own scores over all layers, and the layers behind are refitted for all alike; what is left is
compared with the original on data that nothing was fitted to. Nothing is trained: so little data
would show how it is learnt by heart. Each result is kept in the output folder as it ends, and a run
goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simmim_ext import CompressConfig, compress
from simmim_ext._version import __version__
from simmim_ext.cli import say
from simmim_ext.data import Batch
from simmim_ext.widths import Count

from .contest import Store, add_run_arguments, cases_of, seeds_of

RIVALS = ("magnitude_l2", "fpgm", "activation", "random")


@dataclass(frozen=True)
class Case:
    """A network, its data, and what must be left of it.

    Attributes:
        load: seed -> the network, batches to calibrate on and batches to compare on.
        budget: constraints of ``compress``.
        figures: of the report's fidelity.
    """

    load: Callable[[int], tuple[nn.Module, list[Batch], list[Batch]]]
    budget: dict[str, float]
    figures: tuple[str, ...]


def _encoder(seed: int) -> tuple[nn.Module, list[Batch], list[Batch]]:
    from real_models import encoded, minilm, sentences

    model, tokenizer = minilm()
    texts = sentences()
    kept, rest = texts[:500], texts[500:]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    chosen = [rest[i] for i in order[:500]]
    return model, encoded(tokenizer, chosen), encoded(tokenizer, kept)


def _classifier(seed: int) -> tuple[nn.Module, list[Batch], list[Batch]]:
    from efficientnet import pretrained
    from real_models import photographs

    # Seed 0 is that of the crops to compare on.
    return pretrained(), list(photographs(512, 128, seed + 1)), list(photographs(512, 128, 0))


CASES = {
    "all-MiniLM-L6-v2": Case(_encoder, {"flops": 0.6}, ("cosine", "rank_correlation")),
    "EfficientNet-Lite0": Case(_classifier, {"params": 0.7}, ("agreement", "kl")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--cases", default=",".join(CASES), metavar="LIST", help="default: both")
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Compresses, and prints what is left."""
    names = cases_of(arguments, CASES)
    root = str(Path(__file__).resolve().parents[2] / "tests")  # which holds the networks
    if root not in sys.path:
        sys.path.append(root)
    seeds = list(seeds_of(arguments))
    results: dict[str, Any] = {
        "seeds": seeds,
        "cases": {name: rows(name, seeds, Store(arguments.output)) for name in names},
        "versions": {"simmim_ext": __version__, "torch": torch.__version__},
    }
    path = arguments.output / "pretrained.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"Results are in {path}")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        from rich.console import Console

        for name, entry in results["cases"].items():
            Console().print(table(name, entry))


def rows(name: str, seeds: list[int], store: Store) -> dict[str, Any]:
    """Budget, and the figures of every contestant by seed."""
    case = CASES[name]
    field = [("simmim", "own"), *((rival, w) for rival in RIVALS for w in ("shared", "own"))]
    found = []
    for method, widths in field:
        results = []
        for seed in seeds:
            say(f"{name}, seed {seed}: {method}, {widths} widths")
            key = f"pretrained-{name}-{seed}-{method}-{widths}"
            kept = store.get(key)
            if kept is None:
                shared = store.get(f"pretrained-{name}-{seed}-simmim-own")
                kept = figures(case, seed, method, None if widths == "own" else shared)
                store.put(key, kept)
            results.append(kept)
        row: dict[str, Any] = {"method": method, "widths": widths}
        row |= {name: [r[name] for r in results] for name in (*case.figures, "left")}
        found.append(row)
    return {"budget": case.budget, "rows": found}


def figures(case: Case, seed: int, method: str, shared: dict[str, Any] | None) -> dict[str, Any]:
    """Fidelity, layer widths and what is left of the budget's cost."""
    model, calibration, evaluate = case.load(seed)
    constraints: dict[str, Any] = case.budget
    if shared is not None:
        constraints = {"per_layer": {name: Count(n) for name, n in shared["widths"].items()}}
    result = compress(
        model,
        calibration=calibration,
        evaluate=evaluate,
        constraints=constraints,
        config=CompressConfig(
            epochs=0,
            criterion=method,
            allocation="information" if method == "simmim" else "score",
            seed=seed,
        ),
    )
    report = result.report
    (cost,) = case.budget
    return {
        **{figure: round(report["fidelity"][figure], 5) for figure in case.figures},
        "left": round(report["student"][cost] / report["teacher"][cost], 4),
        "widths": {layer["name"]: layer["after"] for layer in report["layers"]},
        "seconds": {row["name"]: round(row["seconds"], 2) for row in report["stages"]},
    }


def table(name: str, entry: dict[str, Any]) -> Any:
    """The contestants, a rich table: means over seeds."""
    from rich.table import Table

    names = CASES[name].figures
    found = Table("criterion", title=f"{name}, {entry['budget']}", title_justify="left")
    for figure in (*names, "left"):
        found.add_column(figure.replace("_", " "), justify="right")
    for row in entry["rows"]:
        own = ", own widths" if row["widths"] == "own" and row["method"] != "simmim" else ""
        means = (statistics.mean(row[figure]) for figure in (*names, "left"))
        found.add_row(row["method"] + own, *(f"{mean:.4f}" for mean in means))
    return found
