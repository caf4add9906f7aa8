"""Channels last, where a network bears it."""

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, compress, load, score
from simmim_ext.memory_format import fastest_format

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.next(torch.relu(self.conv(x)))).flatten(1))


class Viewing(Network):
    def forward(self, x):
        x = torch.relu(self.next(torch.relu(self.conv(x))))
        return self.head(x.view(len(x), -1))


class ByStorage(Network):
    """What comes out depends on the order in memory."""

    def forward(self, x):
        x = torch.relu(self.next(torch.relu(self.conv(x))))
        return self.head(x.as_strided((len(x), 80), (80, 1)))


def strides(model):
    return [p.stride() for p in model.parameters()]


@pytest.mark.parametrize("network", [Network, Viewing, ByStorage])
def test_channels_are_last_where_nothing_but_rounding_changes(network):
    plain, model = network().eval(), network().eval()
    with torch.no_grad():
        before = model(X)
    made = fastest_format(model, X, None)
    assert made is model
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == (
        network is Network
    )
    assert (strides(model) == strides(plain)) == (network is not Network)
    with torch.no_grad():
        torch.testing.assert_close(model(X), before)


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("network", [Network, Viewing])
def test_scores_are_those_of_the_other_order(network, monkeypatch):
    model = network()
    before = strides(model)
    data = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(50)
    fast = score(model, data)
    assert strides(model) == before
    monkeypatch.setattr("simmim_ext.collect.fastest_format", lambda model, *_: model)
    plain = score(model, data)
    for name, values in plain.items():
        torch.testing.assert_close(fast[name], values, rtol=1e-4, atol=1e-6)
        assert fast.order[name] == plain.order[name]


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_a_model_with_channels_last_stays_so(tmp_path):
    model = Network().to(memory_format=torch.channels_last)
    data = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(50)
    config = CompressConfig(epochs=1)
    result = compress(model, calibration=data, constraints={"units": 0.5}, config=config)
    result.save(tmp_path)
    loaded = load(tmp_path, Network().to(memory_format=torch.channels_last))
    for small in (result.model, loaded):
        assert small.conv.weight.shape[0] == small.next.weight.shape[1] < 8
        for layer in (small.conv, small.next):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            assert not layer.weight.is_contiguous()
