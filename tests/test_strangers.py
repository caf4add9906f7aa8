"""Models with attention of no known kind: named, and compressed around it if the caller says so."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.equivalence import check_mask_equivalence
from simmim_ext.forward import forward
from simmim_ext.removal import apply_history

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
CONFIG = CompressConfig(epochs=0)
WIDTHS = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False
    )
    return transformers.T5ForConditionalGeneration(config)


def bart():
    config = transformers.BartConfig(
        vocab_size=40, **WIDTHS, max_position_embeddings=16, use_cache=False
    )
    return transformers.BartForConditionalGeneration(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=40, **WIDTHS, num_mel_bins=8, max_source_positions=8, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def swin():
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4,
        num_labels=5,
    )  # fmt: skip
    return transformers.SwinForImageClassification(config)


def tokens():
    ids = torch.randint(3, 40, (160, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part, "decoder_input_ids": part.flip(1)} for part in ids.split(40)]


def sounds():
    mel = torch.randn(160, 8, 16, generator=torch.Generator().manual_seed(0)).split(40)
    return [
        {"input_features": part, "decoder_input_ids": batch["decoder_input_ids"]}
        for part, batch in zip(mel, tokens(), strict=True)
    ]


def images():
    return list(torch.randn(160, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(40))


# Name -> what makes it, its batches, what is named, and what leaves it alone.
STRANGERS = {
    "t5": (t5, tokens, "encoder.block.0.layer.0.SelfAttention', a T5Att", ["*Attention"]),
    "bart": (
        bart,
        tokens,
        "model.decoder.layers.0.encoder_attn', a BartAttention",
        ["*.encoder_attn", "*embed_tokens", "model.shared"],
    ),
    "whisper": (
        whisper,
        sounds,
        "model.decoder.layers.0.encoder_attn', a WhisperAttention",
        ["*.encoder_attn"],
    ),
    "swin": (
        swin,
        images,
        "swin.encoder.layers.0.blocks.0.attention', a SwinAttention",
        ["*.attention"],
    ),
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.mark.parametrize("name", STRANGERS)
def test_it_is_named_and_left_alone_by_its_name(name, tmp_path):
    make, data, named, ignored = STRANGERS[name]
    torch.manual_seed(0)
    model, batches = make().eval(), data()
    settings = {"calibration": batches, "constraints": {"params": 0.8}, "config": CONFIG}
    with pytest.raises(SimMIMError, match=f"'{named}.* put it in ignored_layers to leave it"):
        compress(model, **settings)
    result = compress(model, **settings, ignored_layers=ignored)
    params = [m["params"] for m in (result.report["teacher"], result.report["student"])]
    assert 0.77 * params[0] < params[1] <= 0.8 * params[0]
    check_mask_equivalence(model, apply_history(model, result.history), result.history, batches[0])
    result.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", make().eval())
    with torch.no_grad():
        outputs = [forward(m, batches[0]) for m in (loaded, result.model)]
    assert torch.equal(*outputs)
