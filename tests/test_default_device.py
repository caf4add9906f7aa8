"""The workflow under a default device that is not the model's, as torch.set_default_device sets.

The meta device stands for any other: what is made on it by mistake has no values.
"""

import pytest
import torch
from architectures import architecture

from simmim_ext import CompressConfig, compress, diagnose, load, prune, score
from simmim_ext.config import CRITERIA
from simmim_ext.nn import accelerate, strip

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")

SETTINGS = {
    "units": {"constraints": {"params": 0.6}},
    "steps": {
        "constraints": {"flops": 0.6},
        "config": CompressConfig(epochs=2, schedule="cubic", steps=2, gram_weight=0.1),
    },
    "values": {"constraints": {"units": 0.6}, "output": "values"},
    "weights": {"constraints": {"sparsity": 0.5}, "granularity": "weight"},
    "2:4": {"constraints": {}, "granularity": "2:4", "ignored_layers": ["0"]},
    "blocks": {"constraints": {"sparsity": 0.5}, "granularity": "block:4x2"},
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet", "units"), ("torch encoder", "units"), *(("mlp", setting) for setting in SETTINGS)],
)
def test_compress_and_load(name, settings, tmp_path):
    model, batches = architecture(name)
    model.eval()
    settings = {"config": CompressConfig(epochs=1), "progress": False, **SETTINGS[settings]}
    plain = compress(model, calibration=batches, **settings).model.state_dict()
    with torch.device("meta"):
        result = compress(model, calibration=batches, **settings, checkpoint_dir=tmp_path / "state")
        result.save(tmp_path / "saved")
        loaded = load(tmp_path / "saved", model)
        outputs = accelerate(loaded)(batches[0]), strip(loaded)(batches[0])
    for found in (result.model, loaded):
        assert all(torch.equal(found.state_dict()[key], plain[key]) for key in plain)
    for found in outputs:
        assert torch.allclose(found, result.model(batches[0]), atol=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_score_and_prune(criterion):
    model, batches = architecture("mlp")
    with torch.device("meta"):
        found = score(model, batches, criterion=criterion)
        pruned = prune(model, found, constraints={"units": 0.5}).model
    assert found.order == score(model, batches, criterion=criterion).order
    assert pruned(batches[0]).device.type == "cpu"


def test_scores_of_the_callers_own():
    model, batches = architecture("mlp")
    names = score(model, batches).items()
    config = CompressConfig(allocation="score")
    with torch.device("meta"):
        lists = {name: list(range(len(values))) for name, values in names}
        assert diagnose(model, batches).to_dict()
        result = prune(
            model, lists, constraints={"units": 0.5}, example_inputs=batches[0], config=config
        )
    assert result.model(batches[0]).device.type == "cpu"
