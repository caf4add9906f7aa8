import pytest
import torch
from models import case, mlp, snapshot
from torch import nn
from torch.nn.utils import parametrizations

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.elimination import surviving
from simmim_ext.granularity import Granularity
from simmim_ext.nn import MaskedLinear, SparseLinear, accelerate
from simmim_ext.weights import prune_weights

DATA = torch.randn(400, 12, generator=torch.Generator().manual_seed(5)).split(100)


def zeros(model):
    return sum(int((~m.mask).sum()) for m in model.modules() if isinstance(m, MaskedLinear))


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_sparsity_is_met_and_the_model_untouched(sparsity):
    torch.manual_seed(0)
    model = mlp()
    before = snapshot(model)
    sparse, layers = prune_weights(model, DATA, sparsity=sparsity, samples=400)
    assert snapshot(model) == before
    assert isinstance(sparse[0], MaskedLinear)
    assert isinstance(sparse[2], MaskedLinear)
    total = 12 * 10 + 10 * 4
    assert sparsity * total <= zeros(sparse) < sparsity * total + 1
    assert [layer["name"] for layer in layers] == ["0", "2"]
    assert sum(layer["before"] - layer["after"] for layer in layers) == zeros(sparse)


def test_beats_magnitude():
    torch.manual_seed(0)
    model = mlp(hidden=40)
    x = torch.cat(DATA) @ torch.randn(12, 12)  # correlated inputs
    sparse, _ = prune_weights(model, x.split(100), sparsity=0.7, samples=400)
    by_size = mlp(hidden=40)
    by_size.load_state_dict(model.state_dict())
    with torch.no_grad():
        cut = torch.cat([model[i].weight.abs().flatten() for i in (0, 2)]).quantile(0.7)
        for i in (0, 2):
            by_size[i].weight[by_size[i].weight.abs() <= cut] = 0
        errors = [(m(x) - model(x)).square().mean() for m in (sparse, by_size)]
    assert errors[0] < 0.8 * errors[1]


def test_elimination_is_the_exact_one():
    # Against one weight at a time, each time with the regression solved anew.
    torch.manual_seed(0)
    x = torch.randn(200, 6) @ torch.randn(6, 6)
    z = x @ torch.randn(6, 3) + torch.randn(200, 3)
    xx, xz = (x.T @ x / 200 + 0.01 * torch.eye(6)).double(), (x.T @ z / 200).double()
    inverse = torch.linalg.inv(xx)
    weight = (inverse @ xz).T.float()[:, None]
    supports = surviving(weight, inverse.float(), torch.tensor([2, 4, 6]))
    for row, keep in enumerate((2, 4, 6)):
        left = list(range(6))
        while len(left) > keep:
            block = torch.linalg.inv(xx[left][:, left])
            cost = (block @ xz[left, row]).square() / block.diagonal()
            left.pop(int(cost.argmin()))
        assert supports[row].tolist() == left


def test_convolutions_stay_dense_and_are_reported():
    model, x = case("cnn")
    data = torch.randn(200, *x.shape[1:]).split(50)
    sparse, layers = prune_weights(model, data, sparsity=0.5, samples=200)
    dense = {layer["name"]: layer["dense"] for layer in layers}
    assert dense == {"features.0": True, "features.4": True, "hidden": False, "head": False}
    assert torch.equal(sparse.features[0].weight, model.features[0].weight)


def test_tied_and_subclassed_layers_stay_dense_and_are_reported():
    class Own(nn.Linear):
        pass

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), Own(12, 12), nn.Linear(12, 4))
    model[1].weight = model[0].weight
    parametrizations.orthogonal(model.append(nn.Linear(4, 4))[4])
    _, layers = prune_weights(model, DATA, sparsity=0.5, samples=400)
    assert [layer["dense"] for layer in layers] == [True, True, True, False, True]
    assert [layer["name"] for layer in layers] == ["0", "1", "2", "3", "4"]
    assert [layer["after"] for layer in layers] == [144, 144, 144, 24, 16]


def test_ignored_layers_stay_dense():
    model = mlp()
    sparse, layers = prune_weights(
        model, DATA, sparsity=0.5, samples=400, ignored_layers=frozenset({"2"})
    )
    assert type(sparse[2]) is nn.Linear
    assert [layer["dense"] for layer in layers] == [False, True]


def test_refit_keeps_the_mask_and_lowers_the_divergence():
    torch.manual_seed(0)
    model, x = mlp(), torch.cat(DATA)

    def divergence(student):
        with torch.no_grad():
            p, q = model(x).log_softmax(1), student(x).log_softmax(1)
            return float((p.exp() * (p - q)).sum(1).mean())

    plain, refitted = (
        prune_weights(model, DATA, sparsity=0.7, samples=400, refit_outputs=refit)[0]
        for refit in (False, True)
    )
    assert torch.equal(plain[2].mask, refitted[2].mask)
    assert divergence(refitted) < divergence(plain)


