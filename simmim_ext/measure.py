"""What a model costs: parameters, operations, bytes on disk, and time measured in turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .arguments import watched
from .data import Batch, samples_of, take, to_device
from .forward import ForwardFn, forward
from .modes import device_of, evaluating, in_mode
from .storage import masked_layers, set_submodule, tensors_of


def count_params(model: nn.Module) -> int:
    """Number of parameters; shared ones count once, masked-out weights do not count."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - sum(int((~layer.mask).sum()) for _, layer in masked_layers(model))


def count_flops(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None = None) -> int:
    """Floating-point operations of one sample's forward pass, taken from the batch's first.

    Two for each multiply-add of matrix products, convolutions and attention
    (torch.utils.flop_counter); elementwise work, normalisation and pooling do not count, nor do
    products with masked-out weights.
    """
    sample = to_device(take(batch, slice(0, 1)), device_of(model))
    model = _without_gradients(model)
    masked = dict(masked_layers(model))
    skipped = 0

    def skip(zeros: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal skipped
            skipped += 2 * zeros * (args[0].numel() // args[0].shape[-1])

        return hook

    for name, layer in masked.items():
        # The counter knows matrix products only; a layer of that shape stands in.
        shape, bias = (layer.in_features, layer.out_features), layer.bias is not None
        dense = nn.Linear(*shape, bias, layer.weight.device, layer.weight.dtype)
        dense.register_forward_pre_hook(skip(int((~layer.mask).sum())))
        set_submodule(model, name, dense)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(model, sample, forward_fn)
    return int(counter.get_total_flops()) - skipped


def _without_gradients(model: nn.Module) -> nn.Module:
    """A copy that has the same weights and asks for no gradients of them.

    Where it does, torch's counter fails on a module that is given a view of a parameter, as an
    attention is given learnt queries.
    """
    model = watched("count_flops", model)
    frozen = {p: nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    for module in model.modules():
        own = module._parameters
        own.update((name, frozen[p]) for name, p in own.items() if p is not None)
    return model


def count_bytes(model: nn.Module) -> int:
    """Bytes of the model's weights on disk, as ``CompressionResult.save`` writes them.

    Shared tensors count once; a masked layer is its kept weights and one bit for each weight.
    """
    return sum(tensor.nbytes for tensor in tensors_of(model)[0].values())


def measure_latency(
    models: Sequence[nn.Module],
    batch: Batch,
    forward_fn: ForwardFn | None = None,
    *,
    seconds: float = 0.5,
) -> list[float]:
    """Milliseconds of each model's forward pass on the batch: medians of runs taken in turn.

    The models run one after the other in every round, so that whatever else slows the machine
    down meets them alike. Each round times as many passes as make a millisecond. ``seconds`` is
    the least time that the rounds take together; there are at least seven.
    """
    device = device_of(models[0])
    batch = to_device(batch, device)

    def run(model: nn.Module, times: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            forward(model, batch, forward_fn)
        _synchronize(device)
        return (time.perf_counter() - start) / times

    rounds: list[list[float]] = []
    # Not ``evaluating``: fused attention is part of what the models take.
    with in_mode(*models, training=False), torch.inference_mode():
        for model in models:
            run(model, 3)
        times = [max(1, round(1e-3 / max(run(model, 3), 1e-9))) for model in models]
        begin = time.perf_counter()
        while len(rounds) < 7 or time.perf_counter() - begin < seconds:
            rounds.append([run(*pair) for pair in zip(models, times, strict=True)])
    return [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]


def latency_conditions(batch: Batch) -> dict[str, int]:
    """The batch size and the threads that a latency measured here and now goes with."""
    return {"batch": samples_of(batch), "threads": torch.get_num_threads()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
