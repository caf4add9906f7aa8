"""Linear layers with masked weights: to train them, and to run them fast."""

from ..ops.masked_linear import masked_linear
from .convert import accelerate, strip
from .masked import MaskedLinear
from .sparse import SparseLinear

__all__ = ["MaskedLinear", "SparseLinear", "accelerate", "masked_linear", "strip"]
