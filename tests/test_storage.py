"""A model's state: what is taken out goes back in."""

import pytest
import torch
from torch import nn

from simmim_ext import SimMIMError, storage
from simmim_ext.nn import MaskedLinear


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[3].weight = net[2].weight
    return net


def masked(seed=0):
    net = model(seed)
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    net[0] = MaskedLinear.from_linear(net[0], mask)
    return net


def test_weights_come_back_shared_ones_once_and_masked_ones_packed():
    net = masked()
    tensors, description = storage.tensors_of(net)
    assert description == {"shared": {"3.weight": "2.weight"}, "masked": ["0"]}
    assert tensors["0.weight"].shape == (int(net[0].mask.sum()),)
    assert tensors["0.mask"].nbytes == 7
    fresh = model(seed=1).eval()
    storage.restore_tensors(fresh, tensors, description)
    assert fresh[3].weight is fresh[2].weight
    assert isinstance(fresh[0], MaskedLinear)
    assert not fresh[0].training
    assert torch.equal(fresh[0].weight, net[0].weight * net[0].mask)
    assert torch.equal(fresh[0].mask, net[0].mask)
    x = torch.rand(4, 9)
    assert torch.equal(fresh(x), net.eval()(x))


def test_stored_dtypes_come_back():
    net = model().to(torch.bfloat16)
    fresh = model(seed=1)
    storage.restore_tensors(fresh, *storage.tensors_of(net))
    assert fresh[0].weight.dtype == torch.bfloat16
    assert torch.equal(fresh[0].weight, net[0].weight)


@pytest.mark.parametrize("where", ["everywhere", "in part"])
def test_what_is_on_the_meta_device_gets_memory(where):
    net = masked()
    net[2].requires_grad_(False)
    with torch.device("meta" if where == "everywhere" else "cpu"):
        fresh = model(seed=1).requires_grad_(False)
    fresh[:2].to("meta")
    fresh[0].requires_grad_(True)
    storage.restore_tensors(fresh, *storage.tensors_of(net))
    assert fresh[3].weight is fresh[2].weight
    assert [n for n, p in fresh.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]
    state = net.state_dict()
    state["0.weight"] = state["0.weight"] * state["0.mask"]
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_buffer_on_the_meta_device_that_no_state_holds_is_named():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("scale", torch.ones(2), persistent=False)

    net = nn.Sequential(Scaled())
    tensors, description = storage.tensors_of(net)
    with pytest.raises(SimMIMError, match=r"buffer '0\.scale' is on the meta device, and nothing"):
        storage.restore_tensors(net.to("meta"), tensors, description)


def test_weights_of_another_model_are_refused():
    tensors, description = storage.tensors_of(model())
    with pytest.raises(SimMIMError, match=r"do not fit the model: .* give an instance of the orig"):
        storage.restore_tensors(nn.Sequential(nn.Linear(9, 6)), tensors, description)
    expected = storage.signature_of(model())
    storage.check_signature(model(1), expected, "load: x")
    other = nn.Sequential(nn.Linear(9, 5))
    with pytest.raises(SimMIMError, match=r"0.bias is \[6\] there and \[5\] in the model given"):
        storage.check_signature(other, expected, "load: x")


def test_state_that_is_no_tensor_is_named():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(SimMIMError, match=r"'_extra_state' is a dict; only tensors can be saved"):
        storage.tensors_of(Extra(2, 2))


def test_digest_tells_values_names_and_shapes_apart():
    base = {"a": torch.arange(6.0)}
    assert storage.digest(base) == storage.digest({"a": torch.arange(6.0)})
    others = [{"b": torch.arange(6.0)}, {"a": torch.arange(6.0).view(2, 3)}, {"a": torch.zeros(6)}]
    assert len({storage.digest(d) for d in (base, *others)}) == 4
