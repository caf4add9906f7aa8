"""A SparseLinear whose buffers are changed, lent, loaded, moved, or made in inference mode."""

import copy
import warnings

import pytest
import torch
from sparse_layers import make, patterns_have_their_kernels  # noqa: F401  (used by itself)
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

from simmim_ext.nn import SparseLinear
from simmim_ext.nn.pattern import Pattern, recognise

MASKS = ("uneven", "half", "rows/columns", "block", "n:m")
BATCHES = (1, 40)


def dense(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    return layer.to_dense()(x)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def another(layer: SparseLinear) -> SparseLinear:
    """With the same mask and other values."""
    other = copy.deepcopy(layer)
    other.load_state_dict({**layer.state_dict(), "values": torch.randn_like(layer.values)})
    return other


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch", BATCHES)
def test_kernels_follow_buffers_that_change(batch, mask, memory) -> None:
    layer, x = make(259, 131, mask, memory=memory), torch.randn(batch, 131)
    twice = dense(layer, x) * 2 - layer.bias
    layer.values.mul_(2)
    close(layer(x), twice)
    layer.values = layer.values / 2
    close(layer(x), (twice + layer.bias) / 2)
    assert layer.choice.kernel(batch) == make(259, 131, mask, memory=memory).choice.kernel(batch)
    with torch.inference_mode():
        layer.values.mul_(2)
        close(layer(x), twice)
        layer.bitmap = layer.bitmap.clone()
    close(layer(x), twice)
    layer.bitmap.zero_()
    with pytest.raises(ValueError, match="values must have one entry for each of 0 bits set"):
        layer(x)
    layer.values = layer.values[:0]
    close(layer(x), layer.bias.expand(batch, -1))
    assert layer.choice.density == 0


def test_buffers_that_change_while_kernels_are_made(monkeypatch) -> None:
    """As by another thread: the next call makes them anew."""
    layer, x = make(259, 131), torch.randn(40, 131)
    factors = [3.0]

    def recognise_late(mask: torch.Tensor) -> Pattern:
        while factors:
            layer.values.mul_(factors.pop())
        return recognise(mask)

    monkeypatch.setattr("simmim_ext.nn.packing.recognise", recognise_late)
    layer.values.mul_(2)
    layer(x)
    close(layer(x), dense(layer, x))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch", BATCHES)
def test_buffers_lent_for_a_call(batch, mask) -> None:
    layer, x = make(259, 131, mask), torch.randn(batch, 131)
    other, own = make(259, 131, "random"), layer(x)
    torch._dynamo.reset()
    for lent in (another(layer), other):
        buffers = dict(lent.named_buffers())
        close(functional_call(layer, buffers, (x,)), dense(lent, x))
        compiled = torch.compile(
            lambda buffers, x: functional_call(layer, buffers, (x,)),
            fullgraph=True,
            backend="aot_eager",
        )
        with torch.no_grad():
            close(compiled(buffers, x), dense(lent, x))
    assert torch.equal(layer(x), own)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_ensembles_by_vmap() -> None:
    layers = [make(259, 131, "half")]
    layers += [another(layers[0]), another(layers[0])]
    parameters, buffers = stack_module_state(layers)
    base, x = copy.deepcopy(layers[0]).to("meta"), torch.randn(5, 131)
    y = vmap(lambda buffers: functional_call(base, (parameters, buffers), (x,)))(buffers)
    for actual, layer in zip(y, layers, strict=True):
        close(actual, dense(layer, x))


def test_averaged_models() -> None:
    layer, x = make(259, 131, "half"), torch.randn(3, 131)
    averaged = AveragedModel(layer, use_buffers=True)
    other = another(layer)
    for model in (layer, other):
        averaged.update_parameters(model)
    close(averaged(x), (dense(layer, x) + dense(other, x)) / 2)


def test_compiled_layers_follow_assigned_buffers() -> None:
    layer, x = make(259, 131, "half"), torch.randn(3, 131)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(x), dense(layer, x))
        layer.values = layer.values * 2
        close(compiled(x), dense(layer, x))


def test_layers_from_the_meta_device() -> None:
    layer, x = make(259, 131, "half"), torch.randn(20, 131)
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.bitmap.zero_()  # it could be anything
    with pytest.raises(ValueError, match="values must have one entry for each of 0 bits set"):
        empty(x)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    assert empty.choice == layer.choice
    assigned = copy.deepcopy(layer).to("meta")
    assigned.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(assigned(x), layer(x))


