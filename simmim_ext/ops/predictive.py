"""What a classifier's predictions tell about its inputs."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import operator

_predictive_information = operator("predictive_information")


def predictive_information(
    logits: Tensor, base: float | None = None, caller: str = "predictive_information"
) -> Tensor:
    """H(mean_x p(y|x)) - mean_x H(p(y|x)) with p = softmax(logits).

    Args:
        logits: [samples, classes] float16/bfloat16/float32/float64; -inf rules a class out.
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        a float32 scalar, accumulated in float64, the same on any number of threads.

    Raises:
        ValueError: naming the argument, the rule and the value, and the sample at fault.
        TypeError: logits are of another dtype.
    """
    return _predictive_information(logits, base, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::predictive_information")
def _(logits, base, caller):  # type: ignore[no-untyped-def]
    return logits.new_empty((), dtype=torch.float32)
