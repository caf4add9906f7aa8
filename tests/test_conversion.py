"""Layers that another takes the place of while units are removed."""

import pytest
import torch
from torch import nn

from simmim_ext import SimMIMError, compress, score
from simmim_ext.nn import MaskedLinear

X = torch.randn(40, 3, 8, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.hidden((x + self.attention(x, x, x)[0]).mean(1)).relu())


@pytest.mark.parametrize(
    "hook",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_a_layer_with_hooks_is_not_replaced(hook):
    model = Attending()
    for name, data, call in (
        ("attention", [X], lambda x: score(model, x)),
        ("hidden", [X], lambda x: weights(model, x)),
    ):
        handle = getattr(model.get_submodule(name), hook)(lambda *_: None)
        with pytest.raises(
            SimMIMError,
            match=f"^model: the .* '{name}' must not have hooks, which the layer in its place "
            "would lose; "
            "remove them first, or put the layer in ignored_layers",
        ):
            call(data)
        handle.remove()


def weights(model, x):
    options = {"constraints": {"sparsity": 0.5}, "granularity": "weight", "progress": False}
    return compress(model, calibration=x, **options)


def test_a_masked_layer_has_the_attributes_that_its_linear_was_given():
    linear = nn.Linear(8, 4)
    linear.scale = 2.0
    masked = MaskedLinear.from_linear(linear, torch.ones(4, 8, dtype=torch.bool))
    sparse = masked.to_sparse()
    layers = (masked, masked.to_dense(), sparse, sparse.to_dense())
    assert [layer.scale for layer in layers] == [2.0] * 4
    assert vars(sparse.to_dense()).keys() == vars(linear).keys()
    assert "weight" not in vars(masked)
