"""Which BatchNorm reads a layer's output, where nothing else does.

Such a norm has a layer's bias in its running mean: y = (W x + b - mean) / deviation.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import Batch
from .forward import ForwardFn, forward
from .readers import Readers
from .recording import observing


def norms_behind(
    model: nn.Module, names: list[str], batch: Batch, forward_fn: ForwardFn | None
) -> dict[str, str]:
    """Layer -> the BatchNorm, with running statistics, that alone reads its output.

    Both must run once.
    """
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    made: dict[int, tuple[str, Tensor, Tensor]] = {}
    runs: list[str] = []
    behind: dict[str, str] = {}

    def after_layer(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            runs.append(name)
            made[id(output)] = name, output, output.clone()
            readers.owners[id(output)] = name

        return hook

    def before_norm(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            runs.append(name)
            if not args or id(args[0]) not in made:
                return args
            layer, _, same = made[id(args[0])]
            behind[layer] = name
            return same, *args[1:]  # that whoever reads the output itself is somebody else

        return hook

    def read(module: nn.Module, args: Any, options: Any) -> None:
        readers.note((args, options))

    readers = Readers({})
    hooks = [model.get_submodule(n).register_forward_hook(after_layer(n)) for n in names]
    hooks += [model.get_submodule(n).register_forward_pre_hook(before_norm(n)) for n in norms]
    # A module without others in it may read by other functions than torch's.
    last = [module for module in model.modules() if not list(module.children())]
    hooks += [module.register_forward_pre_hook(read, with_kwargs=True) for module in last]
    with observing(model, hooks), readers:
        forward(model, batch, forward_fn)
    return {
        layer: norm
        for layer, norm in behind.items()
        if layer not in readers.found and runs.count(layer) == runs.count(norm) == 1
    }