def test_refusals():
    with pytest.raises(ValueError, match=r"sparsity must be in \(0, 1\), got 1"):
        prune_weights(mlp(), DATA, sparsity=1, samples=400)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(
        SimMIMError, match=r"no Linear layer to remove weights from, .* are Conv2d; "
    ):
        prune_weights(model, [torch.randn(4, 1, 6, 6)], sparsity=0.5, samples=4)


def test_inputs_that_say_nothing_are_no_obstacle():
    model = mlp()
    sparse, _ = prune_weights(model, [torch.full((100, 12), 3.0)], sparsity=0.9, samples=100)
    with torch.no_grad():
        assert torch.allclose(sparse(torch.full((1, 12), 3.0)), model(torch.full((1, 12), 3.0)))
    tiny = [torch.randn(400, 12) * 1e-12]
    sparse, _ = prune_weights(model, tiny, sparsity=0.5, samples=400)
    assert zeros(sparse) == 80


class Halves(nn.Module):
    """A layer whose halves two others read; of one half sparsity leaves nothing but biases."""

    def __init__(self):
        super().__init__()
        self.both, self.large, self.small = nn.Linear(12, 32), nn.Linear(16, 32), nn.Linear(16, 32)
        self.both.weight.data[16:] *= 0.1

    def forward(self, x):
        large, small = self.both(x).split(16, dim=1)
        return self.large(large) + self.small(small)


def test_inputs_that_vary_by_rounding_alone_say_nothing():
    blocks = Granularity.parse("block:16x1")
    for seed in range(16):
        torch.manual_seed(seed)
        model, data = Halves(), torch.randn(720, 12).split(144)
        sparse, _ = prune_weights(model, data, sparsity=0.6, samples=720, granularity=blocks)
        assert not sparse.both.mask[16:].any()
        assert sparse.small.weight.abs().max() < 1


class Repeated(nn.Module):
    """One layer under three names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        again = nn.Linear(12, 12)
        self.body, self.head = nn.ModuleList([again, again, again]), nn.Linear(12, 4)

    def forward(self, x):
        for layer in self.body:
            x = layer(x).relu()
        return self.head(x)


def test_a_layer_of_several_names_is_sparse_under_all(tmp_path):
    result = compress(
        Repeated(),
        calibration=DATA,
        constraints={"sparsity": 0.5},
        granularity="weight",
        config=CompressConfig(epochs=0),
    )
    assert isinstance(result.model.body[0], MaskedLinear)
    assert result.model.body[0] is result.model.body[1] is result.model.body[2]
    before, after = (result.report[who]["params"] for who in ("teacher", "student"))
    assert (before, after) == (12 * 12 + 12 * 4 + 16, (12 * 12 + 12 * 4) // 2 + 16)
    result.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", Repeated())
    assert loaded.body[0] is loaded.body[2]
    assert torch.equal(loaded(DATA[0]), result.model(DATA[0]))
    fast = accelerate(result.model)
    assert isinstance(fast.body[2], SparseLinear)
    assert torch.allclose(fast(DATA[0]), result.model(DATA[0]), atol=1e-5)


@pytest.mark.parametrize("granularity", ["weight", "block:2x3"])
def test_the_default_dtype_does_not_matter(granularity):
    torch.manual_seed(0)
    model = mlp(hidden=30)

    def masks():
        sparse, _ = prune_weights(
            model, DATA, sparsity=0.5, samples=400, granularity=Granularity.parse(granularity)
        )
        return sparse[0].mask, sparse[2].mask

    expected = masks()
    torch.set_default_dtype(torch.float64)
    try:
        found = masks()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


def test_a_model_that_is_a_linear_layer_is_told_what_to_give():
    with pytest.raises(SimMIMError, match=r"must not be a Linear .*; give nn.Sequential\(model\)"):
        prune_weights(nn.Linear(12, 4), DATA, sparsity=0.5, samples=400)


def test_a_layer_with_tensors_or_a_forward_of_its_own_stays_dense():
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)))
    model[0].register_buffer("scale", torch.ones(()))
    model[1].forward = lambda x: 2 * nn.Linear.forward(model[1], x)
    _, layers = prune_weights(model, DATA, sparsity=0.5, samples=400)
    assert [layer["dense"] for layer in layers] == [True, True, False]


@pytest.mark.parametrize("granularity", ["weight", "2:4", "block:2x2"])
def test_what_is_not_finite_is_named(granularity):
    options = {"sparsity": None if granularity == "2:4" else 0.5, "samples": 400}
    options["granularity"] = Granularity.parse(granularity)
    model = mlp(hidden=8)
    with pytest.raises(SimMIMError, match=r"inputs or outputs of '0' are not finite; check the d"):
        prune_weights(model, [*DATA[:3], DATA[3] * torch.nan], **options)
    huge, _ = prune_weights(model, [x * 1e20 for x in DATA], refit_outputs=True, **options)
    assert all(value.isfinite().all() for value in huge.parameters())
    with torch.no_grad():
        model[2].weight[1, 1] = torch.inf
    with pytest.raises(SimMIMError, match=r"the weights of '2' are not finite; check the model"):
        prune_weights(model, DATA, **options)
