"""Half of the parameters of every architecture, nothing trained."""

import pytest
import torch
from architectures import ARCHITECTURES, architecture, tied
from models import snapshot
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, load
from simmim_ext.equivalence import check_mask_equivalence
from simmim_ext.forward import forward
from simmim_ext.graph import trace_units
from simmim_ext.reconstruction import reconstruct
from simmim_ext.removal import apply_history, remove_units

CONFIG = CompressConfig(epochs=0)
ATTENTION = [f"blocks.{block}.attention" for block in (0, 1)]
# The residual width and the MLPs of a transformer shrink, its queries, keys and values do not.
PROJECTIONS = [f"{name}.{part}" for name in ATTENTION for part in "qkv"]

pytestmark = pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Networks as small as these gain nothing from more, and wait for them on a busy machine."""
    threads(1)


def ignored_layers(name):
    return PROJECTIONS if "transformer" in name else []


def half(name, **options):
    model, data = architecture(name)
    options.setdefault("ignored_layers", ignored_layers(name))
    result = compress(
        model, calibration=data, constraints={"params": 0.5}, config=CONFIG, **options
    )
    return model, data[0], result


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "tied"])
def test_half_of_the_parameters(name, tmp_path):
    before, _ = architecture(name)
    model, batch, result = half(name)
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {
        n: v.tolist() for n, v in before.state_dict().items()
    }
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    for n, p in result.model.named_parameters():  # torch's attention comes apart, see nn.attention
        assert p.requires_grad == flags.get(n, True)
    params = [sum(p.numel() for p in m.parameters()) for m in (model, result.model)]
    assert 0.4 * params[0] < params[1] <= 0.5 * params[0]

    # The same removal, before anything was refitted, is the original with zeros.
    check_mask_equivalence(model, apply_history(model, result.history), result.history, batch)
    with torch.no_grad():
        outputs = forward(result.model.eval(), batch)
        assert outputs.shape == forward(model.eval(), batch).shape
        assert outputs.dtype == forward(model, batch).dtype

    result.save(tmp_path / "half")
    fresh = ARCHITECTURES[name][0]()
    with torch.no_grad():
        assert torch.equal(forward(load(tmp_path / "half", fresh).eval(), batch), outputs)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "gated transformer", "keyword inputs"])
def test_modes_flags_and_gradients_of_the_callers_model_stay(name):
    model, data = architecture(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    result = compress(
        model,
        calibration=data,
        constraints={"params": 0.7},
        ignored_layers=ignored_layers(name),
        config=CONFIG,
    )
    assert snapshot(model) == before
    assert all(module.training for module in result.model.modules())


@pytest.mark.parametrize("name", ["transformer", "gated transformer"])
def test_attention_of_no_known_kind_is_named(name):
    text = (
        r"'blocks\.0\.attention', a Attention, multiplies activations with each other, as attention"
    )
    with pytest.raises(SimMIMError, match=text):
        half(name, ignored_layers=[])


@pytest.mark.parametrize("name", ["transformer", "gated transformer"])
def test_attention_left_alone_by_its_name(name):
    model, _, result = half(name, ignored_layers=ATTENTION)
    for block in ATTENTION:
        for layer in ("q", "k", "v", "out"):
            weights = [
                m.get_submodule(block).get_submodule(layer).weight for m in (model, result.model)
            ]
            assert weights[0].shape == weights[1].shape


def test_tied_weights_are_refused_by_name_and_left_alone_on_demand():
    with pytest.raises(SimMIMError, match=r"'2\.weight' and '4\.weight' are one parameter"):
        half("tied")
    with pytest.raises(SimMIMError, match="no units that can be removed"):
        half("tied", ignored_layers=["0", "2", "4"])


def test_reconstruction_leaves_tied_layers_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), *tied())
    model[2] = nn.Linear(20, 16)
    x = torch.randn(200, 12)
    groups = trace_units(model, x, ignored_layers=["2", "4", "6"])
    student, history = remove_units(model, groups, {"0": range(10)})
    fitted = reconstruct(student, model, [x], history, samples=200)
    assert fitted[4].weight is fitted[6].weight
    assert torch.equal(fitted[4].weight, model[4].weight)
    assert not torch.equal(fitted[2].weight, student[2].weight)


def test_attention_that_would_run_with_other_heads_is_refused():
    model, (x, *_) = architecture("transformer")
    named = [f"{name}.out" for name in ATTENTION]  # the caller has seen to it: not well enough
    groups = {group.name: group for group in trace_units(model, x, ignored_layers=named)}
    heads = groups["blocks.0.attention.q"]
    one_head_less = [unit for unit in range(16) if unit // 4 != 1]
    pruned, history = remove_units(model, [heads], {heads.name: one_head_less})
    with torch.no_grad():
        assert pruned(x).shape == model(x).shape  # four heads of three channels: it runs
    with pytest.raises(SimMIMError, match="units were removed at the wrong place"):
        check_mask_equivalence(model, pruned, history, x)
