import json

import pytest
import torch
from models import CASES, case, mlp, snapshot
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, load, prune, score
from simmim_ext.measure import count_bytes, count_flops, count_params

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


def data(name, samples=200):
    generator = torch.Generator().manual_seed(5)
    shape = (12,) if name == "mlp" else (1, 8, 8)
    return torch.randn(samples, *shape, generator=generator).split(64)


def scored(name, **options):
    model, _ = case(name)
    return model, score(model, data(name), **options)


COUNTS = {
    "params": lambda model, x: count_params(model),
    "flops": count_flops,
    "bytes": lambda model, x: count_bytes(model),
}


@pytest.mark.parametrize("budget", COUNTS)
@pytest.mark.parametrize("fraction", [0.3, 0.62])
@pytest.mark.parametrize("name", CASES)
def test_budgets_are_ceilings_nearly_reached(name, fraction, budget):
    model, scores = scored(name)
    x = data(name)[0]
    result = prune(model, scores, constraints={budget: fraction})
    limit = fraction * COUNTS[budget](model, x)
    spent = COUNTS[budget](result.model, x)
    assert 0.5 * limit < spent <= limit
    wider = []  # one more unit anywhere is too much
    for layer in result.report["layers"]:
        if layer["after"] < layer["before"]:
            kept = {entry["name"]: entry["after"] for entry in result.report["layers"]}
            kept[layer["name"]] += 1
            wider.append(COUNTS[budget](cut(model, scores, kept), x))
    assert all(count > limit for count in wider)


def cut(model, scores, widths):
    from simmim_ext.removal import remove_units

    kept = {name: scores.order[name][:width] for name, width in widths.items()}
    return remove_units(model, scores.groups, kept)[0]


@pytest.mark.parametrize(("value", "units"), [(0.5, 5), (0.39, 3), (7, 7), (1, 10), (1.0, 10)])
def test_units(value, units):
    model, scores = scored("mlp")
    result = prune(model, scores, constraints={"units": value})
    assert result.model[0].out_features == units
    kept = sorted(scores.order["0"][:units])
    assert torch.equal(result.model[0].weight, model[0].weight[kept])
    assert torch.equal(result.model[2].weight, model[2].weight[:, kept])


def test_all_constraints_hold_together():
    model, scores = scored("cnn")
    result = prune(model, scores, constraints={"params": 0.5, "units": 8, "flops": 0.9})
    assert sum(layer["after"] for layer in result.report["layers"]) <= 8
    assert count_params(result.model) <= 0.5 * count_params(model)


def test_latency_is_within_reach_or_refused():
    model = mlp(inputs=256, hidden=2048)
    x = [torch.randn(64, 256)]
    scores = score(model, x, criterion="magnitude_l2")
    for left in (2, 1, 0):  # a busy machine may not measure twice alike
        try:
            result = prune(model, scores, constraints={"latency": 0.6})
            break
        except SimMIMError:
            if not left:
                raise
    assert 1 < result.model[0].out_features < 2048
    with pytest.raises(SimMIMError, match=r"latency=0.0001 cannot be met"):
        prune(model, scores, constraints={"latency": 0.0001})


@pytest.mark.parametrize("allocation", ["information", "score", "uniform"])
def test_allocations(allocation):
    model, scores = scored("cnn")
    config = CompressConfig(allocation=allocation)
    result = prune(model, scores, constraints={"units": 0.5}, config=config)
    after = {layer["name"]: layer["after"] for layer in result.report["layers"]}
    assert sum(after.values()) == 11
    if allocation == "uniform":
        assert after == {"features.0": 3, "features.4": 4, "hidden": 4}


def test_caller_and_scores_are_untouched_and_report_is_json():
    model, scores = scored("cnn")
    model.train()
    before = snapshot(model)
    result = prune(model, scores, constraints={"units": 0.5}, calibration=data("cnn"))
    assert snapshot(model) == before
    assert result.model.training
    report = json.loads(json.dumps(result.report))
    assert set(report) >= {"teacher", "student", "fidelity", "layers", "config", "versions"}
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["measure", "prune", "reconstruct", "compare"]
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert report["student"]["params"] < report["teacher"]["params"]
    assert report["fidelity"]["data"] == "calibration samples that reconstruction did not see"
    for layer in report["layers"]:
        assert 0 < layer["information"] <= 1


