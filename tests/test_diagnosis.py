"""Diagnoses of a network whose dead and duplicate units are known."""

import json

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, diagnose, entropy


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    with torch.no_grad():
        model[0].bias[2] = -100.0
        model[0].weight[7] = model[0].weight[4]
        model[0].bias[7] = model[0].bias[4]
    return model


@pytest.fixture
def x():
    return torch.randn(3000, 6, generator=torch.Generator().manual_seed(1))


def test_dead_and_duplicate_units_are_found(network, x, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = diagnose(network, x.split(500))
    assert found.samples == 3000
    assert found.output == "classes"
    layer = found.layers["0"]
    assert layer.dead == (2,)
    assert layer.duplicates == ((4, 7),)
    assert layer.entropy[2] == layer.relevance[2] == layer.redundancy[2].sum() == 0
    assert layer.redundancy[4, 7] == pytest.approx(1, abs=1e-6)
    hidden = network[:2](x).detach()
    shared = (float(hidden.min()), float(hidden.max()))
    torch.testing.assert_close(layer.entropy, entropy(hidden, bins=16, range=shared))
    as_dict = found.to_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    units = as_dict["layers"]["0"]
    assert units["closest"][4] == 7
    assert units["closest_redundancy"][4] == pytest.approx(1, abs=1e-6)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert repr(found) == f"Diagnostics of 3,000 samples\n  '0': {layer}"
    assert repr(layer).startswith(f"{len(layer.entropy)} units, 1 dead, 1 duplicate pair; means of")
    assert len(found.plot(tmp_path / "units.png").axes) == len(found.plot().axes) == 3
    with pytest.raises(TypeError, match="^plot: path must be a path, got int"):
        found.plot(3)
    assert (tmp_path / "units.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_limited_and_layers_left_out(network, x):
    config = CompressConfig(calibration_samples=700)
    assert diagnose(network, x.split(500), config=config).samples == 700
    with pytest.raises(SimMIMError, match=r"no units that can be removed"):
        diagnose(network, [x], ignored_layers=["0"])
    with pytest.raises(SimMIMError, match=r"data: no sample came out of an empty list"):
        diagnose(network, [])
    with pytest.raises(SimMIMError, match=r"^data: at least 2 samples are needed, got 1; give"):
        diagnose(network, [x[:1]])
    with pytest.raises(SimMIMError, match=r"^data: the model's outputs are not finite; check"):
        diagnose(network, [x * torch.nan])


def test_what_is_not_finite_inside_is_named(x):
    class Roots(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).sqrt()).nan_to_num()

    model = Roots(nn.Linear(x.shape[1], 8), nn.Linear(8, 4))
    with pytest.raises(SimMIMError, match=r"diagnose: activations of '0' are not finite; check d"):
        diagnose(model, [x])
