"""Sparse layers with masks of every pattern."""

from dataclasses import replace

import pytest
import torch
from test_nn import uneven_mask
from torch import nn

from simmim_ext.nn import SparseLinear
from simmim_ext.nn.tuned import InForce, default_table


def block_mask(out_features: int, in_features: int, density: float = 0.2) -> torch.Tensor:
    torch.manual_seed(0)
    blocks = torch.rand((out_features + 15) // 16, in_features) < density
    return blocks.repeat_interleave(16, 0)[:out_features]


def n_of_m_mask(out_features: int, in_features: int) -> torch.Tensor:
    """2:4, as far as the features are a multiple of 4; random beyond."""
    torch.manual_seed(0)
    whole = in_features // 4 * 4
    order = torch.rand(out_features, whole // 4, 4).argsort(-1) < 2
    rest = torch.rand(out_features, in_features - whole) < 0.5
    return torch.cat([order.flatten(1), rest], 1)


def outer_mask(out_features: int, in_features: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(out_features, 1) < 0.5) & (torch.rand(in_features) < 0.5)


MASKS = {
    "none": lambda o, i: torch.zeros(o, i).bool(),
    "all": lambda o, i: torch.ones(o, i).bool(),
    "random": lambda o, i: torch.rand(o, i, generator=torch.Generator().manual_seed(0)) < 0.1,
    "uneven": uneven_mask,
    "half": lambda o, i: torch.rand(o, i, generator=torch.Generator().manual_seed(0)) < 0.5,
    "block": block_mask,
    "n:m": n_of_m_mask,
    "rows/columns": outer_mask,
}


@pytest.fixture(autouse=True)
def patterns_have_their_kernels(monkeypatch) -> None:
    """Default speeds, with those of the kernels for patterns so high that they are tested."""

    def in_force(capability: str) -> InForce:
        table = default_table(capability).table
        row = (*(99.0,) * (len(table.densities) - 1), 0.5)  # all kept: dense
        high = ((row,) * len(table.batches),) * len(table.sizes)
        return InForce(
            replace(table, speeds={**table.speeds, "block": high, "compact": high}), None
        )

    monkeypatch.setattr("simmim_ext.nn.choice.in_force", in_force)


def make(out_features: int, in_features: int, mask: str = "uneven", **kwargs) -> SparseLinear:
    torch.manual_seed(1)
    linear = nn.Linear(in_features, out_features)
    return SparseLinear.from_linear(linear, MASKS[mask](out_features, in_features), **kwargs)
