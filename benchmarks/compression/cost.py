"""``simmim bench cost``: what scoring, selection, trials and a whole compression take.

Seconds are those of the processor, on one thread: a busy machine bends them little. Each answer is
checked before it counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simmim_ext import CompressConfig, Scores, collect, compress, score
from simmim_ext._version import __version__
from simmim_ext.cli import integer, say
from simmim_ext.errors import SimMIMError
from simmim_ext.selection import (
    TARGET_NOISE,
    UNIT_NOISE,
    ConditionalInformation,
    select_units,
)
from simmim_ext.trials import measured

from .networks import mlp

# What a user would give, to which the cost of fewer images is scaled.
_IMAGES = 2048
_BATCH = 16

# More than trials take of a network as deep.
_TRIED = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--images", type=integer(8), default=512, metavar="N", help="to score (default: 512)"
    )
    parser.add_argument("--size", type=integer(32), default=224, metavar="N", help="their side")
    parser.add_argument("--units", type=integer(8), default=4096, metavar="N")
    parser.add_argument("--targets", type=integer(1), default=1024, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("simmim_bench"), metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Measures, and writes cost.json."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "compress 784-500-10": compression(),
        "select": selection(arguments.units, arguments.targets),
        "score EfficientNet-Lite0": scoring(arguments.images, arguments.size),
        "measure EfficientNet-Lite0": measuring(arguments.images, arguments.size),
        "versions": {"simmim_ext": __version__, "torch": torch.__version__},
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "cost.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"Results are in {path}")
    print(json.dumps(results, indent=1))


def compression() -> dict[str, Any]:
    """784-500-10 to 10% of units, without distillation, on 5,000 samples."""
    torch.manual_seed(0)
    model = mlp(784, 10)
    images = torch.randn(5000, 784) @ torch.randn(784, 784) / 28
    begin = time.process_time()
    result = compress(
        model,
        calibration=images.split(500),
        constraints={"units": 0.1},
        config=CompressConfig(epochs=0),
        progress=False,
    )
    seconds = time.process_time() - begin
    check(result.report["layers"][0]["after"] == 50, "50 units must be left")
    check(result.report["fidelity"]["kl"] < 0.1, "the answers must be the original's, nearly")
    return {"cpu_seconds": round(seconds, 2), "bar": 5}


def selection(units: int, targets: int) -> dict[str, Any]:
    """All units of one layer ordered, with moments of three times as many samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * units, units, generator=generator)
    z = x @ torch.randn(units, targets, generator=generator) / units**0.5
    z = z + 0.1 * torch.randn(z.shape, generator=generator)
    xx, xz, zz = ((a.T @ b / len(x)).double() for a, b in ((x, x), (x, z), (z, z)))
    begin = time.process_time()
    found = select_units([ConditionalInformation(xx, xz, zz)], units)
    seconds = time.process_time() - begin
    zz = zz + TARGET_NOISE * zz.diagonal().mean() * torch.eye(targets, dtype=torch.float64)
    explained = (xz * torch.linalg.solve(zz, xz.T).T).sum(1)
    own = xx.diagonal() + UNIT_NOISE * xx.diagonal().mean()
    first = -0.5 * (1 - explained / own).log()
    check(int(first.argmax()) == found.order[0], "the first unit must say the most by itself")
    check(abs(float(first.max()) - found.gains[0]) < 1e-6, "and as much as it says")
    check(sorted(found.order) == list(range(units)), "every unit must be there once")
    return {"units": units, "targets": targets, "cpu_seconds": round(seconds, 2), "bar": 20}


