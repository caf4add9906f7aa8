"""The state that models run in for a while: their mode, torch's random numbers and autograd."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# The kinds of device that models are compressed on.
_AUTOCAST = ("cpu", "cuda")


@contextmanager
def in_mode(*models: nn.Module, training: bool) -> Iterator[None]:
    """Puts the models into that mode for the block; every module's own mode comes back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Puts the models into eval mode for the block; every module's own mode comes back.

    torch's fused attention, which runs whole encoder layers past their modules' hooks and forward
    functions, is off in the block.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with in_mode(*models, training=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def why_unusable(device: torch.device | str | int | None) -> str | None:
    """Why tensors cannot be made on the device or have no values there; None where they can."""
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError, TypeError) as error:
        return str(error).partition("\n")[0]
    return None


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Leaves every ``autocast`` that the caller is in, for the block.

    One that is entered in the block is then the outermost one again. Only that forgets, when it
    ends, the weights that it has cast: within another, even one that is off, each training step
    would have those of the first.
    """
    enabled = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    try:
        torch.clear_autocast_cache()
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        torch.clear_autocast_cache()
        for kind, before in enabled.items():
            torch.set_autocast_enabled(kind, before)
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()


@contextmanager
def seeded(*seeds: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seeds torch's global generators for the block; the caller's random state comes back.

    Autograd is on in the block and autocast off, whatever the caller's ``no_grad``,
    ``inference_mode`` or ``autocast``.
    """
    device = torch.device(device)
    # Any mixing does that keeps (seed, epoch) pairs apart.
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed) % 2**63
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        _outside_autocast(),
    ):
        torch.default_generator.manual_seed(mixed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(mixed)
        yield
