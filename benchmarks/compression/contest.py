"""One contestant at one budget and one length of training: the cells of the comparison."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_ext.cli import integer
from simmim_ext.config import CompressConfig
from simmim_ext.criteria import CRITERIA
from simmim_ext.data import Shuffled
from simmim_ext.distillation import distill
from simmim_ext.errors import SimMIMError
from simmim_ext.fidelity import compare
from simmim_ext.folders import check_writable
from simmim_ext.measure import count_params
from simmim_ext.modes import seeded
from simmim_ext.plan import make_plan
from simmim_ext.pruning import prune_units
from simmim_ext.reconstruction import reconstruct
from simmim_ext.removal import History
from simmim_ext.scoring import Scores, score
from simmim_ext.storage import masked_layers
from simmim_ext.trials import measured
from simmim_ext.widths import Count

from .networks import RECIPES, Data, load_data, teacher, train
from .weights import zeroed

# Networks of SimMIM's widths that start from nothing, trained as long as the others.
SCRATCH = ("scratch on labels", "scratch distilled")
METHODS = tuple(CRITERIA)
WIDTHS = ("shared", "own")
LEARNING_RATES = (1e-3, 3e-3)
CALIBRATION, BATCH = 5000, 128


@dataclass(frozen=True)
class Cell:
    """What one result is of.

    Attributes:
        model: a name of ``RECIPES``.
        seed: of the teacher, the calibration images and the order of training.
        method: a criterion, or one of SCRATCH.
        widths: "shared" for the layer widths that SimMIM sets, "own" for those that the method's
            own scores give over all layers.
        reconstruct: whether layers behind removed units are refitted.
        epochs: of distillation.
        lr: its initial learning rate; 0 where nothing is trained.
        zeros: fraction of single weights removed instead of the recipe's budget of units, or 0.
    """

    model: str
    seed: int
    method: str
    widths: str
    reconstruct: bool
    epochs: int
    lr: float
    zeros: float = 0.0

    @property
    def name(self) -> str:
        """The file's name."""
        refit = "refit" if self.reconstruct else "raw"
        method = self.method.replace(" ", "-")
        name = f"{self.model}-{self.seed}-{method}-{self.widths}-{refit}-{self.epochs}-{self.lr:g}"
        return f"{name}-zeros-{self.zeros:g}" if self.zeros else name