def scoring(images: int, size: int) -> dict[str, Any]:
    """Scores against forward passes over the same images; memory on top of the model's.

    What selection takes does not depend on the images: it is told apart by scoring half of them
    too, and put in relation to as many images as a user would give. Nor does what the gradients of
    the Fisher information take, which are those of a batch or more: as few as would be of these
    images there cannot be, so they are told apart by scoring once with all of them.
    """
    model = efficientnet()
    batches = torch.randn(images, 3, size, size).split(_BATCH)

    def scored(part: Sequence[torch.Tensor]) -> float:
        begin = time.process_time()
        scores = scores_of(model, part)
        seconds = time.process_time() - begin
        check(all(torch.isfinite(v).all() for v in scores.values()), "scores must be finite")
        units = sum(len(order) for order in scores.order.values())
        check(units == sum(group.units for group in scores.groups), "every unit must have a place")
        return seconds

    passes(model, batches)  # the first sets up more than it computes
    once = passes(model, batches)
    before, fisher = peak(), collect.FISHER_SAMPLES
    whole = scored(batches)
    memory = peak() - before
    try:
        collect.FISHER_SAMPLES = 0
        ungraded = scored(batches)
        half = scored(batches[: len(batches) // 2])
    finally:
        collect.FISHER_SAMPLES = fisher
    once = (once + passes(model, batches)) / 2
    each = (ungraded - half) / (1 - len(batches) // 2 / len(batches))
    scale = images / _IMAGES
    parts = {
        "passes_and_moments": each / once,
        # Of fewer images too few take gradients; as many times what these take is more than enough.
        "gradients": (whole - ungraded) / once * scale * max(1.0, fisher / images),
        "selection": (ungraded - each) / once * scale,
    }
    return {
        "images": images,
        "size": size,
        "batch": _BATCH,
        "cpu_seconds": round(whole, 2),
        "of_these_selection": round(ungraded - each, 2),
        "forward_cpu_seconds": round(once, 2),
        f"times_the_forward_passes_of_{_IMAGES}": round(sum(parts.values()), 2),
        "of_these": {name: round(value, 3) for name, value in parts.items()},
        "bar": 1.3,
        "more_memory_mib": round(memory / 2**20),
        "memory_bar_mib": 2048,
    }


def measuring(images: int, size: int) -> dict[str, Any]:
    """Divergences measured at every layer of a network, against forward passes.

    Of however many images trials take the same few: it is put in relation to as many as a user
    would give.
    """
    model = efficientnet()
    batches = torch.randn(min(images, _TRIED), 3, size, size).split(_BATCH)
    scores = scores_of(model, batches)
    once = passes(model, batches)
    begin = time.process_time()
    found = measured(scores, model, batches)
    seconds = time.process_time() - begin
    once = (once + passes(model, batches)) / 2
    check(found is not scores, "layers must be tried")
    for nats in found.divergence.values():
        check(bool(torch.isfinite(nats).all()), "divergences must be finite")
        check(bool((nats.diff() <= 0).all()), "with more units there must be no more of it")
        check(float(nats[0]) > 0, "without units there must be some")
    samples = sum(map(len, batches)) * seconds / once
    return {
        "layers": len(found.divergence),
        "size": size,
        "batch": _BATCH,
        "cpu_seconds": round(seconds, 2),
        "in_passes_of_a_sample": round(samples),
        f"times_the_forward_passes_of_{_IMAGES}": round(samples / _IMAGES, 2),
        "bar": 1,
    }


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its published weights, as the tests build it."""
    root = str(Path(__file__).resolve().parents[2] / "tests")
    if root not in sys.path:
        sys.path.append(root)
    from efficientnet import pretrained

    return pretrained().eval()


def passes(model: nn.Module, batches: Sequence[torch.Tensor]) -> float:
    """CPU seconds of a forward pass over the batches."""
    begin = time.process_time()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return time.process_time() - begin


def scores_of(model: nn.Module, batches: Sequence[torch.Tensor]) -> Scores:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples
        return score(model, batches)


def peak() -> int:
    """Bytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(holds: bool, words: str) -> None:
    if not holds:
        raise SimMIMError(f"bench cost: {words}; the time of a wrong answer is none")
