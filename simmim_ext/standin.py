"""What the tracer cannot follow, made traceable: attention as two linear layers.

torch-pruning takes reshapes into heads for reshapes of channels, and never returns from some.
So in the copy that is traced, each known attention is a stand-in that reads what its projections
read and writes what it writes; what lies between is settled by the table in ``attention``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .attention import Attention
from .errors import SimMIMError
from .storage import set_submodule

# The name of a stand-in's layer that stands for the queries, keys and values together.
READS = "heads"

_PRODUCTS = {
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.baddbmm,
}


@dataclass
class Observation:
    """What a forward pass showed.

    Attributes:
        results: of every known attention that ran, what its module returned.
        added: of those that add an argument of theirs to what they return, as BLOOM's add the
            residual, its place among the arguments.
        strangers: names of the modules that multiply activations with each other and are not
            known; the innermost with parameters.
    """

    results: dict[str, Any] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)


def observe(
    model: nn.Module, known: Mapping[str, Attention], run: Callable[[], object]
) -> Observation:
    """Watches ``run()``, a forward pass of the model with gradients enabled."""
    seen = Observation()
    modules = dict(model.named_modules())
    inputs: dict[str, list[Any]] = {name: [] for name in known}
    hooks = [
        modules[f"{name}.{layer}"].register_forward_pre_hook(
            lambda _, args, n=name: inputs[n].append(args[0])
        )
        for name, attention in known.items()
        for layer in attention.kind.projections
    ]
    outputs: dict[str, Tensor] = {}
    for name, attention in known.items():
        if attention.kind.output is not None:
            behind = modules[f"{name}.{attention.kind.output}"]
            hooks.append(
                behind.register_forward_hook(lambda _, a, out, n=name: outputs.update({n: out}))
            )

    def end(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen.results[name] = result
        place = _added(outputs.get(name), (*args, *kwargs.values()), _first(result))
        if place is not None:
            seen.added[name] = place

    hooks += [
        modules[name].register_forward_hook(
            lambda _, args, kwargs, out, n=name: end(n, args, kwargs, out), with_kwargs=True
        )
        for name in known
    ]
    try:
        with running(model) as names, _Watch(modules, names, known, seen.strangers):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, given in inputs.items():
        if any(x is not given[0] and x.data_ptr() != given[0].data_ptr() for x in given[1:3]):
            seen.strangers.append(name)
            seen.results.pop(name, None)
    return seen


def _first(result: Any) -> Any:
    """The tensor that a module's result is or begins with."""
    return result[0] if isinstance(result, tuple | list) and result else result


def _added(made: Any, arguments: tuple[Any, ...], result: Any) -> int | None:
    """Which argument the result is the sum of with what its last layer made, if any."""
    if not isinstance(made, Tensor) or not isinstance(result, Tensor) or made.equal(result):
        return None
    for place, x in enumerate(arguments):
        like = isinstance(x, Tensor) and x.shape == made.shape == result.shape
        if like and result.equal(made + x):
            return place
    return None


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that are in their forward during the block, the innermost last."""
    names: list[str] = []
    hooks: list[Any] = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda *_, n=name: names.append(n)))
            hooks.append(module.register_forward_hook(lambda *_: names.pop() and None))
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


class _Watch(TorchFunctionMode):
    """Notes who multiplies activations with each other."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        names: list[str],
        known: Mapping[str, Attention],
        strangers: list[str],
    ) -> None:
        super().__init__()
        self._modules, self._names = modules, names
        self._known, self._strangers = known, strangers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS and sum(_computed(args)) > 1:
            self._note()
        return func(*args, **(kwargs or {}))

    def _note(self) -> None:
        if any(name in self._known for name in self._names):
            return
        with_parameters = (
            name
            for name in reversed(self._names)
            if next(self._modules[name].parameters(), None) is not None
        )
        name = next(with_parameters, "")
        if name not in self._strangers:
            self._strangers.append(name)


def _computed(values: Iterable[Any]) -> Iterator[bool]:
    for value in values:
        if isinstance(value, Tensor):
            of_parameter = value._base is not None and value._base.is_leaf  # as in x @ weight.T
            yield value.grad_fn is not None and not of_parameter
        elif isinstance(value, list | tuple):
            yield from _computed(value)


def insert_stand_ins(model: nn.Module, known: Mapping[str, Attention], seen: Observation) -> None:
    """Replaces, in place, every known attention that ran."""
    for name, result in seen.results.items():
        module = model.get_submodule(name)
        set_submodule(model, name, StandIn(module, known[name], result, seen.added.get(name)))


class StandIn(nn.Module):
    """Reads and writes like an attention; in between its heads are channels of one layer."""

    def __init__(
        self, module: nn.Module, attention: Attention, result: Any, added: int | None
    ) -> None:
        super().__init__()
        first = module.get_submodule(attention.kind.projections[0])
        assert isinstance(first, nn.Linear)
        weight = first.weight
        self._inputs, self._result, self._added = first.in_features, result, added
        width = attention.heads * attention.head_dim
        reads = nn.Linear(first.in_features, width, device=weight.device, dtype=weight.dtype)
        self.add_module(READS, reads)
        self._output = attention.kind.output
        if self._output is not None:
            self.add_module(self._output, module.get_submodule(self._output))
        self._original = (module,)  # a tuple, so that its layers are not this module's

    def __getattr__(self, name: str) -> Any:
        """Whatever others look up is the original's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_original" not in self.__dict__:
                raise
            return getattr(self.__dict__["_original"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor of the module's result is made anew, the rest of it stays."""
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        x = next(x for x in tensors if x.is_floating_point() and x.shape[-1] == self._inputs)
        out = self.get_submodule(READS)(x)
        if self._output is not None:
            out = self.get_submodule(self._output)(out)
        if self._added is not None:
            out = out + (*args, *kwargs.values())[self._added]
        if isinstance(self._result, Tensor):
            return out
        if isinstance(self._result, tuple | list):
            return (out, *self._result[1:])
        raise SimMIMError(
            f"trace_units: attention returned a {type(self._result).__name__}; expected a tensor, "
            "or a tuple that begins with one"
        )
