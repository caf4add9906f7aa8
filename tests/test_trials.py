"""What a layer's lost units cost, measured: at the widths tried it is what was found."""

import copy
import dataclasses
import math

import pytest
import torch
from models import case

from simmim_ext import CompressConfig, compress, prune, score
from simmim_ext.trials import measured, scaled

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


@pytest.fixture
def data():
    return torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(5)).split(100)


@pytest.fixture
def model():
    return case("cnn")[0]


def test_expected_becomes_what_was_found():
    expected = torch.tensor([1.0, 0.8, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0]).double()
    same = scaled(expected, {2: 0.4, 4: 0.1})
    torch.testing.assert_close(same, expected)
    found = scaled(expected, {2: 1.2, 4: 0.1})
    assert found[2] == pytest.approx(1.2, rel=1e-3)
    assert found[4] == pytest.approx(0.1, rel=1e-3)
    assert found[1] == pytest.approx(3 * 0.8, rel=1e-3)  # beyond the widths the ratio stays
    assert found[6] == pytest.approx(0.02, rel=1e-2)
    ratio = math.exp(math.log(3) * math.log(4 / 3) / math.log(2))
    assert found[3] == pytest.approx(0.2 * ratio, rel=1e-3)
    assert (scaled(expected, {2: 0.1, 4: 5.0}).diff() <= 0).all()
    assert scaled(expected, {2: math.nan}) is expected


def test_divergences_are_those_of_the_model_with_fewer_units(model, data):
    scores = score(model, data, config=CompressConfig(seed=1))
    before = copy.deepcopy(model.state_dict())
    found = measured(scores, model, data, seed=1)
    again = measured(scores, model, data, seed=1)
    assert all(torch.equal(found.divergence[n], again.divergence[n]) for n in scores)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(found.divergence[n][4] > 2 * scores.divergence[n][4] for n in scores)
    for name, values in found.divergence.items():
        assert (values.diff() <= 0).all()
        width = len(scores[name]) // 2
        budget = {"per_layer": {name: width}}
        result = prune(model, scores, constraints=budget, calibration=data)
        # The same samples are held out; to the ratio some nats are added.
        assert values[width] == pytest.approx(result.report["fidelity"]["kl"], rel=1e-2)


def test_a_few_samples_are_enough(model, data):
    few = [batch[:2] for batch in data[:2]]
    scores = score(model, data)
    found = measured(scores, model, few)
    assert all(torch.isfinite(values).all() for values in found.divergence.values())
    config = CompressConfig(epochs=0)
    budget = {"params": 0.5}
    compress(model, calibration=few, evaluate=data, constraints=budget, config=config)


def test_where_nothing_is_divided_nothing_is_measured(model, data):
    scores = score(model, data)
    one = dataclasses.replace(scores, groups=scores.groups[:1])
    assert measured(one, model, data) is one
    relevance = score(model, data, criterion="relevance")
    assert measured(relevance, model, data) is relevance

    def stages(**options):
        config = CompressConfig(epochs=0, **options.pop("config", {}))
        result = compress(model, calibration=data, config=config, **options)
        return [stage["name"] for stage in result.report["stages"]]

    assert "measure" in stages(constraints={"params": 0.5})
    assert "measure" not in stages(constraints={"per_layer": {scores.groups[0].name: 0.5}})
    assert "measure" not in stages(constraints={"params": 0.5}, config={"allocation": "uniform"})
