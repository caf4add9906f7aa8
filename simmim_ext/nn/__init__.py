"""Linear layers with masked weights: to train them, and to run them fast."""

from ..ops.masked_linear import masked_linear
from .masked import MaskedLinear

__all__ = ["MaskedLinear", "masked_linear"]
