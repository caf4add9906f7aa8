import copy
import json

import pytest
import torch
from models import CASES, case, mlp, snapshot
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, prune
from simmim_ext.equivalence import check_mask_equivalence
from simmim_ext.graph import trace_units
from simmim_ext.removal import apply_history, remove_units

X = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))


def half(groups):
    generator = torch.Generator().manual_seed(1)
    return {
        group.name: torch.randperm(group.units, generator=generator)[: group.units // 2]
        for group in groups
    }


@pytest.mark.parametrize("name", CASES)
def test_equals_the_model_with_zeroed_units_and_replays(name):
    model, x = case(name)
    groups = trace_units(model, x)
    pruned, history = remove_units(model, groups, half(groups))
    check_mask_equivalence(model, pruned, history, x)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())

    torch.manual_seed(99)
    other = type(model)() if name != "mlp" else mlp()
    fresh = apply_history(other, json.loads(json.dumps(history)))
    fresh.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), pruned.eval()(x))


@pytest.mark.parametrize("name", CASES)
def test_flags_modes_and_the_callers_model(name):
    model, x = case(name)
    model.double().train()
    model.get_submodule("0" if name == "mlp" else "head").eval()
    first = next(iter(dict(model.named_parameters())))
    model.get_parameter(first).requires_grad_(False)
    model(x.double()).sum().backward()
    before = snapshot(model)
    groups = trace_units(model, x.double())
    pruned, _ = remove_units(model, groups, half(groups))
    assert snapshot(model) == before
    assert {n: m.training for n, m in pruned.named_modules()} == before[2]
    for parameter_name, parameter in pruned.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.grad is None
        assert parameter.requires_grad == (parameter_name != first)


def test_keeps_everything_that_is_not_named():
    model, x = case("cnn")
    groups = trace_units(model, x)
    pruned, history = remove_units(model, groups, {})
    assert history == []
    assert pruned is not model
    pruned, history = remove_units(model, groups, {groups[1].name: [0, 3]})
    assert {(step["module"], step["axis"]) for step in history} == {
        ("features.4", "out"),
        ("features.5", "out"),
        ("hidden", "in"),
    }
    assert pruned.features[4].weight.shape == (2, 6, 3, 3)
    assert pruned.hidden.weight.shape == (9, 8)


def test_order_of_kept_units_does_not_matter():
    model, x = case("mlp")
    groups = trace_units(model, x)
    a, history = remove_units(model, groups, {"0": [7, 2, 5]})
    b, same = remove_units(model, groups, {"0": torch.tensor([2, 5, 7])})
    assert history == same
    assert torch.equal(a[0].weight, model[0].weight[[2, 5, 7]])
    assert torch.equal(a[0].weight, b[0].weight)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"0": []}, "'0' must keep at least one unit, got none"),
        ({"0": [1, 1]}, r"must be distinct and within 0..9, got \[1, 1\]"),
        ({"0": [10]}, r"must be distinct and within 0..9, got \[10\]"),
        ({"0": [-1]}, r"must be distinct and within 0..9, got \[-1\]"),
        ({"nowhere": [0]}, "'nowhere' is no group of units"),
    ],
)
def test_bad_units_are_refused(kept, text):
    model, x = case("mlp")
    with pytest.raises(SimMIMError, match=text):
        remove_units(model, trace_units(model, x), kept)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"module": "9"}, "no layer '9' whose 'out' axis can shrink"),
        ({"axis": "up"}, "no layer '0' whose 'up' axis can shrink"),
        ({"module": "1"}, "no layer '1' whose 'out' axis can shrink"),
        ({"size": 11}, "has 10 channels, the history expects 11"),
        ({"kept": []}, "must be increasing and within 0..9"),
        ({"kept": [3, 1]}, "must be increasing and within 0..9"),
        ({"kept": [3, 10]}, "must be increasing and within 0..9"),
    ],
)
def test_history_of_another_model_is_refused(change, text):
    step = {"module": "0", "axis": "out", "size": 10, "kept": [1, 2]} | change
    with pytest.raises(SimMIMError, match=text):
        apply_history(mlp(), [step])


