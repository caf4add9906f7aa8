"""Inputs that several test files draw."""

import torch
from torch import Tensor


def normal(samples: int, features: int, seed: int = 0) -> Tensor:
    """Standard normal [samples, features] float32, the same on every run."""
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed))
