"""The operators on a GPU, at the sizes of their bars; every answer is asserted before it is timed.

    python benchmarks/gpu/workloads.py FIGURES.json

writes what it has after each figure, and ends at the first workload that fails: after a CUDA error
no other would run in this process. Called again, it goes on with the workload after that one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from device import Figure, measured  # noqa: E402
from information import (  # noqa: E402
    conditionals,
    entropies,
    labels,
    pairs,
    predictions,
    quantiles,
    soft_labels,
)
from linears import masked_linears, small_linears, sparse_linears  # noqa: E402
from structured import structured_linears  # noqa: E402

# The bars that matter most first, and what is cheap before what is not.
WORKLOADS: dict[str, Callable[[dict[str, float]], Iterator[Figure]]] = {
    "entropy": entropies,
    "pairwise MI, 16 bins": partial(pairs, bins=16),
    "sparse linear, 80% zeros": partial(sparse_linears, dtype=torch.bfloat16, density=0.2),
    "sparse linear, 90% zeros": partial(sparse_linears, dtype=torch.bfloat16, density=0.1),
    "masked linear": masked_linears,
    "soft-label MI": soft_labels,
    "label MI": labels,
    "quantile codes": quantiles,
    "sparse linear, 50% zeros": partial(sparse_linears, dtype=torch.bfloat16, density=0.5),
    "sparse linear, 98% zeros": partial(sparse_linears, dtype=torch.bfloat16, density=0.02),
    "sparse linear, float32": partial(sparse_linears, dtype=torch.float32, density=0.2),
    "pairwise MI, 8 bins": partial(pairs, bins=8),
    "pairwise MI, 32 bins": partial(pairs, bins=32),
    "pairwise MI, 64 bins": partial(pairs, bins=64),
    "SparseLinear, memory='small'": small_linears,
    "2:4 and blocks": structured_linears,
    "predictive information": predictions,
    "conditional MI": conditionals,
}


def no_figure(why: str) -> dict[str, Any]:
    return {"ms": None, "rate": why, "times_as_fast": {}}


def main(path: Path) -> None:
    """A workload that failed or did not end has a figure that says so."""
    if path.exists():
        results = json.loads(path.read_text())
    else:
        results = {"measured": measured(), "figures": {}, "left": list(WORKLOADS)}
    figures = results["figures"]

    def save() -> None:
        part = path.with_suffix(".part")  # a kill while it is written loses this much only
        part.write_text(json.dumps(results, indent=1) + "\n")
        part.replace(path)

    while results["left"]:
        name = results["left"].pop(0)
        figures[name] = no_figure("did not end")
        save()
        print(name, flush=True)
        try:
            for title, figure in WORKLOADS[name](results["measured"]):
                figures[title] = figure
                save()
                print(title, figure, flush=True)
        except Exception as error:
            why = " ".join(f"failed: {type(error).__name__}: {error}".split())
            figures[name] = no_figure(why[:200])
            save()
            raise
        del figures[name]
        save()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