@pytest.mark.parametrize("criterion", ["simmim", "relevance"])
def test_reported_information_is_the_share_that_the_kept_units_carry(criterion):
    model, x = mlp(), data("mlp")
    scores = score(model, x, criterion=criterion)
    result = prune(model, scores, constraints={"units": 0.4})
    (layer,) = result.report["layers"]
    kept = layer["kept"]
    if criterion == "simmim":
        dropped = [unit for unit in range(layer["before"]) if unit not in kept]
        lost = max(float(scores[layer["name"]][unit]) for unit in dropped)
        expected = 1 - lost / float(scores[layer["name"]].max())
    else:
        own = scores.information[layer["name"]]
        expected = float(own[kept].sum() / own.sum())
        assert layer["unit_information"] == own.tolist()
    assert 0 < layer["information"] < 1
    assert layer["information"] == pytest.approx(expected, abs=1e-6)


def test_reports_have_the_same_figures_without_calibration():
    model, scores = scored("mlp")
    bare, full = (
        prune(model, scores, constraints={"units": 0.5}, calibration=calibration).report
        for calibration in (None, data("mlp"))
    )
    assert bare["fidelity"] is bare["latency"] is None
    assert bare.keys() == full.keys()
    for role in ("teacher", "student"):
        assert bare[role].keys() == full[role].keys()
        assert bare[role]["params"] == full[role]["params"]
        assert bare[role]["latency_ms"] is bare[role]["predictive_information"] is None


def test_calibration_improves_fidelity():
    model, scores = scored("mlp")
    raw, fitted = (
        prune(
            model,
            scores,
            constraints={"units": 0.5},
            calibration=data("mlp", 500),
            config=CompressConfig(reconstruct=reconstruct),
        )
        for reconstruct in (False, True)
    )
    assert fitted.report["fidelity"]["kl"] < 0.9 * raw.report["fidelity"]["kl"]


def test_saves_and_loads(tmp_path):
    model, scores = scored("cnn")
    result = prune(model, scores, constraints={"params": 0.4})
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", case("cnn")[0])
    x = data("cnn")[0]
    assert torch.equal(again.eval()(x), result.model.eval()(x))


def test_ignored_layers_keep_their_units():
    model, scores = scored("cnn")
    result = prune(model, scores, constraints={"units": 0.5}, ignored_layers=[model.hidden])
    assert result.model.hidden.out_features == 9
    assert [layer["name"] for layer in result.report["layers"]] == ["features.0", "features.4"]


def test_scores_of_ones_own():
    model, _ = case("mlp")
    x = data("mlp")[0]
    own = {"0": torch.arange(10)}
    config = CompressConfig(allocation="score")
    result = prune(model, own, constraints={"units": 3}, example_inputs=x, config=config)
    assert torch.equal(result.model[0].weight, model[0].weight[[7, 8, 9]])
    tied = prune(
        model, {"0": [1.0] * 10}, constraints={"units": 3}, example_inputs=x, config=config
    )
    assert torch.equal(tied.model[0].weight, model[0].weight[:3])


def test_scores_of_ones_own_where_a_layer_that_cannot_be_traced_is_ignored():
    class Unused(nn.Sequential):
        def forward(self, x):
            for layer in list(self)[:5]:
                x = layer(x)
            return x

    model = Unused(*mlp(), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 3))
    result = prune(
        model,
        {"0": torch.arange(10), "2": torch.arange(4)},
        constraints={"units": 3},
        ignored_layers=["2", "5"],
        example_inputs=data("mlp")[0],
        config=CompressConfig(allocation="score"),
    )
    assert [layer["after"] for layer in result.report["layers"]] == [3]


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"0": torch.full((10,), torch.nan)}, "10 finite values for '0', got nan among them"),
        ({"0": torch.ones(9)}, r"got a tensor of shape \[9\]"),
        ({}, "got none"),
        ({"0": torch.ones(10), "2": torch.ones(4)}, "scores hold '2', which is no layer of units"),
    ],
)
def test_scores_that_do_not_fit_are_refused(own, text):
    config = CompressConfig(allocation="score")
    with pytest.raises(SimMIMError, match=text):
        prune(mlp(), own, constraints={"units": 3}, example_inputs=data("mlp")[0], config=config)


