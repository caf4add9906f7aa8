"""``simmim bench bars``: the default recipe against the figures that it must reach.

Teachers are trained on all labels; compression sees 5,000 of 50,000 unlabelled images to
calibrate on and all of them to distil on, and is judged on the test images. Each case and seed is
kept in the output folder as it ends, and a run goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from simmim_ext import CompressConfig, compress
from simmim_ext._version import __version__
from simmim_ext.cli import say
from simmim_ext.data import Shuffled

from .contest import BATCH, CALIBRATION, Store, add_run_arguments, cases_of, seeds_of
from .networks import RECIPES, Data, load_data, teacher


@dataclass(frozen=True)
class Case:
    """A network, a budget, and what must come out: means over seeds.

    Attributes:
        model: a name of ``RECIPES``.
        constraints: the budget.
        epochs: of distillation.
        accuracy: the least accuracy on the test images.
        kl: the largest KL from the teacher, nats.
        agreement: the least agreement with the teacher.
        options: more arguments of ``compress``.
        config: more settings of ``CompressConfig``.
    """

    model: str
    constraints: dict[str, float]
    epochs: int
    accuracy: float
    kl: float
    agreement: float
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


_WEIGHTS = {"granularity": "weight"}
_IN_STEPS = {"schedule": "cubic", "steps": 3}
CASES = {
    "mlp-25%": Case("mlp", {"units": 0.25}, 10, 0.890, 0.015, 0.970),
    "mlp-10%": Case("mlp", {"units": 0.10}, 10, 0.881, 0.048, 0.945),
    "mlp-5%": Case("mlp", {"units": 0.05}, 10, 0.866, 0.100, 0.920),
    "mlp-10%-untrained": Case("mlp", {"units": 0.10}, 0, 0.860, 0.120, 0.910),
    "lenet-10%": Case("lenet", {"params": 0.10}, 10, 0.879, 0.070, 0.940),
    "lenet-95%-zeros": Case("lenet", {"sparsity": 0.95}, 10, 0.887, 0.040, 0.957, _WEIGHTS),
    "lenet-98%-zeros": Case("lenet", {"sparsity": 0.98}, 10, 0.874, 0.105, 0.928, _WEIGHTS),
    "lenet-98%-zeros-in-3-steps": Case(
        "lenet", {"sparsity": 0.98}, 10, 0.874, 0.105, 0.928, _WEIGHTS, _IN_STEPS
    ),
    "cnn-6.4%": Case("cnn", {"params": 0.064}, 2, 0.889, 0.060, 0.942),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--cases",
        default=",".join(CASES),
        metavar="LIST",
        help=f"of {', '.join(CASES).replace('%', '%%')}",
    )
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the cases and prints what they came to."""
    names = cases_of(arguments, CASES)
    store = Store(arguments.output)
    results: dict[str, Any] = {"seeds": list(seeds_of(arguments)), "cases": {}}
    for name in names:
        data = load_data(RECIPES[CASES[name].model], arguments.data_dir)
        found = []
        for seed in seeds_of(arguments):
            say(f"{name}, seed {seed}")
            key = f"bar-{name}-{seed}"
            kept = store.get(key)
            if kept is None:
                kept = figures(CASES[name], data, seed, arguments.output)
                store.put(key, kept)
            found.append(kept)
        results["cases"][name] = judged(CASES[name], found)
        results["data"] = data.name
    results["versions"] = {"simmim_ext": __version__, "torch": torch.__version__}
    path = arguments.output / "bars.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"Results are in {path}")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        from rich.console import Console

        Console().print(table(results))


def figures(case: Case, data: Data, seed: int, folder: Path) -> dict[str, Any]:
    """The report's figures of one case and seed."""
    images = data.train[0]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:CALIBRATION]
    result = compress(
        teacher(case.model, data, seed, folder / "teachers"),
        calibration=images[chosen].split(500),
        train=Shuffled([images], BATCH),
        evaluate=list(zip(*(part.split(1000) for part in data.test), strict=True)),
        example_inputs=images[:BATCH],
        constraints=case.constraints,
        config=CompressConfig(epochs=case.epochs, seed=seed, **case.config),
        **case.options,
    )
    report = result.report
    return {
        "teacher_accuracy": report["teacher"]["accuracy"],
        "accuracy": report["student"]["accuracy"],
        "kl": report["fidelity"]["kl"],
        "agreement": report["fidelity"]["agreement"],
        "params": report["student"]["params"],
        "params_kept": report["student"]["params"] / report["teacher"]["params"],
        "layers": [layer["after"] for layer in report["layers"]],
        "seconds": {row["name"]: round(row["seconds"], 2) for row in report["stages"]},
    }


def judged(case: Case, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds beside the bars, and whether each is reached."""
    entry: dict[str, Any] = {
        "model": case.model,
        "constraints": case.constraints,
        "epochs": case.epochs,
        "seeds": len(found),
        "layers": [one["layers"] for one in found],
        "params_kept": found[0]["params_kept"],
        "teacher_accuracy": [one["teacher_accuracy"] for one in found],
    }
    for name in ("accuracy", "kl", "agreement"):
        values = [round(one[name], 5) for one in found]
        bar, mean = getattr(case, name), statistics.mean(values)
        reached = mean <= bar if name == "kl" else mean >= bar
        entry[name] = {"values": values, "mean": round(mean, 5), "bar": bar, "reached": reached}
    return entry


def table(results: dict[str, Any]) -> Any:
    """The cases, a rich table; what misses its bar is marked."""
    from rich.table import Table

    found = Table("case", title=f"The default recipe on {results['data']}", title_justify="left")
    for heading in ("teacher", "accuracy", "bar", "KL", "bar", "agreement", "bar"):
        found.add_column(heading, justify="right")
    for name, entry in results["cases"].items():
        words = [f"{100 * statistics.mean(entry['teacher_accuracy']):.2f}"]
        for figure, scale, form in (
            ("accuracy", 100, ".2f"),
            ("kl", 1, ".4f"),
            ("agreement", 100, ".2f"),
        ):
            one = entry[figure]
            mark = "" if one["reached"] else " (missed)"
            words += [format(scale * one["mean"], form) + mark, format(scale * one["bar"], "g")]
        found.add_row(name, *words)
    return found
