"""A small classifier and data for it, on which the workflow takes a moment."""

import torch
from torch import nn

import simmim_ext

HALF = {"units": 0.5}
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.arange(40) % 3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


MODEL = network()


def compress(model=MODEL, data=DATA, constraints=HALF, **keywords):
    return simmim_ext.compress(
        model, calibration=data, constraints=constraints, progress=False, **keywords
    )