def test_refusals():
    model, scores = scored("mlp")
    with pytest.raises(ValueError, match="need example_inputs"):
        prune(model, {"0": torch.ones(10)}, constraints={"units": 3})
    with pytest.raises(ValueError, match="allocation='information' needs scores from score"):
        prune(model, {"0": torch.ones(10)}, constraints={"units": 3}, example_inputs=data("mlp")[0])
    with pytest.raises(ValueError, match="allocation must be one of information, score, uniform"):
        config = CompressConfig(allocation="best")
        prune(model, scores, constraints={"units": 3}, config=config)
    with pytest.raises(ValueError, match="round_to must be an integer of at least 1, got 0"):
        prune(model, scores, constraints={"units": 3}, round_to=0)
    with pytest.raises(SimMIMError, match=r"params=0.01 cannot be met: .* 21 of 174 \(0.121\)"):
        prune(model, scores, constraints={"params": 0.01})
    with pytest.raises(SimMIMError, match=r"units=0.01 cannot be met: .* 1 of 10 \(0.1\)"):
        prune(model, scores, constraints={"units": 0.01})
    with pytest.raises(SimMIMError, match=r"units=0.3 cannot be met: .*, lower round_to=4, or "):
        prune(model, scores, constraints={"units": 0.3}, round_to=4)
    with pytest.raises(SimMIMError, match="no units that can be removed"):
        prune(model, scores, constraints={"units": 3}, ignored_layers=["0"])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: mlp(hidden=6), "'0' has 10 channels on axis 'out', and this one's has 6"),
        (lambda: mlp(hidden=14), "'0' has 10 channels on axis 'out', and this one's has 14"),
        (lambda: nn.Sequential(nn.Linear(12, 10), nn.ReLU()), "'2' .* 'in', .* has none"),
    ],
)
def test_scores_of_another_model_are_refused(other, text):
    _, scores = scored("mlp")
    with pytest.raises(SimMIMError, match=f"prune: scores are of another model, whose {text}"):
        prune(other(), scores, constraints={"units": 3})


def test_widths_are_multiples():
    model = nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    result = prune(model, score(model, data("mlp")), constraints={"units": 0.6}, round_to=8)
    assert all(layer["after"] % 8 == 0 for layer in result.report["layers"])
    assert sum(layer["after"] for layer in result.report["layers"]) == 32


def test_prune_does_not_depend_on_the_callers_inference_mode():
    model, scores = scored("cnn")
    expected = prune(model, scores, constraints={"units": 0.5}, calibration=data("cnn"))
    with torch.inference_mode():
        found = prune(model, scores, constraints={"units": 0.5}, calibration=data("cnn"))
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.is_inference()


def test_of_units_that_cannot_be_removed_the_layer_is_named():
    class Scaled(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4))
            self.register_buffer("scale", torch.rand(8))

        def forward(self, x):
            return self[3](self[2](self[1](self[0](x))) * self.scale)

    scores = {"0": torch.rand(16), "2": torch.rand(8)}
    config = CompressConfig(allocation="uniform")
    options = {"constraints": {"units": 0.5}, "example_inputs": data("mlp")[0], "config": config}
    with pytest.raises(SimMIMError, match=r"its forward fails .*; already the units of '2', remov"):
        prune(Scaled(), scores, **options)
    result = prune(Scaled(), scores, **options, ignored_layers=["2"])
    assert result.model[2].in_features == 8


def test_a_budget_that_cannot_be_met_is_refused_before_layers_are_tried(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("begun")

    monkeypatch.setattr("simmim_ext.pruning.measured", work)
    model, scores = scored("cnn")
    with pytest.raises(SimMIMError, match="params=1e-05 cannot be met"):
        prune(model, scores, constraints={"params": 1e-5}, calibration=data("cnn"))
