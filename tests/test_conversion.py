"""Layers that another takes the place of while units are removed."""

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, load, score
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


class Padded(nn.Module):
    """torch.nn's encoder as it comes, of texts that are padded with 0."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)

    def forward(self, tokens):
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)
        return self.head(hidden[:, 0])


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the original
@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_an_encoder_of_padded_texts_runs_as_in_use(granularity, tmp_path):
    torch.manual_seed(0)
    model, tokens = Padded().eval(), torch.randint(1, 9, (40, 6))
    tokens[20:, 4:] = 0
    result = compress(
        model,
        calibration=[tokens],
        constraints={"units": 0.5} if granularity == "unit" else {"sparsity": 0.5},
        granularity=granularity,
        config=CompressConfig(epochs=0),
    )
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", model)
    with torch.no_grad():
        expected = result.model(tokens)
        assert torch.equal(loaded(tokens), expected)
        lone = [result.model(text[text > 0][None]) for text in tokens]  # without padding
    torch.testing.assert_close(torch.cat(lone), expected)
    assert model.encoder.use_nested_tensor
