"""Costs of models: counted by hand, and latency in turn."""

import time

import pytest
import torch
from torch import nn

from simmim_ext.measure import (
    count_bytes,
    count_flops,
    count_params,
    latency_conditions,
    measure_latency,
)
from simmim_ext.nn import MaskedLinear


def tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    return net


def masked():
    linear = nn.Linear(6, 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, :2] = True
    return nn.Sequential(MaskedLinear.from_linear(linear, mask))


def test_params_count_shared_ones_once_and_masked_ones_never():
    assert count_params(tied()) == 36 + 12
    assert count_params(masked()) == 8 + 4


def test_flops_are_those_of_one_sample():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten())
    assert count_flops(conv, torch.rand(7, 3, 5, 5)) == 2 * 8 * 3 * 9 * 25
    assert count_flops(tied(), torch.rand(9, 6)) == 2 * 2 * 36
    net = masked()
    assert count_flops(net, torch.rand(2, 6)) == 2 * 8
    assert count_flops(net, torch.rand(2, 3, 6), lambda m, x: m(x)[:, 0]) == 3 * 2 * 8
    assert isinstance(net[0], MaskedLinear)
    assert conv.training


def test_a_layer_of_several_names_counts_once_and_computes_each_time():
    mask = torch.eye(6) > 0
    layer = MaskedLinear.from_linear(nn.Linear(6, 6), mask)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert count_params(net) == 6 + 6
    assert count_flops(net, torch.rand(2, 6)) == 2 * 2 * 6


class LearntQuery(nn.Module):
    """Gives a layer a view of a parameter."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.rand(6))
        self.project, self.head = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x):
        return self.head(x) * self.project(self.query.expand(1, 6))


def test_flops_of_a_layer_that_is_given_a_parameter():
    model = LearntQuery()
    assert count_flops(model, torch.rand(2, 6)) == 2 * 2 * 6 * 8
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bytes_are_those_on_disk():
    assert count_bytes(tied()) == 4 * 48
    assert count_bytes(masked()) == 4 * (8 + 4) + 3
    assert count_bytes(tied().bfloat16()) == 2 * 48


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.calls = []

    def forward(self, x):
        assert not self.training
        self.calls.append(time.monotonic())
        time.sleep(self.seconds)
        return x


def test_latency_is_measured_in_turn():
    models = [Sleeper(0.004), Sleeper(0.012)]
    fast, slow = measure_latency(models, torch.rand(2, 3), seconds=0.1)
    assert 4 <= fast < slow
    assert slow >= 12
    assert all(model.training for model in models)
    rounds = [model.calls[-7:] for model in models]
    assert all(a < b for a, b in zip(*rounds, strict=True))
    assert all(b < a for b, a in zip(rounds[1], rounds[0][1:], strict=False))


def test_latency_conditions(threads):
    threads(1)
    assert latency_conditions(torch.rand(5, 3)) == {"batch": 5, "threads": 1}


@pytest.mark.parametrize("batch", [(torch.rand(4, 6), torch.zeros(4)), [torch.rand(4, 6)]])
def test_batches_of_every_kind_are_measured(batch):
    assert count_flops(tied(), batch) == 144
    assert measure_latency([tied()], batch, seconds=0)[0] > 0
