"""accelerate and strip on whole models."""

import copy
import io
import json
import pickle
import re

import pytest
import rich.console
import torch
from test_nn import uneven_mask
from torch import nn
from torch.nn.utils import prune

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


def test_what_strip_returns_is_unpickled_without_this_library() -> None:
    masked = MaskedLinear.from_linear(nn.Linear(21, 9), uneven_mask(9, 21))
    for model in (accelerate(masked), nn.Sequential(accelerate(nn.Sequential(masked)))):
        assert b"simmim_ext" in pickle.dumps(model)
        assert b"simmim_ext" not in pickle.dumps(strip(model))


def test_a_masked_layer_is_a_model() -> None:
    layer = MaskedLinear.from_linear(nn.Linear(21, 9), uneven_mask(9, 21))
    assert isinstance(accelerate(layer), SparseLinear)
    assert type(strip(layer)) is nn.Linear


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda *_: None),
    "backward_pre": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "state_dict": lambda layer: layer.register_state_dict_post_hook(lambda *_: None),
    "load_state_dict_pre": lambda layer: layer.register_load_state_dict_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("convert", [accelerate, strip])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_not_lost_silently(kind, convert) -> None:
    model = Network()
    HOOKS[kind](model.shared)
    text = f"{convert.__name__}: layer 'shared' must not have hooks, .* got _{kind}_hooks"
    with pytest.raises(ValueError, match=text):
        convert(model)


class Scaled(MaskedLinear):
    def forward(self, x):
        return super().forward(x) * 2


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("convert", [accelerate, strip])
def test_a_forward_of_its_own_is_not_lost_silently(convert) -> None:
    model = Network()
    for own in (Scaled.from_linear(nn.Linear(64, 64), uneven_mask(64, 64)), model.shared):
        model.shared = model.alias = own
        if type(own) is MaskedLinear:
            own.forward = lambda x: x
        text = f"layer 'shared' must not have a forward of its own, .* got a {type(own).__name__};"
        with pytest.raises(ValueError, match=f"{convert.__name__}: {text}"):
            convert(model)


def test_layers_are_not_made_of_others_that_compute_something_else() -> None:
    mask = uneven_mask(9, 21)
    for linear in (ScaledLinear(21, 9), Scaled(21, 9)):
        text = f"linear must have the forward of nn.Linear or .* got a {type(linear).__name__} with"
        for kind in (MaskedLinear, SparseLinear):
            with pytest.raises(TypeError, match=f"{kind.__name__}.from_linear: {text}"):
                kind.from_linear(linear, mask)


