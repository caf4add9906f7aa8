"""What a network's units know, layer by layer, before anything is removed."""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import (
    as_path,
    check_dense,
    check_device,
    check_example,
    check_model,
    check_options,
    watched,
)
from .collect import collect
from .config import CompressConfig
from .conversion import prepared
from .criteria import layer_range, unit_information
from .data import Batch, batches, gather, take
from .errors import SimMIMError, in_own_name
from .forward import ForwardFn
from .graph import trace_units
from .information import entropy, mutual_information
from .inputs import inputs_kept
from .modes import device_of, seeded
from .names import names_of
from .outputs import noise_variance, resolve_output
from .report import figure_class
from .shown import counted, listed

# Share of the larger entropy that two units must have in common to count as one said twice.
_DUPLICATE = 0.99


@dataclass(frozen=True, eq=False)
class LayerDiagnostics:
    """One layer's units; all in nats, from histograms with a range shared by the layer.

    Attributes:
        entropy: [units] float32 H(T).
        relevance: [units] float32 I(T; Yhat), information about the model's own prediction.
        redundancy: [units, units] float32 I(Ti; Tj) / max(H(Ti), H(Tj)), 0 to 1.
        dead: units that never vary.
        duplicates: pairs (i, j), i < j, of which either tells the other.
    """

    entropy: Tensor
    relevance: Tensor
    redundancy: Tensor
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        return (
            f"{counted(len(self.entropy), 'unit')}, {len(self.dead):,} dead, "
            f"{counted(len(self.duplicates), 'duplicate pair')}; means of entropy "
            f"{float(self.entropy.mean()):.3g} and relevance {float(self.relevance.mean()):.3g} "
            "nats"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON as it stands; of the redundancy matrix each unit's closest other unit."""
        others = self.redundancy.clone().fill_diagonal_(-1)
        shared, closest = others.max(dim=1)
        alone = len(others) == 1
        return {
            "units": len(self.entropy),
            "entropy": self.entropy.tolist(),
            "relevance": self.relevance.tolist(),
            "closest": [None] if alone else closest.tolist(),
            "closest_redundancy": [0.0] if alone else shared.tolist(),
            "dead": list(self.dead),
            "duplicates": [list(pair) for pair in self.duplicates],
        }


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """A network's units by layer.

    Attributes:
        layers: layer name -> its diagnostics, from input to output.
        samples: number of samples that they were taken on.
        output: "classes", "values" or "embeddings".
    """

    layers: dict[str, LayerDiagnostics]
    samples: int
    output: str

    def __repr__(self) -> str:
        lines = [f"{name!r}: {layer}" for name, layer in self.layers.items()]
        return listed(f"Diagnostics of {counted(self.samples, 'sample')}", lines)

    def to_dict(self) -> dict[str, Any]:
        """A dict that is JSON as it stands."""
        layers = {name: layer.to_dict() for name, layer in self.layers.items()}
        return {"samples": self.samples, "output": self.output, "layers": layers}

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draws entropy against relevance, and the redundancy matrix, of every layer.

        Args:
            path: where to save the picture, in the format of its ending; None: nowhere.

        Returns:
            The matplotlib.figure.Figure, which a notebook shows.

        Raises:
            SimMIMError: matplotlib is missing.
            TypeError: ``path`` is no path.
        """
        if path is not None:
            path = as_path("plot", path, "path")
        figure = figure_class()(figsize=(8, 3.6 * len(self.layers)), layout="constrained")
        rows = figure.subplots(len(self.layers), 2, squeeze=False)
        for (left, right), (name, layer) in zip(rows, self.layers.items(), strict=True):
            left.scatter(
                layer.entropy.cpu().numpy(), layer.relevance.cpu().numpy(), s=12, alpha=0.6
            )
            left.set_title(
                f"{name}: {len(layer.entropy)} units, {len(layer.dead)} dead, "
                f"{len(layer.duplicates)} duplicate pairs",
                fontsize=9,
            )
            left.set_xlabel("H(unit), nats")
            left.set_ylabel("I(unit; prediction), nats")
            # Like units side by side: by how much they say.
            order = layer.relevance.argsort(descending=True).cpu()
            image = right.imshow(layer.redundancy.cpu()[order][:, order].numpy(), vmin=0, vmax=1)
            right.set_title("redundancy, units by relevance", fontsize=9)
            figure.colorbar(image, ax=right)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


@in_own_name
def diagnose(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    example_inputs: Batch | None = None,
    ignored_layers: Iterable[str | nn.Module] = (),
    output: str = "auto",
    forward_fn: ForwardFn | None = None,
    config: CompressConfig | None = None,
) -> Diagnostics:
    """Entropy, relevance and redundancy of every unit that could be removed.

    Args:
        model: the network; it is not changed.
        data: re-iterable of batches without need of labels; the first
            ``config.calibration_samples`` samples are used.
        example_inputs: batch to trace the model with; None: the data's first.
        ignored_layers: layers, or their names, to leave out.
        output: as in ``compress``.
        forward_fn: as in ``compress``.
        config: bins, range, estimator, samples and seed.

    Raises:
        ValueError: a ``config.device`` that the model is not on.
        SimMIMError: the data or the model can't serve, or it has no units.
    """
    check_model("diagnose", model)
    check_options("diagnose", config=config, forward_fn=forward_fn, ignored_layers=ignored_layers)
    check_example("diagnose", example_inputs)
    config = config or CompressConfig()
    check_device("diagnose", model, config)
    device = device_of(model)
    ignored = names_of(model, ignored_layers)
    model, _ = prepared(watched("diagnose", model), ignored)
    with seeded(config.seed, device=device), inputs_kept():
        samples = gather(data, config.calibration_samples, name="data")
        first = next(batches(samples, device=device))
        resolved = resolve_output(output, model, first, forward_fn, name="data")
        noise = None
        if resolved != "classes":
            noise = noise_variance(model, samples, forward_fn, name="data")
        groups = trace_units(
            model,
            take(first, slice(0, 1)) if example_inputs is None else example_inputs,
            ignored_layers=ignored,
            forward_fn=forward_fn,
        )
        if not groups:
            check_dense("diagnose", model)
            raise SimMIMError("diagnose: the model has no units that can be removed")
        predictions, statistics = collect(
            model,
            groups,
            samples,
            samples=config.calibration_samples,
            moments=False,
            noise=noise,
            forward_fn=forward_fn,
            name="data",
        )
        layers = {}
        for stats in statistics:
            if not torch.isfinite(stats.activations).all():
                raise SimMIMError(
                    f"diagnose: activations of {stats.group.name!r} are not finite; check data "
                    "and weights"
                )
            relevance = unit_information(stats.activations, predictions, config)
            layers[stats.group.name] = _diagnose_layer(stats.activations, relevance, config)
    return Diagnostics(layers, len(predictions.rows), resolved)


def _diagnose_layer(x: Tensor, relevance: Tensor, config: CompressConfig) -> LayerDiagnostics:
    shared = layer_range(x, config)
    found = entropy(x, bins=config.bins, range=shared, estimator=config.estimator)
    redundancy = mutual_information(x, bins=config.pair_bins, range=shared, normalized="max")
    dead = (x.amin(dim=0) == x.amax(dim=0)).nonzero().flatten().tolist()
    pairs = torch.triu(redundancy >= _DUPLICATE, diagonal=1).nonzero().tolist()
    return LayerDiagnostics(
        found, relevance, redundancy, tuple(dead), tuple((i, j) for i, j in pairs)
    )