@pytest.mark.parametrize("name", CASES)
def test_one_wrong_index_is_found(name):
    model, x = case(name)
    groups = trace_units(model, x)
    _, history = remove_units(model, groups, half(groups))
    for i, step in enumerate(history):
        if step["axis"] != "in":
            continue
        wrong = copy.deepcopy(history)
        gone = min(set(range(step["size"])) - set(step["kept"]))
        wrong[i]["kept"] = sorted([*step["kept"][1:], gone])
        with pytest.raises(SimMIMError, match="removed at the wrong place"):
            check_mask_equivalence(model, apply_history(model, wrong), history, x)


def test_model_that_no_longer_runs_is_found():
    model, x = case("mlp")
    broken = apply_history(model, [{"module": "0", "axis": "out", "size": 10, "kept": [1, 2]}])
    with pytest.raises(
        SimMIMError, match="the pruned model does not run: '2' fails .mat1 and mat2"
    ):
        check_mask_equivalence(model, broken, [], x)


class Fixed(nn.Module):
    """A hidden layer of 8 units, after a function of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(12, 8), nn.Linear(8, 5), function

    def forward(self, x):
        return self.b(self.a(self.function(x)))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (nn.functional.dropout, "outputs differ from call to call in eval mode, as by F.dropout"),
        (torch.log, "outputs for example_inputs are not finite, so no removal of units can be"),
    ],
)
def test_models_whose_outputs_cannot_be_compared_are_told_so(function, text):
    model, (_, x) = Fixed(function), case("mlp")
    pruned, history = remove_units(model, trace_units(model, x), {"a": [1, 2, 3]})
    with pytest.raises(SimMIMError, match=text):
        check_mask_equivalence(model, pruned, history, x)
    scores = {"a": torch.arange(8.0)}
    config = CompressConfig(epochs=0, allocation="uniform")
    with pytest.raises(SimMIMError, match=text + "[^;]*;[^;]*$"):  # no layer is the cause
        prune(model, scores, constraints={"units": 0.5}, example_inputs=x, config=config)


class WithAnother(nn.Module):
    """Has another head in training."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.other = nn.Linear(12, 8), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return (self.head(x), self.other(x)) if self.training else self.head(x)


def test_a_head_of_training_alone_is_found_where_the_model_is_in_training():
    model, x = WithAnother(), case("mlp")[1]
    groups = trace_units(model, x, ignored_layers=["other"])
    pruned, history = remove_units(model, groups, {"a": [1, 2, 3]})
    text = "does not run in training mode: 'other' fails .*; put the layers that make what it reads"
    with pytest.raises(SimMIMError, match=text):
        check_mask_equivalence(model, pruned, history, x)
    check_mask_equivalence(model.eval(), pruned.eval(), history, x)


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_a_head_of_training_alone_is_found_where_the_model_will_be_distilled():
    settings = {"constraints": {"units": 0.5}, "ignored_layers": ["other"], "calibration": [X]}
    with pytest.raises(SimMIMError, match="does not run in training mode: 'other' fails"):
        compress(WithAnother().eval(), config=CompressConfig(epochs=1), **settings)
    compress(WithAnother().eval(), config=CompressConfig(epochs=0), **settings)


def test_shapes_of_all_that_is_returned_are_compared():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 5)

        def forward(self, x):
            x = self.a(x)
            return self.b(x), x.detach()

    model, x = Detached(), case("mlp")[1]
    pruned, history = remove_units(model, trace_units(model, x), {"a": [1, 2, 3]})
    text = (
        r"returns a tensor of shape \[7, 3\] among others, and the original one of shape \[7, 8\];"
    )
    with pytest.raises(SimMIMError, match=text):
        check_mask_equivalence(model, pruned, history, x)


def test_layer_norm_keeps_the_order_of_channels():
    # torch-pruning leaves these in the order of a Python set: 8, 1 here.
    model = nn.Sequential(nn.Linear(4, 40), nn.LayerNorm(40), nn.Linear(40, 2))
    nn.init.normal_(model[1].weight)
    groups = trace_units(model, torch.randn(3, 4))
    pruned, _ = remove_units(model, groups, {"0": [1, 8, 33]})
    assert torch.equal(pruned[1].weight, model[1].weight[[1, 8, 33]])
    assert pruned[1].normalized_shape == (3,)


def test_groups_of_a_larger_model_are_refused():
    model, x = case("mlp")
    groups = trace_units(model, x)
    smaller, _ = remove_units(model, groups, {"0": [1, 2]})
    with pytest.raises(SimMIMError, match="'0' has 2 channels, the groups were traced on a model"):
        remove_units(smaller, groups, {"0": [0, 1]})
