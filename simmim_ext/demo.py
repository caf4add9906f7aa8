"""``simmim demo``: the main job on real images, from a trained network to a small one on disk."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .cli import check_empty, fraction, integer, make_folder, say
from .compression import compress
from .config import CompressConfig
from .data import Shuffled
from .errors import SimMIMError
from .images import Images, find_images
from .modes import seeded
from .progress import bar
from .report import draw, figure_class, show
from .result import CompressionResult, load

_HIDDEN = 500
_LATENCY_BATCH = 256
_CALIBRATION = 5000

# Epochs and batch of the teacher, and of the distillation, by data set.
_RECIPES = {"Fashion-MNIST": (15, 64, 10, 128), "digits": (30, 32, 40, 32)}
_TEACHER_LR = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--data-dir", type=Path, metavar="D", help="folder of the idx files")
    parser.add_argument(
        "--download", action="store_true", help="fetch Fashion-MNIST with torchvision"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="new or empty folder (default: simmim_demo)"
    )
    parser.add_argument("--units", type=fraction, default=0.1, help="fraction kept (default: 0.1)")
    parser.add_argument("--epochs", type=integer(0), metavar="N", help="epochs of distillation")
    parser.add_argument("--seed", type=integer(0), default=0, metavar="S", help="default: 0")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Trains, compresses, saves, and shows both models side by side."""
    # What can be missing is found out before minutes of training rather than after.
    figure_class()
    folder = _folder(arguments.output)
    images = find_images(arguments.data_dir, download=arguments.download)
    make_folder(folder)
    say(f"Data: {images.name} from {images.source}, {len(images.train):,} images to train on")
    with _repeatable(), seeded(arguments.seed):
        begin = time.perf_counter()
        teacher = train_teacher(images, seed=arguments.seed)
        seconds = time.perf_counter() - begin
        say(f"Teacher: {images.train.shape[1]}-{_HIDDEN}-{images.classes} in {seconds:.1f} s")
        result = compress_teacher(
            teacher, images, units=arguments.units, epochs=arguments.epochs, seed=arguments.seed
        )
    stages = [{"name": "teacher", "seconds": seconds}, *result.report["stages"]]
    data = {"name": images.name, "source": images.source}
    report = {**result.report, "stages": stages, "dataset": data}
    CompressionResult(result.model, report, result.history, result.original).save(folder)
    _check_saved(folder, result.model, images)
    draw(report, folder / "information.png")
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    total = sum(stage["seconds"] for stage in stages)
    words = ", ".join(f"{stage['name']} {stage['seconds']:.1f}" for stage in stages)
    say(f"Seconds: {words}; in all {total:.1f}")
    say(f"Model, report.json and information.png are in {folder}")


def build_model(images: Images) -> nn.Sequential:
    """The teacher's architecture, [pixels]-500-[classes]."""
    return nn.Sequential(
        nn.Linear(images.train.shape[1], _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, images.classes),
    )


def train_teacher(images: Images, *, seed: int = 0, progress: bool = True) -> nn.Sequential:
    """Trains the teacher on labels by SGD with momentum and a cosine schedule."""
    epochs, size, _, _ = _RECIPES[images.name]
    with seeded(seed):
        model = build_model(images)
        data = Shuffled([(images.train, images.train_labels)], size)
        optimizer = torch.optim.SGD(model.parameters(), lr=_TEACHER_LR, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(data))
        with bar("teacher", epochs * len(data), enabled=progress) as advance:
            for _ in range(epochs):
                for x, y in data:
                    loss = functional.cross_entropy(model(x), y)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    advance(1)
    return model.eval()


def compress_teacher(
    teacher: nn.Module,
    images: Images,
    *,
    units: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
) -> CompressionResult:
    """Compresses the teacher on unlabelled images; the labels of the test images show accuracy."""
    _, _, default, size = _RECIPES[images.name]
    chosen = torch.randperm(len(images.train))[:_CALIBRATION]
    return compress(
        teacher,
        calibration=_batches(images.train[chosen]),
        train=Shuffled([images.train], size),
        evaluate=_batches(images.test, images.test_labels),
        example_inputs=images.train[:_LATENCY_BATCH],
        constraints={"units": units},
        config=CompressConfig(epochs=default if epochs is None else epochs, seed=seed),
    )


def _batches(*tensors: Tensor, size: int = 1000) -> list[Any]:
    pieces = [torch.split(tensor, size) for tensor in tensors]
    return list(zip(*pieces, strict=True)) if len(pieces) > 1 else list(pieces[0])


def _folder(output: Path | None) -> Path:
    """The folder asked for, or the first of simmim_demo, simmim_demo-2, ... that is not there."""
    if output is not None:
        check_empty(output)
        return output
    folder, number = Path("simmim_demo"), 1
    while folder.exists():
        number += 1
        folder = Path(f"simmim_demo-{number}")
    return folder


def _check_saved(folder: Path, model: nn.Module, images: Images) -> None:
    """Loads what was saved and compares its predictions: a demo should prove what it says."""
    with torch.no_grad():
        loaded = load(folder, build_model(images).eval())
        if not torch.equal(loaded(images.test), model(images.test)):
            raise SimMIMError(
                f"the model loaded from {folder} predicts otherwise than the one saved"
            )


@contextmanager
def _repeatable() -> Iterator[None]:
    """Deterministic algorithms on one thread for the block, so that a seed makes runs identical.

    Sums depend on the number of threads. More of them would gain little on matrices of this size,
    and lose sixtyfold where another process holds a core: every operator waits for the last.
    """
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
