"""What results look like when printed: a few lines, however large the network."""

import pytest
import torch
from models import mlp
from torch import nn

from simmim_ext import CompressConfig, CompressionResult, compress, prune, score
from simmim_ext.shown import listed

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")
DATA = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).split(50)
CONFIG = CompressConfig(epochs=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp()


def test_a_result_shows_what_was_kept_and_how_sure_that_is(model):
    result = compress(model, calibration=DATA, constraints={"units": 0.5}, config=CONFIG)
    fidelity = result.report["fidelity"]
    low, high = fidelity["kl_interval"]
    assert str(result).splitlines()[:-1] == [
        "CompressionResult",
        "  units: 5 of 10 kept, in 1 layer",
        "  parameters: 174 -> 89 (51.1%)",
        f"  KL from the original, nats: {fidelity['kl']:.4f} (95%: {low:.4f} to {high:.4f})",
    ]
    assert str(result).splitlines()[-1].startswith(f"  agreement: {fidelity['agreement']:.2%} (95%")


@pytest.mark.parametrize("output", ["values", "embeddings"])
def test_a_result_without_agreement_shows_what_there_is(model, output):
    result = compress(
        model, calibration=DATA, constraints={"units": 0.5}, output=output, config=CONFIG
    )
    assert f"  relative error: {result.report['fidelity']['relative_error']:.4f}\n" in str(result)


def test_a_result_of_single_weights_counts_them(model):
    options = {"granularity": "weight", "constraints": {"sparsity": 0.5}}
    result = compress(model, calibration=DATA, config=CONFIG, **options)
    assert "  weights: 80 of 160 kept, in 2 layers\n" in str(result)


def test_scores_and_a_result_that_was_compared_with_nothing(model):
    scores = score(model, DATA)
    low, high = float(scores["0"].min()), float(scores["0"].max())
    assert repr(scores) == f"Scores by 'simmim'\n  '0': 10 units, {low:.3g} to {high:.3g}"
    result = prune(model, scores, constraints={"units": 0.5})
    assert str(result).endswith("\n  parameters: 174 -> 89 (51.1%)")


def test_a_result_without_a_report_can_be_printed(model):
    assert str(CompressionResult(model, {})) == "CompressionResult"


def test_many_layers_are_cut_short():
    model = nn.Sequential(*[nn.Linear(12, 12) for _ in range(10)])
    lines = repr(score(model, DATA, criterion="random")).splitlines()
    assert len(lines) == 8
    assert lines[-1] == "  and 3 more"
    assert listed("six", list("abcdef")).endswith("\n  f")
