"""Schedules: budgets of steps, which lead to what was asked for, or are refused at once."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import kept_widths, mlp, two_hidden
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, prune
from simmim_ext.graph import trace_units
from simmim_ext.measure import count_bytes, count_flops, count_params
from simmim_ext.plan import check_reachable
from simmim_ext.schedule import budgets

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
TANH = nn.Tanh()
X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_schedules_lead_to_the_layers_own_width(schedule):
    config = CompressConfig(epochs=3, schedule=schedule, steps=3)
    constraints = {"per_layer": {"0": 0.25}, "units": 0.4}
    result = compress(two_hidden(), calibration=[X], constraints=constraints, config=config)
    assert kept_widths(result) == {"0": 10, "2": 14}


def test_steps_of_a_layers_own_budget():
    steps = budgets({"per_layer": {"a": 0.25}}, {"per_layer": {"a": 400}}, "iterative", 2)
    assert steps == [{"per_layer": {"a": 200}}, {"per_layer": {"a": 100}}]


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
@pytest.mark.parametrize("constraints", [{"units": 1 / 49}, {"per_layer": {"0": 1 / 49}}])
def test_schedules_lead_down_to_a_single_unit(constraints, schedule):
    config = CompressConfig(epochs=0, schedule=schedule, steps=4)
    result = compress(mlp(hidden=49), calibration=[X], constraints=constraints, config=config)
    assert kept_widths(result) == {"0": 1}


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_layers_down_to_one_unit_still_count(schedule, steps):
    """Of four steps the last finds no units left to remove."""
    torch.manual_seed(0)
    layers = (nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    config = CompressConfig(epochs=0, schedule=schedule, steps=steps)
    settings = {"calibration": [X], "config": config}
    result = compress(nn.Sequential(*layers), constraints={"units": 0.25}, **settings)
    assert [result.model[i].out_features for i in (0, 2)] == [1, 1]
    assert kept_widths(result) == {"0": 1, "2": 1}
    assert [layer["before"] for layer in result.report["layers"]] == [3, 5]


@pytest.mark.parametrize("schedule", ["one-shot", "iterative", "cubic"])
@pytest.mark.parametrize(
    ("constraints", "text"),
    [
        ({"units": 0.01}, "units=0.01 .* has 2 of 40"),
        ({"params": 20}, "params=20 .* has 23 of 764"),
        ({"flops": 0.01}, "flops=0.01 .* has 34 of 1440"),
        ({"bytes": 80}, "bytes=80 .* has 92 of 3056"),
        ({"units": 0.5, "per_layer": {"0": 20}}, "units=0.5 .* has 21 of 40"),
        ({"flops": 0.9, "params": 20}, "params=20 .* has 23 of 764"),
    ],
)
def test_what_the_least_widths_exceed_is_refused_at_once(constraints, text, schedule, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("begun")

    monkeypatch.setattr("simmim_ext.stages.score_groups", work)
    model = nn.Sequential(*(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU()))
    model.append(nn.Linear(20, 4))
    steps = 1 if schedule == "one-shot" else 3
    config = CompressConfig(epochs=0, schedule=schedule, steps=steps)
    with pytest.raises(SimMIMError, match=f"constraints: {text}"):
        compress(model, calibration=[X], constraints=constraints, config=config)


def dense(sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(layer for size in pairwise(sizes) for layer in (nn.Linear(*size), TANH)))


def cost(model, budget):
    if budget == "units":
        return sum(layer.out_features for layer in model[:-2:2])
    count = {"params": count_params, "bytes": count_bytes, "flops": count_flops}[budget]
    return count(model, X[:1]) if budget == "flops" else count(model)


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
@settings(max_examples=8, deadline=None)
@given(
    hidden=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    budget=st.sampled_from(["units", "params", "flops", "bytes"]),
    steps=st.integers(2, 4),
    share=st.floats(0, 1),
)
def test_schedules_meet_all_that_the_least_widths_do(schedule, hidden, budget, steps, share):
    model, least = dense([12, *hidden, 4]), dense([12, *(1 for _ in hidden), 4])
    lowest = cost(least, budget)
    limit = max(int(lowest + share * (cost(model, budget) - lowest)), 2)
    config = CompressConfig(epochs=0, schedule=schedule, steps=steps)
    options = {"calibration": [X], "config": config}
    result = compress(model, constraints={budget: limit}, **options)
    assert cost(result.model, budget) <= limit
    if lowest > 2:
        with pytest.raises(SimMIMError, match=f"{budget}={lowest - 1} cannot be met"):
            compress(model, constraints={budget: lowest - 1}, **options)


def test_least_widths_of_a_schedule_are_those_of_all_layers():
    torch.manual_seed(0)
    sizes = ((12, 3), (3, 5), (5, 4), (4, 4))
    model = nn.Sequential(*(layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())))
    config = CompressConfig(epochs=0, schedule="cubic", steps=3)
    with pytest.raises(SimMIMError, match=r"units=2 cannot be met: .* has 3 of 12 \(0.25\)"):
        compress(model[:-1], calibration=[X], constraints={"units": 2}, config=config)


@pytest.mark.parametrize("units", [0.5, 5])
def test_a_schedule_for_a_model_without_units_is_refused_as_one_step_is(units):
    config = CompressConfig(epochs=0, schedule="cubic", steps=2)
    with pytest.raises(SimMIMError, match=r"^score: the model has no units that can be removed"):
        compress(mlp()[2:], calibration=[X[:, :10]], constraints={"units": units}, config=config)


@pytest.mark.parametrize("steps", [4, 12])
@pytest.mark.parametrize("split", ["norm", "convolution"])
def test_the_last_unit_of_several_channels_stays_one(split, steps):
    """With one group of a GroupNorm or convolution left, its channels could be removed singly."""
    torch.manual_seed(0)
    groups = 2 if split == "convolution" else 1
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8) if split == "norm" else nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 3)),
    )
    images = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = CompressConfig(epochs=0, schedule="iterative", steps=steps)
    result = compress(model, calibration=[images], constraints={"units": 3}, config=config)
    assert set(kept_widths(result).values()) == {1}
    assert result.model[0].out_channels == 4


def test_a_schedule_goes_no_further_than_one_step_would():
    per_layer = {"a": 0.01, "b": 2, "c": 1}
    originals = {"units": 96, "per_layer": {"a": 32, "b": 32, "c": 32}}
    steps = budgets({"units": 0.05, "per_layer": per_layer}, originals, "iterative", 3)
    assert steps[-1] == {"units": 4, "per_layer": {"a": 1, "b": 2, "c": 32}}
    assert steps[1]["per_layer"]["a"] == 2


@pytest.mark.parametrize(("share", "width"), [(0.6, 8), (0.9, 16)])
@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_widths_that_are_rounded_on_the_way_lead_to_what_one_step_makes(schedule, share, width):
    settings = {"calibration": [X], "constraints": {"per_layer": {"2": share}}, "round_to": 8}
    for steps in (CompressConfig(epochs=0), CompressConfig(epochs=0, schedule=schedule, steps=4)):
        assert kept_widths(compress(two_hidden(), config=steps, **settings)) == {
            "0": 40,
            "2": width,
        }


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_what_the_last_step_meets_is_not_refused_on_the_way(schedule):
    """A step before it leaves two units to a layer that will have one."""
    config = CompressConfig(epochs=0, schedule=schedule, steps=10)
    constraints = {"units": 2, "per_layer": {"0": 1 / 40}}
    result = compress(two_hidden(), calibration=[X], constraints=constraints, config=config)
    assert kept_widths(result) == {"0": 1, "2": 1}


class Parts(nn.Module):
    """Sums whose terms layers make in parts, each term in its own."""

    def __init__(self, *terms):
        super().__init__()
        self.terms = nn.ModuleList(nn.ModuleList(nn.Linear(12, n) for n in term) for term in terms)
        self.out = nn.Linear(sum(terms[0]), 3)

    def forward(self, x):
        terms = [torch.cat([part(x) for part in term], -1) for term in self.terms]
        return self.out(sum(terms).tanh())


@pytest.mark.parametrize(("best", "least"), [(3, 3), (4, 2)])
def test_how_many_units_all_layers_need_depends_on_scores(best, least):
    """Of the units 0 to 5 layers make 0-2, 3-5, 0-3 and 4-5: two will do, or it takes three."""
    model = Parts((3, 3, 1), (4, 2, 1), (6, 1))
    (group,) = trace_units(model, X[:1])
    check_reachable(model, (group,), {"units": 2}, X[:1])
    scores = torch.arange(6.0).flip(0)
    scores[best] = 9
    options = {"example_inputs": X[:2], "config": CompressConfig(allocation="score", epochs=0)}

    def pruned(units):
        return prune(model, {group.name: scores}, constraints={"units": units}, **options)

    assert kept_widths(pruned(least)) == {group.name: least}
    if least > 2:
        with pytest.raises(SimMIMError, match="units=2 cannot be met"):
            pruned(2)