def test_parametrized_layers_are_converted() -> None:
    model, x = Network(), torch.randn(3, 64)
    nn.utils.parametrizations.weight_norm(model.shared)
    for convert in (accelerate, strip):
        torch.testing.assert_close(convert(model)(x), model(x), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(400, 64)
        linear = nn.Linear(64, 400)
        linear.weight = self.embedding.weight
        self.head = MaskedLinear.from_linear(linear, uneven_mask(400, 64))
        self.again = MaskedLinear.from_linear(linear, uneven_mask(400, 64))

    def forward(self, x):
        return self.head(self.embedding(x))


def test_strip_keeps_weights_tied() -> None:
    model, x = Tied(), torch.arange(5)
    model.embedding.weight = model.again.weight = model.head.weight
    model.again.bias = model.head.bias
    plain = strip(model)
    assert plain.head.weight is plain.embedding.weight
    assert plain.again.weight is plain.head.weight
    assert plain.again.bias is plain.head.bias
    assert plain.head.weight is not model.head.weight
    torch.testing.assert_close(plain(x), model(x))
    torch.testing.assert_close(accelerate(model)(x), model(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.embedding.weight.add_(1)
    text = "strip: layer 'head' must not share its weight with embedding.weight, again.weight where"
    with pytest.raises(ValueError, match=text):
        strip(model)
    del model.embedding, model.again
    assert strip(model).head.weight.count_nonzero() == uneven_mask(400, 64).sum()


@pytest.mark.parametrize("convert", [accelerate, strip])
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
def test_what_cannot_be_copied_is_named(convert) -> None:
    text = f"{convert.__name__}: layer 'body.3' must not hold tensors computed from .* got 'weight'"
    for spoil in (lambda m: prune.random_unstructured(m, "weight", 0.5), nn.utils.weight_norm):
        model, x = Network(), torch.randn(3, 64)
        spoil(model.body[3])
        model(x)
        with pytest.raises(ValueError, match=text):
            convert(model)


def test_weights_on_the_meta_device() -> None:
    model = Network().to("meta")
    assert "density=unknown" in repr(MaskedLinear(30, 20, device="meta"))
    assert strip(model).shared.weight.is_meta
    with pytest.raises(
        ValueError, match="accelerate: layer 'shared' must hold weights, got the me"
    ):
        accelerate(model)
    with pytest.raises(
        ValueError, match="accelerate: layer 'shared' must hold weights, got the me"
    ):
        accelerate(accelerate(Network()).to("meta"))
    with pytest.raises(ValueError, match="SparseLinear.from_linear: linear must hold weights, got"):
        SparseLinear.from_linear(nn.Linear(30, 20, device="meta"))


@pytest.mark.parametrize("grad", [False, True])
def test_weights_that_torchs_modules_read_keep_their_dtype(grad) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True).eval()
    for parent, name in ((model, "linear1"), (model, "linear2"), (model.self_attn, "out_proj")):
        linear = getattr(parent, name)
        setattr(parent, name, MaskedLinear.from_linear(linear, uneven_mask(*linear.weight.shape)))
    model.after = MaskedLinear(64, 64)
    fast, x = accelerate(model, dtype=torch.bfloat16), torch.randn(2, 5, 64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    reasons = {name: choice.reason for name, choice in fast.acceleration.layers.items()}
    assert fast.after.values.dtype == torch.bfloat16
    assert "keeps" not in reasons.pop("after")
    keeps = "it keeps torch.float32, for {} reads its weight"
    assert reasons.pop("self_attn.out_proj").endswith(keeps.format("MultiheadAttention"))
    assert len(reasons) == 2
    for reason in reasons.values():
        assert reason.endswith(keeps.format("TransformerEncoderLayer"))


def test_plain_layers_that_are_mostly_zeros_are_named() -> None:
    model = Network()
    with torch.no_grad():
        model.body[3].weight.mul_(torch.rand(10, 400) < 0.05)
    model.unused = nn.ModuleList((nn.LazyLinear(3), nn.Linear(3, 3, device="meta")))
    model.unused.append(nn.Linear(3, 3).to(torch.float8_e5m2))
    fast = accelerate(model)
    assert list(fast.acceleration.layers) == ["shared", "body.1", "body.3"]
    assert type(fast.body[3]) is nn.Linear
    choice = fast.acceleration.layers["body.3"]
    assert choice.kernels == ((None, "dense"),)
    assert choice.reason.startswith(
        "not masked: MaskedLinear.from_linear(layer, layer.weight != 0)"
    )
    assert 0 < choice.density < 0.1


@pytest.mark.parametrize("own", [nn.Parameter(torch.ones(3)), nn.ReLU(), 9.81, None])
def test_a_models_own_acceleration_is_not_overwritten(own) -> None:
    model = Network()
    model.acceleration = own
    text = "accelerate: model must have no attribute 'acceleration', .* got one of type "
    with pytest.raises(ValueError, match=f"^{text}{type(own).__name__}; rename it$"):
        accelerate(model)


def test_a_fast_model_is_accelerated_again() -> None:
    model, x = Network(), torch.randn(30, 64)
    with torch.no_grad():
        model.shared.weight[0, 0] = 0  # kept all the same
    fast = accelerate(model)
    again = accelerate(fast)
    assert again.acceleration == fast.acceleration
    assert torch.equal(again(x), fast(x))
    small = accelerate(fast, memory="small", dtype=torch.bfloat16)
    assert (small.shared.memory, small.shared.values.dtype) == ("small", torch.bfloat16)
    assert small.shared.values.numel() == model.shared.mask.sum()
    assert small.acceleration.layers["shared"].kernel(1) == "compressed"
    torch.testing.assert_close(small(x), model(x), rtol=0.05, atol=0.05)
