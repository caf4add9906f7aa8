"""Every operator of the case table: answers, dispatch, capabilities, threads, errors."""

import re
from typing import Any

import pytest
import torch
from case import Case
from cases import CASES
from torch import Tensor
from torch.utils import _pytree as pytree

by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
differentiable = [case for case in CASES if case.differentiable]


def assert_same(case: Case, actual: Any, expected: Any) -> None:
    actual, expected = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        torch.testing.assert_close(a.cpu(), e.cpu(), rtol=0, atol=case.tolerance, equal_nan=True)


def moved(arguments: tuple[Any, ...], device: str) -> Any:
    """The arguments with their tensors on the device."""
    return pytree.tree_map(lambda a: a.to(device) if isinstance(a, Tensor) else a, arguments)


@by_name
def test_agrees_with_reference(case: Case, device: str) -> None:
    for arguments in case.arguments(device):
        result = case.op(*arguments)
        assert all(leaf.device.type == device for leaf in pytree.tree_leaves(result))
        assert_same(case, result, case.reference(*moved(arguments, "cpu")))


@by_name
def test_does_not_depend_on_cpu_capability(case: Case, cpu_capability: str) -> None:
    for arguments in case.arguments("cpu"):
        assert_same(case, case.op(*arguments), case.reference(*arguments))


@by_name
def test_does_not_depend_on_threads(case: Case, threads) -> None:
    for arguments in case.arguments("cpu"):
        threads(1)
        alone = case.op(*arguments)
        threads(3)
        for a, b in zip(*map(pytree.tree_leaves, (alone, case.op(*arguments))), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=case.thread_tolerance, equal_nan=True)


# torch 2.14's opcheck reads .grad of the copies that it makes of the arguments.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@by_name
def test_registration(case: Case, device: str) -> None:
    """Schema, fake and autograd registration agree with what the kernel does."""
    op = getattr(torch.ops.simmim_ext, case.name).default
    tried = 0
    for arguments in case.arguments(device):
        given = op._schema.arguments[len(arguments) :]
        defaults = tuple(default_for(argument.name, case) for argument in given)
        torch.library.opcheck(op, (*arguments, *defaults))
        tried += 1
        if tried == 3:  # seconds each; the answers are checked above
            break
    assert tried


def default_for(name: str, case: Case) -> Any:
    """The wrapper's default for an argument that the schema has none for."""
    import inspect

    return inspect.signature(case.op).parameters[name].default


@by_name
def test_compiles(case: Case) -> None:
    arguments = next(iter(case.arguments("cpu")))
    torch._dynamo.reset()
    compiled = torch.compile(case.op, fullgraph=True, backend="aot_eager")
    assert_same(case, compiled(*arguments), case.op(*arguments))


@by_name
def test_is_traced_by_fx(case: Case) -> None:
    arguments = next(iter(case.arguments("cpu")))
    places = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor)]

    class Traced(torch.nn.Module):
        def forward(self, tensors):
            given = list(arguments)
            for place, i in enumerate(places):
                given[i] = tensors[place]
            return case.op(*given)

    tensors = [arguments[i] for i in places]
    traced = torch.fx.symbolic_trace(Traced())
    assert_same(case, traced(tensors), case.op(*arguments))


@by_name
def test_bad_input(case: Case, device: str) -> None:
    assert case.bad
    for make, error, text in case.bad:
        arguments = moved(make(), device)
        before = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, arguments)
        with pytest.raises(error, match="^" + re.escape(text)):
            case.op(*arguments)
        for a, b in zip(*map(pytree.tree_leaves, (arguments, before)), strict=True):
            if isinstance(a, Tensor):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", differentiable, ids=[case.name for case in differentiable])
def test_gradients(case: Case) -> None:
    tried = 0
    for arguments in case.arguments("cpu"):
        inputs = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        if inputs and all(a.dtype == torch.float64 for a in inputs):
            assert torch.autograd.gradcheck(case.op, arguments)
            tried += 1
    assert tried
