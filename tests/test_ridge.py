import pytest
import torch

from simmim_ext import ridge
from simmim_ext.moments import NormalEquations


def sums(x, z):
    found = NormalEquations.zeros(x.shape[1], z.shape[1])
    found.add_(x, z)
    return found


def problem(samples, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(3, 20, generator=generator)
    x = torch.randn(samples, 20, generator=generator) + 1
    z = x @ true.T + 2 + noise * torch.randn(samples, 3, generator=generator)
    return x, z, true


@pytest.mark.parametrize("bias", [True, False])
def test_the_error_is_that_of_the_predictions(bias):
    x, z, true = problem(50, 0.5)
    shift = torch.tensor([1.0, 2, 3]) if bias else None
    predicted = x @ true.T + (shift if bias else 0)
    expected = (z - predicted).square().sum(1).mean()
    shift = shift.double() if bias else None
    found = ridge._error(true.double(), shift, sums(x, z))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_plenty_of_samples_find_the_truth_and_take_the_smallest_ridge():
    x, z, true = problem(4000, 0.0)
    start = torch.zeros(3, 20), torch.zeros(3)
    weight, bias = ridge.regression(*start, sums(x[:3000], z[:3000]), sums(x[3000:], z[3000:]))
    torch.testing.assert_close(weight.float(), true, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bias, torch.full((3,), 2.0).double(), atol=1e-2, rtol=0)


def test_noise_and_few_samples_take_a_larger_ridge():
    x, z, true = problem(24, 4.0)
    near = true + 0.1 * torch.randn(3, 20, generator=torch.Generator().manual_seed(9))
    start = near, torch.ones(3)
    parts = sums(x[:16], z[:16]), sums(x[16:], z[16:])
    fresh = sums(*problem(2000, 4.0)[:2])
    chosen = ridge._error(*ridge.regression(*start, *parts), fresh)
    smallest = ridge._Fits(start[0].double(), start[1].double(), parts[0] + parts[1]).at(1e-4)
    assert chosen < 0.5 * ridge._error(*smallest, fresh)


def test_what_no_fit_betters_stays_and_nothing_held_out_changes_nothing():
    x, z, true = problem(40, 1.0)
    start = true, torch.full((3,), 2.0)
    shifted = sums(x, z + 50)  # what is seen says nothing about what is held out
    weight, bias = ridge.regression(*start, shifted, sums(x, z))
    assert torch.equal(weight.float(), true)
    assert torch.equal(bias.float(), start[1])
    weight, _ = ridge.regression(*start, sums(x, z), NormalEquations.zeros(20, 3))
    assert torch.equal(weight.float(), true)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.5, 1e4])
def test_inputs_that_do_not_vary_leave_the_fit_to_the_bias(scale):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.rand(1, 300, generator=generator).expand(200, 300)
    true = torch.randn(3, 300, generator=generator)
    z = x @ true.T + 1 + torch.randn(200, 3, generator=generator)
    parts = sums(x[:150], z[:150]), sums(x[150:], z[150:])
    weight, bias = ridge.regression(true, torch.zeros(3), *parts)
    changed = x[0].double() @ (weight - true).T
    assert changed.abs().max() < 1e-3 * z.abs().max()
    predicted = x[0].double() @ weight.T + bias
    torch.testing.assert_close(predicted, z.double().mean(0))


@pytest.mark.parametrize("least", range(6))
def test_the_least_error_is_found_wherever_it_is(least):
    tried = []

    def error(place):
        tried.append(place)
        return abs(place - least) + 0.5

    assert ridge._least(error, 6) == (least, 0.5)
    assert len(tried) == len(set(tried))
