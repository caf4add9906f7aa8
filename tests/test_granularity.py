"""Patterns of weights: exactly as asked for, by information, and fast in the end."""

import re

import pytest
import torch
from models import mlp
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.elimination import surviving
from simmim_ext.granularity import Granularity
from simmim_ext.nn import MaskedLinear, accelerate
from simmim_ext.nn.pattern import recognise
from simmim_ext.schedule import sparsities
from simmim_ext.weights import prune_weights

DATA = torch.randn(400, 12, generator=torch.Generator().manual_seed(5)).split(100)


def wide(inputs=256, outputs=256):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 4))


def pruned(model, granularity, data=DATA, sparsity=None, **options):
    granularity = Granularity.parse(granularity)
    return prune_weights(
        model, data, sparsity=sparsity, samples=400, granularity=granularity, **options
    )


def regression(inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(200, inputs) @ torch.randn(inputs, inputs)
    z = x @ torch.randn(inputs, outputs) + torch.randn(200, outputs)
    xx, xz = (x.T @ x / 200 + 0.01 * torch.eye(inputs)).double(), (x.T @ z / 200).double()
    return xx, xz, torch.linalg.inv(xx)


def test_elimination_of_blocks_is_the_exact_one():
    # Against one block of two inputs at a time, each time with the regression solved anew.
    xx, xz, inverse = regression(10, 6)
    stripes = (inverse @ xz).T.float().view(2, 3, 10)
    found = surviving(stripes, inverse.float(), torch.tensor([2, 3]), columns=2)
    for stripe, keep in enumerate((2, 3)):
        left, targets = list(range(5)), xz[:, 3 * stripe : 3 * stripe + 3]
        while len(left) > keep:
            columns = [c for b in left for c in (2 * b, 2 * b + 1)]

            def loss(block, columns=columns, targets=targets):
                kept = [c for c in columns if c // 2 != block]
                fit = torch.linalg.solve(xx[kept][:, kept], targets[kept])
                return -float((fit * targets[kept]).sum())

            left.remove(min(left, key=loss))
        assert found[stripe].tolist() == left


def test_elimination_keeps_n_of_m_and_is_the_exact_one():
    xx, xz, inverse = regression(8, 3)
    weight = (inverse @ xz).T.float()[:, None]
    found = surviving(weight, inverse.float(), torch.full((3,), 4), keep=(2, 4))
    for row in range(3):
        left = list(range(8))
        while len(left) > 4:
            block = torch.linalg.inv(xx[left][:, left])
            cost = (block @ xz[left, row]).square() / block.diagonal()
            free = [i for i, c in enumerate(left) if sum(o // 4 == c // 4 for o in left) > 2]
            left.pop(min(free, key=lambda i: float(cost[i])))
        assert found[row].tolist() == left


@pytest.mark.parametrize(("name", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:6", 3, 6)])
def test_exactly_n_of_every_m_are_kept(name, n, m):
    model = mlp(12, 24)
    with torch.no_grad():
        model[0].weight[3] = 0  # a row that says nothing keeps its pattern all the same
        model[0].bias[3] = 0
    sparse, layers = pruned(model, name)
    for layer in (sparse[0], sparse[2]):
        assert bool((layer.mask.view(-1, m).sum(1) == n).all())
    assert [(x["before"], x["after"]) for x in layers] == [(288, 288 * n // m), (96, 96 * n // m)]


@pytest.mark.parametrize(
    ("rows", "columns", "sizes"), [(16, 1, (256, 64)), (4, 3, (50, 22)), (8, 5, (7, 18))]
)
def test_blocks_go_whole_and_are_smaller_at_the_ends(rows, columns, sizes):
    torch.manual_seed(0)
    outputs, inputs = sizes
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 4))
    data = torch.randn(400, inputs).split(100)
    sparse, layers = pruned(
        model, f"block:{rows}x{columns}", data, 0.7, ignored_layers=frozenset({"2"})
    )
    mask = sparse[0].mask
    for row in range(0, outputs, rows):
        for column in range(0, inputs, columns):
            block = mask[row : row + rows, column : column + columns]
            assert block.all() or not block.any()
    total = outputs * inputs
    removed = total - int(mask.sum())
    short = -(-outputs // rows) * rows * (-inputs % columns)  # one may stay where one may be whole
    assert 0.7 * total <= removed < 0.7 * total + rows * columns + short
    assert layers[0]["after"] == int(mask.sum())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.8])
def test_a_budget_is_met_as_nearly_as_the_smallest_blocks_allow(sparsity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    sparse, _ = pruned(model, "block:8x8", torch.randn(400, 16).split(100), sparsity)
    kept = [int(sparse[i].mask.sum()) for i in (0, 2)]
    assert min(kept) > 0
    room = int((1 - sparsity) * (16 * 32 + 32 * 5)) - sum(kept)
    assert 0 <= room < 5 * 8  # a block of the last layer


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("block:64x64", {"sparsity": 0.7}, r"leaves 163 weights, and one block .* takes 544 \(384"),
        ("block:8x8", {"sparsity": 0.9}, r"leaves 54 weights, .* takes 104 \(64 in '0'\)"),
        ("weight", {"per_layer": {"0": 0.999}}, r"leaves 0 weights, .* takes 1 \(1 in '0'\)"),
    ],
)
def test_a_sparsity_that_would_cut_off_a_layer_names_it(name, options, text):
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
    with pytest.raises(SimMIMError, match=text + r".*; choose smaller .* put '0' in ignored_lay"):
        pruned(model, name, **options)


@pytest.mark.parametrize("name", ["2:4", "block:4x2"])
def test_beats_the_largest_magnitudes_of_the_same_pattern(name):
    torch.manual_seed(0)
    model = mlp(hidden=40)
    x = torch.cat(DATA) @ torch.randn(12, 12)  # correlated inputs
    sparsity = None if name == "2:4" else 0.3
    sparse, _ = pruned(model, name, x.split(100), sparsity, ignored_layers=frozenset({"2"}))
    weight = model[0].weight.detach()
    if name == "2:4":
        kept = weight.abs().view(40, 3, 4).argsort(2).argsort(2).ge(2).view(40, 12)
    else:
        size = weight.square().view(10, 4, 6, 2).sum((1, 3))
        kept = size >= size.quantile(0.3)
        kept = kept.repeat_interleave(4, 0).repeat_interleave(2, 1)
    by_size = mlp(hidden=40)
    by_size.load_state_dict(model.state_dict())
    with torch.no_grad():
        by_size[0].weight.mul_(kept)
        errors = [(m(x) - model(x)).square().mean() for m in (sparse, by_size)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("name", "sparsity", "pattern"),
    [("block:16x1", 0.9, "block 16x1"), ("block:32x2", 0.9, "block 16x1"), ("1:16", None, "1:16")],
)
def test_accelerate_takes_the_kernel_for_the_pattern(name, sparsity, pattern):
    model = wide()
    x = torch.randn(600, 256)
    sparse, _ = pruned(model, name, x.split(200), sparsity, ignored_layers=frozenset({"2"}))
    assert recognise(sparse[0].mask).name == pattern
    fast = accelerate(sparse.eval())
    assert "dense" not in [kernel for _, kernel in fast[0].choice.kernels]
    assert (fast[0].choice.kernel(1) == "block") == name.startswith("block")
    assert torch.allclose(fast(x), sparse(x), atol=1e-4)


def test_a_layer_without_a_bias_is_fitted_through_the_origin():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(400, 12) + 2
    sparse, _ = prune_weights(model, x.split(100), sparsity=0.3, samples=400)
    with torch.no_grad():
        error = (sparse[0](x) - model[0](x)).square().mean() / model[0](x).square().mean()
    assert sparse[0].bias is None
    assert error < 0.02


@pytest.mark.parametrize("name", ["2:4", "block:4x1"])
def test_compress_ends_in_the_pattern_and_loads(name, tmp_path):
    x = torch.randn(1200, 12, generator=torch.Generator().manual_seed(1))
    result = compress(
        mlp(hidden=40),
        calibration=[x],
        granularity=name,
        constraints={"sparsity": 0.5},
        config=CompressConfig(epochs=2),
    )
    mask = result.model[0].mask
    parts = mask.view(-1, 4) if name == "2:4" else mask.view(10, 4, 12).transpose(1, 2)
    assert set(parts.sum(-1).flatten().tolist()) == ({2} if name == "2:4" else {0, 4})
    assert result.report["granularity"] == name
    assert sum(layer["after"] for layer in result.report["layers"]) == 40 * 12 // 2 + 40 * 4 // 2
    result.save(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", mlp(hidden=40))(x), result.model(x))


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
@pytest.mark.parametrize(
    ("name", "constraints"),
    [
        ("weight", {"sparsity": 0.9}),
        ("weight", {"per_layer": {"0": 0.5, "2": 0.0}}),
        ("block:4x1", {"sparsity": 0.75}),
        ("1:4", {}),
    ],
)
def test_gradual_schedules_end_where_one_shot_does(schedule, name, constraints, tmp_path):
    model, settings = mlp(), {"calibration": DATA, "granularity": name, "constraints": constraints}
    ignored = {"ignored_layers": ["2"]} if name == "1:4" else {}
    config = CompressConfig(epochs=6, schedule=schedule, steps=3)
    gradual = compress(model, **settings, **ignored, config=config, checkpoint_dir=tmp_path / "c")
    at_once = compress(model, **settings, **ignored, config=CompressConfig(epochs=0))
    assert gradual.report["student"]["params"] == at_once.report["student"]["params"]
    sizes = [
        {k: layer[k] for k in ("name", "before", "dense")} for layer in at_once.report["layers"]
    ]
    assert sizes == [
        {k: layer[k] for k in ("name", "before", "dense")} for layer in gradual.report["layers"]
    ]
    assert len(gradual.report["training"]) == 6
    assert [stage["name"] for stage in gradual.report["stages"]].count("prune") == 3
    rows = [
        {n: m.mask.sum(1).tolist() for n, m in result.model.named_modules() if hasattr(m, "mask")}
        for result in (gradual, at_once)
    ]
    assert rows[0] == rows[1]  # rows are not cut off for weights that training made small
    gradual.save(tmp_path / "saved")
    x = DATA[0]
    assert torch.equal(load(tmp_path / "saved", mlp())(x), gradual.model(x))
    resumed = compress(model, **settings, **ignored, config=config, checkpoint_dir=tmp_path / "c")
    assert torch.equal(resumed.model(x), gradual.model(x))


@pytest.mark.parametrize("epoch", range(1, 7))
def test_a_schedule_goes_on_from_any_step(epoch, tmp_path):
    class Stopping:
        """Batches that Ctrl-C ends in that epoch."""

        def __init__(self):
            self.left = epoch

        def __len__(self):
            return len(DATA)

        def __iter__(self):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            yield from DATA

    model, config = mlp(), CompressConfig(epochs=6, schedule="cubic", steps=3)
    settings = {"calibration": DATA, "granularity": "weight", "constraints": {"sparsity": 0.8}}
    unbroken = compress(model, train=DATA, **settings, config=config)
    folder = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        compress(model, train=Stopping(), **settings, config=config, checkpoint_dir=folder)
    resumed = compress(model, train=DATA, **settings, config=config, checkpoint_dir=folder)
    assert resumed.report["layers"] == unbroken.report["layers"]
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("schedule", "kept"), [("iterative", [93, 54, 32]), ("cubic", [69, 36, 32])]
)
def test_every_step_keeps_what_the_schedule_says(schedule, kept, monkeypatch):
    seen = []

    def watched(*args, **options):
        student, layers = prune_weights(*args, **options)
        seen.append(sum(layer["after"] for layer in layers))
        return student, layers

    monkeypatch.setattr("simmim_ext.stages.prune_weights", watched)
    config = CompressConfig(epochs=0, schedule=schedule, steps=3)
    settings = {"granularity": "weight", "constraints": {"sparsity": 0.8}, "config": config}
    compress(mlp(), calibration=DATA, **settings)
    assert seen == kept


def test_a_masked_layer_that_is_ignored_stays_masked_through_a_schedule():
    model = mlp()
    mask = torch.rand(model[2].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    model[2] = MaskedLinear.from_linear(model[2], mask)
    config = CompressConfig(epochs=2, schedule="iterative", steps=2)
    settings = {"granularity": "weight", "constraints": {"sparsity": 0.5}, "config": config}
    result = compress(model, calibration=DATA, ignored_layers=["2"], **settings)
    assert isinstance(result.model[2], MaskedLinear)
    assert torch.equal(result.model[2].mask, mask)


@pytest.mark.parametrize(
    ("name", "kept"), [("2:4", [4, 3, 2]), ("1:4", [3, 2, 1]), ("4:8", [7, 6, 4])]
)
def test_n_of_m_on_the_way(name, kept):
    granularity = Granularity.parse(name)
    steps = sparsities({}, "iterative", 3, granularity.sparsity)
    assert [granularity.at(step["sparsity"]).keep[0] for step in steps] == kept


def test_layers_with_a_sparsity_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.Linear(20, 4))
    data = torch.randn(400, 12).split(100)

    def kept(**options):
        sparse, _ = pruned(model, "weight", data, **options)
        return [
            int(sparse[i].mask.sum()) if isinstance(sparse[i], MaskedLinear) else None
            for i in (0, 2, 3)
        ]

    assert kept(per_layer={"0": 0.5}) == [240, None, None]
    alone = kept(sparsity=0.7, per_layer={"0": 0.5, "3": 0.0})
    assert alone[0] == 240
    assert alone[2] is None
    assert 480 + 800 + 80 - (240 + alone[1] + 80) == round(0.7 * (480 + 800 + 80))
    with pytest.raises(SimMIMError, match=r"sparsity=0.9 cannot be met: per_layer leaves 80 wei"):
        kept(sparsity=0.9, per_layer={"[02]": 0.5})
    with pytest.raises(SimMIMError, match=r"per_layer holds '5', which is no layer that can be"):
        kept(per_layer={"5": 0.5})


@pytest.mark.parametrize(
    ("granularity", "constraints", "text"),
    [
        ("n:m", {"sparsity": 0.5}, r"\"n:m\" as \"2:4\", .* got 'n:m'"),
        ("4:4", {}, r"\(n < m\), got '4:4'"),
        ("block:0x1", {"sparsity": 0.5}, r"got 'block:0x1'"),
        (4, {"sparsity": 0.5}, r"granularity must be one of .* got 4"),
        (
            "2:4",
            {"sparsity": 0.7},
            r"makes the sparsity 0.5; constraints must be {'sparsity': 0.5}",
        ),
        ("2:4", {"units": 0.7}, r"makes the sparsity 0.5; constraints must be"),
        ("weight", {}, r'with granularity="weight" constraints must be {"sparsity": fraction of'),
        ("block:4x1", {"sparsity": 1.0}, r'granularity="block:4x1" constraints must be'),
        ("weight", {"per_layer": {"0": 1}}, r"per_layer\['0'\] must be a fraction of weights rem"),
        ("weight", {"per_layer": []}, r"per_layer must be a dict of layer names or patterns"),
    ],
)
def test_budgets_that_cannot_be_meant(granularity, constraints, text):
    with pytest.raises(ValueError, match=text):
        compress(mlp(), calibration=DATA, granularity=granularity, constraints=constraints)


def test_refusals():
    settings = {"calibration": DATA, "constraints": {"sparsity": 0.5}, "granularity": "2:4"}
    with pytest.raises(SimMIMError, match=r"^compress: the model must not be a Linear layer"):
        compress(nn.Linear(12, 4), **settings)
    text = "granularity='2:4': the 10 inputs of '2' are no multiple of 4; put it in ignored_layers"
    with pytest.raises(SimMIMError, match=re.escape(text)):
        pruned(mlp(), "2:4")
    with pytest.raises(ValueError, match=r"round_to is for units, and granularity='2:4' has none"):
        compress(mlp(), **settings, round_to=8)


@pytest.mark.parametrize(
    ("setting", "default"),
    [
        ({"criterion": "magnitude_l1"}, "simmim"),
        ({"allocation": "uniform"}, "information"),
        ({"reconstruct": False}, True),
    ],
)
def test_settings_of_units_are_refused_for_weights(setting, default):
    [(name, value)] = setting.items()
    text = (
        f"compress: {name} is for units, and granularity='weight' has none; leave it at "
        f"{default!r}, got {value!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        compress(
            mlp(),
            calibration=DATA,
            constraints={"sparsity": 0.5},
            granularity="weight",
            config=CompressConfig(**setting),
        )
