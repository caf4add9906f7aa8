"""torch-pruning's importances on our groups, against their definitions."""

import pytest
import torch
from architectures import architecture
from models import mlp
from torch.nn import functional

from simmim_ext import CompressConfig, score
from simmim_ext.graph import trace_units
from simmim_ext.scoring import score_groups


@pytest.mark.filterwarnings("ignore:score. ")
def test_hessian_is_the_mean_squared_gradient_over_all_samples():
    torch.manual_seed(0)
    model = mlp()
    x, y = torch.randn(40, 12), torch.randint(4, (40,))
    first, last = model[0].weight, model[2].weight
    square_first, square_last = torch.zeros_like(first), torch.zeros_like(last)
    for i in range(40):
        loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        a, b = torch.autograd.grad(loss, [first, last])
        square_first += a**2 / 40
        square_last += b**2 / 40
    # Optimal brain damage of a neuron: w^2 h over its own weights, and over those that read it.
    own = (first**2 * square_first).sum(1)
    read = (last**2 * square_last).sum(0)
    expected = (own + read) / 2
    data = [(x[:25], y[:25]), (x[25:], y[25:])]
    scores = score(model, data, criterion="hessian")
    found = scores["0"]
    torch.testing.assert_close(found / found.mean(), expected / expected.mean(), rtol=1e-4, atol=0)
    assert model[0].weight.grad is None


@pytest.mark.filterwarnings("ignore:score. ")
@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_values_are_drawn_from_the_seed_and_not_from_the_callers_state(criterion):
    model, x = mlp(outputs=2), torch.randn(40, 12)
    groups = trace_units(model, x[:1])

    def scores(seed):
        config = CompressConfig(seed=seed)
        return score_groups(model, groups, [x], criterion=criterion, config=config, noise=0.1)["0"]

    before = torch.get_rng_state()
    first = scores(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(scores(3), first)
    assert not torch.equal(scores(4), first)


@pytest.mark.filterwarnings("ignore:score. ")
@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_samples_without_a_label_have_no_gradient(criterion):
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(40, 12), torch.randint(4, (40,))
    unknown = y.clone()
    unknown[25:] = -1
    found = score(model, [(x, unknown)], criterion=criterion)["0"]
    expected = score(model, [(x[:25], y[:25])], criterion=criterion)["0"]
    torch.testing.assert_close(found / found.mean(), expected / expected.mean())


@pytest.mark.filterwarnings("ignore:score. ")
def test_gradients_are_taken_under_inference_mode():
    torch.manual_seed(0)
    expected = score(mlp(), [torch.ones(40, 12)], criterion="taylor")["0"]
    torch.manual_seed(0)
    with torch.inference_mode():
        found = score(mlp(), [torch.ones(40, 12)], criterion="taylor")["0"]
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:score. ")
@pytest.mark.parametrize("name", ["timm vit", "rms norm"])
@pytest.mark.parametrize("criterion", ["magnitude_l1", "fpgm", "taylor"])
def test_bare_parameters_and_foreign_norms_are_no_obstacle(name, criterion):
    model, data = architecture(name)
    scores = score(model, data, criterion=criterion)
    assert len(scores) > 1
    assert all(len(values.unique()) > 1 for values in scores.values())
