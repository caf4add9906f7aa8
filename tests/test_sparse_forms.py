"""The forms of a SparseLinear: stored, copied, on another device, dense, exported, compiled."""

import copy
import io
import pickle

import pytest
import torch
from sparse_layers import MASKS, make, patterns_have_their_kernels  # noqa: F401
from test_nn import uneven_mask
from torch import nn

from simmim_ext.nn import MaskedLinear, SparseLinear
from simmim_ext.ops.compressed_linear import compress_weight, compressed_linear, decompress_weight


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(3, 5), (500, 784), (1024, 1024)])
def test_stored_form_is_small(density, shape) -> None:
    linear = nn.Linear(shape[1], shape[0])
    mask = torch.rand(shape) < density
    layer = SparseLinear.from_linear(linear, mask, memory="small")
    dense = sum(p.nbytes for p in linear.parameters())
    share = mask.float().mean().item() + 1 / 32
    limit = (share + 0.02) * dense + linear.bias.nbytes + 1
    assert layer.nbytes <= limit
    assert sum(t.nbytes for t in layer.state_dict().values()) <= limit
    fast = SparseLinear.from_linear(linear, mask)
    assert fast.nbytes >= layer.nbytes
    assert fast.state_dict().keys() == layer.state_dict().keys()


def test_state_dict_is_portable(cpu_capability) -> None:
    source, x = make(259, 131), torch.randn(20, 131)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    for memory in ("fast", "small"):
        target = SparseLinear(131, 259, memory=memory)
        assert torch.equal(target(x), torch.zeros(20, 259))
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(target.to_dense().weight, source.to_dense().weight)


def test_state_dict_of_another_layer_is_refused() -> None:
    layer, x = make(259, 131), torch.randn(2, 131)
    before = layer(x)
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        layer.load_state_dict(make(131, 259).state_dict())
    state = layer.state_dict()
    state["values"] = state["values"][:-1]
    kept = layer.values.numel()
    text = rf"values must have one entry for each of {kept} bits set in bitmap, got \[{kept - 1}\]"
    with pytest.raises(RuntimeError, match=text):
        layer.load_state_dict(state)
    assert torch.equal(layer(x), before)


def test_values_must_be_as_many_as_the_bits() -> None:
    bitmap, x = torch.tensor([9, 0]).byte(), torch.rand(2, 4)
    text = (
        r"compressed_linear: values must have one entry for each of 2 bits set in bitmap, got \[3"
    )
    with pytest.raises(ValueError, match=text):
        compressed_linear(x, bitmap, torch.zeros(3), None, None, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (7, 64), (65, 129), (130, 1000)])
@pytest.mark.parametrize("mask", MASKS)
def test_decompressing_under_every_capability(mask, shape, dtype, cpu_capability) -> None:
    kept, weight = MASKS[mask](*shape), torch.randn(shape).to(dtype)
    bitmap, values = compress_weight(weight, kept)
    dense = decompress_weight(bitmap, values, *shape)
    assert torch.equal(dense, weight.where(kept, 0))


CLONES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "to": lambda layer: layer.to("cpu", torch.float32),
}


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize("mask", ["uneven", "block", "rows/columns"])
def test_copies(clone, mask) -> None:
    layer, x = make(259, 131, mask).eval(), torch.randn(20, 131)
    other = CLONES[clone](layer)
    assert torch.equal(other(x), layer(x))
    assert other.choice == layer.choice
    assert not other.training


def test_pickle_holds_the_compressed_form_alone() -> None:
    layer = make(512, 512, "random")
    assert len(pickle.dumps(layer)) < sum(t.nbytes for t in layer.buffers()) + 4096 < layer.nbytes


def test_other_devices_raise_clearly() -> None:
    layer = make(259, 131).to("meta")
    assert layer(torch.empty(3, 131, device="meta")).shape == (3, 259)
    assert layer.choice.reason == "there are no kernels for meta"


def test_to_dense_is_a_plain_linear() -> None:
    masked = MaskedLinear.from_linear(nn.Linear(21, 9).eval(), uneven_mask(9, 21))
    for layer in (masked, masked.to_sparse()):
        dense = layer.to_dense()
        assert type(dense) is nn.Linear
        assert torch.equal(dense.weight, masked.weight * masked.mask)
        assert torch.equal(dense.bias, masked.bias)
        assert not dense.training


def test_from_linear_without_mask() -> None:
    linear = nn.Linear(40, 30)
    with torch.no_grad():
        linear.weight[torch.rand(30, 40) < 0.8] = 0
    layer = SparseLinear.from_linear(linear)
    assert layer.values.numel() == linear.weight.count_nonzero()
    masked = MaskedLinear.from_linear(linear, uneven_mask(30, 40))
    assert SparseLinear.from_linear(masked).values.numel() == uneven_mask(30, 40).sum()
    with torch.no_grad():
        linear.weight.zero_()
    assert layer.values.count_nonzero() == layer.values.numel()


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "block"])
@pytest.mark.parametrize("memory", ["fast", "small"])
def test_export_needs_standard_operators_alone(mask, memory) -> None:
    layer, x = make(259, 131, mask, memory=memory), torch.randn(3, 131)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layer, (x,), dynamic_shapes=((batch, None),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("simmim" in target for target in targets)
    for rows in (x, torch.randn(40, 131)):
        torch.testing.assert_close(exported.module()(rows), layer(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "block"])
def test_compiles_whole(mask) -> None:
    layer = make(259, 131, mask)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (1, 20, 40):
            x = torch.randn(batch, 131)
            torch.testing.assert_close(compiled(x), layer(x))
    x = torch.randn(3, 131, requires_grad=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(
        x.grad, layer.to_dense().weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4
    )


class ReadsDtype(torch.nn.Module):
    """As T5's feed-forward layers do."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype))


@pytest.mark.parametrize("memory", ["fast", "small"])
def test_weight_is_the_dense_one_and_read_only(memory) -> None:
    layer = make(40, 30, memory=memory)
    assert torch.equal(layer.weight, layer.to_dense().weight)
    assert layer.weight is not layer.weight
    assert list(layer.parameters()) == []
    assert set(layer.state_dict()) == {"bitmap", "values", "bias"}
    for value in (torch.zeros(40, 30), torch.nn.Parameter(torch.zeros(40, 30))):
        with pytest.raises((AttributeError, KeyError), match="weight"):
            layer.weight = value
    assert copy.deepcopy(layer).weight.equal(layer.weight)


def test_whoever_reads_the_weight_can_be_compiled_and_exported() -> None:
    model, x = ReadsDtype(make(40, 30)), torch.randn(3, 30)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
