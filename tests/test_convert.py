"""accelerate and strip on whole models."""

import copy
import io
import json
import re

import pytest
import rich.console
import torch
from test_nn import uneven_mask
from torch import nn

from simmim_ext.nn import MaskedLinear, SparseLinear, accelerate, strip


class Network(nn.Module):
    """A masked layer used twice, one in a container, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = MaskedLinear.from_linear(nn.Linear(64, 64), uneven_mask(64, 64))
        self.alias = self.shared
        large = MaskedLinear.from_linear(nn.Linear(64, 400), uneven_mask(400, 64))
        self.body = nn.Sequential(nn.ReLU(), large, nn.ReLU(), nn.Linear(400, 10))

    def forward(self, x):
        return self.body(self.alias(self.shared(x)))


@pytest.mark.parametrize("convert", [accelerate, strip])
def test_whole_models(convert) -> None:
    model, x = Network().eval(), torch.randn(30, 64)
    before = copy.deepcopy(model.state_dict())
    other = convert(model)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, MaskedLinear) for layer in other.modules())
    assert other.shared is other.alias
    assert not other.training
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    kind = SparseLinear if convert is accelerate else nn.Linear
    assert type(other.body[1]) is kind
    own = {id(p) for p in model.parameters()}
    assert not any(id(p) in own for p in other.parameters())


def test_accelerate_says_what_it_chose() -> None:
    model = accelerate(Network())
    table = str(model.acceleration)
    assert list(model.acceleration.layers) == ["shared", "body.1"]
    head = ["layer", "pattern", "kept", "kernels", "expected speed, x dense", "why"]
    assert re.split("  +", table.splitlines()[0]) == head
    assert "fewer than 16384 weights" in table
    assert "element" in table
    small = accelerate(Network(), memory="small", dtype=torch.bfloat16)
    assert small.shared.values.dtype == torch.bfloat16
    assert small.shared.choice.kernel(1) == "compressed"


def test_accelerate_says_it_as_data_and_to_rich() -> None:
    found = accelerate(Network()).acceleration
    data = json.loads(json.dumps(found.to_dict()))
    assert list(data) == ["shared", "body.1"]
    layer, choice = data["body.1"], found.layers["body.1"]
    assert layer["density"] == choice.density
    assert {name for _, name in choice.kernels} == set(layer["kernels"].values())
    assert layer["kernels"]["0"] == choice.kernel(1)
    for batch, speed in choice.speeds:
        assert layer["speeds"][str(batch)] == pytest.approx(speed, abs=1e-3)
        assert speed > 1 or choice.kernel(batch) == "dense"
    assert data["shared"]["speeds"] == {}
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(found)
    drawn = console.file.getvalue()
    assert f"{choice.speeds[0][1]:.1f}x at 1," in drawn
    assert all(word in drawn for word in ("body.1", choice.kernels_text(), choice.reason))


def test_strip_undoes_accelerate() -> None:
    model, x = Network(), torch.randn(30, 64)
    stripped = strip(accelerate(model))
    torch.testing.assert_close(stripped(x), model(x), rtol=1e-4, atol=1e-5)
    assert {type(layer) for layer in stripped.modules()} <= {
        Network, nn.Sequential, nn.ReLU, nn.Linear
    }  # fmt: skip


def test_a_masked_layer_is_a_model() -> None:
    layer = MaskedLinear.from_linear(nn.Linear(21, 9), uneven_mask(9, 21))
    assert isinstance(accelerate(layer), SparseLinear)
    assert type(strip(layer)) is nn.Linear


def test_hooks_are_not_lost_silently() -> None:
    model = Network()
    model.shared.register_forward_hook(lambda *_: None)
    text = "accelerate: layer 'shared' must not have hooks, which the new layer would lose"
    with pytest.raises(ValueError, match=text):
        accelerate(model)


@pytest.mark.parametrize("own", [nn.Parameter(torch.ones(3)), nn.ReLU(), 9.81, None])
def test_a_models_own_acceleration_is_not_overwritten(own) -> None:
    model = Network()
    model.acceleration = own
    text = "accelerate: model must have no attribute 'acceleration', .* got one of type "
    with pytest.raises(ValueError, match=f"^{text}{type(own).__name__}; rename it$"):
        accelerate(model)


def test_a_fast_model_is_accelerated_again() -> None:
    fast = accelerate(Network())
    assert accelerate(fast).acceleration.layers == {}