BROKEN = {
    "no values": ({"values": None}, "bitmap and values belong together, got bitmap alone"),
    "no bitmap": ({"bitmap": None}, "bitmap and values belong together, got values alone"),
    "list": ({"values": [1.0]}, "values"),
    "integers": ({"values": torch.ones(3, dtype=torch.int32)}, "values"),
    "sparse": ({"values": torch.ones(3).to_sparse()}, "values"),
    "meta": ({"values": torch.ones(3, device="meta")}, "values"),
    "too few": ({"values": torch.ones(3)}, "values must have one entry for each of"),
    "bitmap": ({"bitmap": torch.ones(7, dtype=torch.uint8)}, "bitmap"),
    "bitmap's dtype": ({"bitmap": torch.ones(4242)}, "bitmap"),
}  # fmt: skip


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_load_that_fails_changes_nothing(name, strict, assign) -> None:
    layer, x = make(259, 131, "half"), torch.randn(20, 131)
    before, y, choice = copy.deepcopy(layer.state_dict()), layer(x), layer.choice
    changes, text = BROKEN[name]
    state = {**another(layer).state_dict(), **changes}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(RuntimeError, match=text):
        layer.load_state_dict(state, strict=strict, assign=assign)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(layer(x), y)
    assert layer.choice == choice


def test_a_load_is_seen_as_a_whole(monkeypatch) -> None:
    """By other threads that call meanwhile."""
    layer, x = make(64, 300, "uneven"), torch.randn(40, 300)
    other, before, seen = make(64, 300, "half"), layer(x), []
    load = torch.nn.Module._load_from_state_dict

    def load_late(module, *args) -> None:
        seen.append(layer(x))
        load(module, *args)
        seen.append(layer(x))

    monkeypatch.setattr(torch.nn.Module, "_load_from_state_dict", load_late)
    layer.load_state_dict(other.state_dict())
    assert all(torch.equal(y, before) for y in seen)
    assert torch.equal(layer(x), other(x))


def test_a_bias_can_be_loaded_alone() -> None:
    layer, x = make(259, 131, "half"), torch.randn(20, 131)
    y = layer(x) - layer.bias
    layer.load_state_dict({"bias": torch.ones(259)}, strict=False)
    close(layer(x), y + 1)


@pytest.mark.parametrize("name", ["bitmap", "values", "bias"])
def test_buffers_stay_buffers(name) -> None:
    layer, x = make(259, 131, "half"), torch.randn(20, 131)
    y, buffer = layer(x), getattr(layer, name)
    parameter = torch.nn.Parameter(buffer, requires_grad=False)
    with pytest.raises(TypeError, match=f"SparseLinear: {name} must be a tensor that is no Param"):
        setattr(layer, name, parameter)
    with pytest.raises(RuntimeError, match="no Parameter"):
        layer.load_state_dict({**layer.state_dict(), name: parameter}, assign=True)
    assert torch.equal(layer(x), y)
    setattr(layer, name, parameter.data)
    assert torch.equal(layer(x), y)


DTYPES = "SparseLinear: values must be of one of .*, and bitmap of torch.uint8, got "


@pytest.mark.parametrize(
    ("move", "error", "text"),
    [
        (lambda layer: layer.to(torch.complex64), TypeError, DTYPES + "torch.complex64 and"),
        (lambda layer: layer.to(torch.float8_e5m2), TypeError, DTYPES + "torch.float8_e5m2 and"),
        (lambda layer: layer.type(torch.float16), TypeError, DTYPES + "torch.float16 and torch.fl"),
        (lambda layer: layer.to("nowhere"), RuntimeError, "nowhere"),
    ],
)
def test_a_move_that_fails_changes_nothing(move, error, text) -> None:
    layer, x = make(259, 131, "half"), torch.randn(20, 131)
    y = layer(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Complex modules")
        with pytest.raises(error, match=text):
            move(layer)
    assert torch.equal(layer(x), y)


MAKE = {
    "made": lambda layer: make(259, 131, "half"),
    "loaded": lambda layer: layer.load_state_dict(copy.deepcopy(layer.state_dict())) and layer,
    "assigned": lambda layer: (
        layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
        and layer
    ),
    "moved": lambda layer: layer.double().float(),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("way", MAKE)
@pytest.mark.parametrize("mask", MASKS)
def test_layers_made_in_inference_mode_have_gradients(mask, way) -> None:
    layer = make(259, 131, mask)
    with torch.inference_mode():
        other = MAKE[way](layer)
    x = torch.randn(3, 131, requires_grad=True)
    other(x).sum().backward()
    close(x.grad, other.to_dense().weight.sum(0).expand(3, -1))
    other.values.mul_(2)
    with torch.no_grad():
        close(other(x), dense(other, x))