class Store:
    """Results in a folder, a file each: what is there is not computed again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cells"
        check_writable(self._folder)

    def get(self, name: str) -> dict[str, Any] | None:
        """The result of that name, if it is there."""
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def put(self, name: str, result: dict[str, Any]) -> None:
        """Keeps a result: all of it or, killed, nothing."""
        path = self._folder / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every experiment takes: how often to run it, on what, and where results go."""
    parser.add_argument("--seeds", type=integer(1), default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--first-seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="that they begin with: what was tried out on some is judged on others (default: 0)",
    )
    parser.add_argument("--data-dir", type=Path, metavar="D", help="folder of the idx files")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("simmim_bench"),
        metavar="DIR",
        help="where results are kept; what is there is not run again (default: simmim_bench)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def seeds_of(arguments: argparse.Namespace) -> range:
    """The seeds that the arguments ask for."""
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def cases_of(arguments: argparse.Namespace, known: Collection[str]) -> list[str]:
    """The cases that the arguments name.

    Raises:
        SimMIMError: one of them is unknown.
    """
    names = [name.strip() for name in arguments.cases.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SimMIMError(f"--cases must be of {', '.join(known)}, got {unknown[0]}")
    return names


class Contest:
    """All that the cells of one model and seed share, made when it is needed."""

    def __init__(self, model: str, seed: int, folder: Path, data: Data | None = None) -> None:
        self._recipe = RECIPES[model]
        self._data = data or load_data(self._recipe)
        self._model, self._seed, self._folder = model, seed, folder
        self._scores: dict[str, Scores] = {}
        self._prepared: dict[tuple[object, ...], tuple[nn.Module, list[int]]] = {}

    @cached_property
    def teacher(self) -> nn.Module:
        """The network that is compressed."""
        return teacher(self._model, self._data, self._seed, self._folder / "teachers")

    @cached_property
    def calibration(self) -> list[tuple[Tensor, ...]]:
        """Batches with labels, which only the criteria that need them look at."""
        x, y = self._data.train
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(self._seed))
        chosen = chosen[:CALIBRATION]
        return list(zip(x[chosen].split(500), y[chosen].split(500), strict=True))

    @cached_property
    def logits(self) -> Tensor:
        """The teacher's on all training images: it is asked once for the whole contest."""
        return self._answers(self._data.train[0])

    @cached_property
    def judged(self) -> dict[str, list[tuple[Tensor, ...]]]:
        """Batches of images, labels and the teacher's logits, by split."""
        splits = {"validation": self._data.validation, "test": self._data.test}
        return {
            name: list(zip(*(t.split(1000) for t in (x, y, self._answers(x))), strict=True))
            for name, (x, y) in splits.items()
        }

    def run(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell, on the validation and on the test images."""
        with seeded(self._seed):
            student, layers = self._student(cell)
        with seeded(self._seed):
            if cell.epochs:
                student = self._trained(student, cell)
        figures = {name: self._figures(student, data) for name, data in self.judged.items()}
        return {"layers": layers, "params": count_params(student), **figures}

    def _answers(self, images: Tensor) -> Tensor:
        model = self.teacher  # which may have to be trained first
        with torch.no_grad():
            return torch.cat([model(x) for x in images.split(100)])

    def _student(self, cell: Cell) -> tuple[nn.Module, list[int]]:
        """What training begins with, made once for all its lengths and learning rates."""
        key = (cell.zeros, cell.method, cell.widths, cell.reconstruct, cell.epochs == 0)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(cell)
        return self._prepared[key]

    def _prepare(self, cell: Cell) -> tuple[nn.Module, list[int]]:
        if cell.zeros:
            student = zeroed(
                self.teacher,
                [x for x, _ in self.calibration],
                cell.zeros,
                method=cell.method,
                widths=cell.widths,
                refit=cell.reconstruct,
                refit_outputs=cell.epochs == 0,
                samples=CALIBRATION,
                seed=self._seed,
            )
            return student, [int(layer.mask.sum()) for _, layer in masked_layers(student)]
        if cell.method in SCRATCH:
            student, history = self._pruned("simmim", "shared")
            for module in student.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        else:
            student, history = self._pruned(cell.method, cell.widths)
            if cell.reconstruct:
                student = reconstruct(
                    student,
                    self.teacher,
                    [x for x, _ in self.calibration],
                    history,
                    samples=CALIBRATION,
                    seed=self._seed,
                    refit_outputs=cell.epochs == 0,
                )
        return student, [len(step["kept"]) for step in history if step["axis"] == "out"]

    def _pruned(self, method: str, widths: str) -> tuple[nn.Module, History]:
        constraints = self._recipe.budget if widths == "own" else {"per_layer": self._widths}
        allocation = "score" if widths == "own" else "information"
        scores = self._scored(method)
        return prune_units(self.teacher, scores, constraints, allocation=allocation)[1:]

    @cached_property
    def _widths(self) -> dict[str, int]:
        """The layer widths that SimMIM sets, by layer."""
        images = [x for x, _ in self.calibration]
        scores = measured(self._scored("simmim"), self.teacher, images, seed=self._seed)
        plan = make_plan(self.teacher, scores, self._recipe.budget, scores.example)
        return {name: Count(len(units)) for name, units in plan.kept.items()}

    def _scored(self, method: str) -> Scores:
        if method not in self._scores:
            self._scores[method] = score(
                self.teacher,
                self.calibration,
                criterion=method,
                config=CompressConfig(seed=self._seed),
            )
        return self._scores[method]

    def _trained(self, student: nn.Module, cell: Cell) -> nn.Module:
        x, y = self._data.train
        if cell.method == "scratch on labels":
            student = copy.deepcopy(student)
            return train(
                student,
                x,
                y,
                epochs=cell.epochs,
                lr=cell.lr,
                size=BATCH,
                adam=True,
                words=cell.name,
            )
        config = CompressConfig(epochs=cell.epochs, lr=cell.lr, seed=self._seed)
        data = Shuffled([(x, self.logits)], BATCH)
        # Said, not guessed: the logits stand where labels would, and real ones would mean values.
        options = {"config": config, "output": "classes", "forward_fn": self._forward}
        return distill(student, self.teacher, data, progress=False, **options)[0]

    def _figures(self, student: nn.Module, data: list[tuple[Tensor, ...]]) -> dict[str, Any]:
        found = compare(self.teacher, student.eval(), data, forward_fn=self._forward)
        return {
            "accuracy": found.student["accuracy"],
            "teacher_accuracy": found.teacher["accuracy"],
            "kl": found.fidelity["kl"],
            "agreement": found.fidelity["agreement"],
        }

    def _forward(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The outputs, which of the teacher the batches carry, last of all."""
        return batch[-1] if model is self.teacher else model(batch[0])


def contestants(
    model: str,
    methods: tuple[str, ...],
    *,
    zeros: float = 0.0,
    own_widths: bool = True,
) -> Iterator[tuple[str, str, bool]]:
    """(method, widths, reconstruct) of everything that is compared, baselines twice over."""
    if zeros:
        for method in methods:
            # SimMIM's counts are those of magnitude, and LAMP within them is magnitude again.
            for widths in WIDTHS if method == "wanda" and own_widths else WIDTHS[:1]:
                yield from ((method, widths, refit) for refit in (True, False))
        return
    layers = 1 if model == "mlp" or not own_widths else 2
    for method in methods:
        if method in SCRATCH:
            yield method, "shared", False
            continue
        for widths in WIDTHS[:layers]:
            for refit in (True, False):
                yield method, widths, refit
