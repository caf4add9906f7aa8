"""The workflow's functions, given what they can't take: one error each, nothing changed."""

import re
from contextlib import nullcontext

import pytest
import torch
from small_workflow import DATA, HALF, MODEL, X, compress, network
from torch import nn

import simmim_ext
from simmim_ext import CompressConfig, CompressionResult, SimMIMError
from simmim_ext.arguments import check_device
from simmim_ext.nn import SparseLinear, accelerate, strip

CALLERS = {
    "compress": compress,
    "score": lambda model: simmim_ext.score(model, DATA),
    "diagnose": lambda model: simmim_ext.diagnose(model, DATA),
    "prune": lambda model: simmim_ext.prune(model, {}, constraints=HALF),
    "load": lambda model: simmim_ext.load("folder", model),
}
MODELS = {
    "must be a torch.nn.Module, got function": lambda: network,
    "must be an eager model, got RecursiveScriptModule": lambda: torch.jit.script(network()),
    "must be an eager model, got one that torch.compile returned": lambda: torch.compile(network()),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize("text", MODELS)
@pytest.mark.parametrize("caller", CALLERS)
def test_models_that_are_none(caller, text) -> None:
    with pytest.raises(TypeError, match=f"^{caller}: model {re.escape(text)}"):
        CALLERS[caller](MODELS[text]())


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("caller", ["compress", "score", "diagnose", "prune"])
def test_errors_of_tracing_name_the_function_that_was_called(caller) -> None:
    class Unused(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)))

    model = Unused(*network(), nn.Linear(3, 3))
    options = {"constraints": HALF} if caller in ("compress", "prune") else {}
    data = {"0": torch.rand(8)} if caller == "prune" else DATA
    if caller == "prune":
        options |= {"example_inputs": X, "config": CompressConfig(allocation="score")}
    call = compress if caller == "compress" else getattr(simmim_ext, caller)
    with pytest.raises(SimMIMError, match=rf"^{caller}: the layer '3' is not reached from"):
        call(model, data, **options)


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_no_config_is_the_default_one() -> None:
    defaults = CompressConfig()
    result = compress(network(), DATA, constraints=HALF, config=None)
    assert result.report["config"] == defaults.to_dict()


@pytest.mark.parametrize("caller", ["compress", "score", "diagnose", "prune"])
@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ({"config": {"epochs": 1}}, "config must be a CompressConfig, got dict"),
        ({"forward_fn": 3}, "forward_fn must be callable as forward_fn(model, batch), got int"),
        (
            {"ignored_layers": "0"},
            "ignored_layers must be an iterable of layers or their names, got '0'",
        ),
        (
            {"ignored_layers": 3},
            "ignored_layers must be an iterable of layers or their names, got 3",
        ),
    ],
)
def test_options_of_another_kind(caller, keyword, text) -> None:
    with pytest.raises(TypeError, match="^" + re.escape(f"{caller}: {text}")):
        if caller == "prune":
            simmim_ext.prune(MODEL, {}, constraints=HALF, **keyword)
        elif caller == "compress":
            compress(**keyword)
        else:
            getattr(simmim_ext, caller)(MODEL, DATA, **keyword)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_device_that_is_not_there() -> None:
    with pytest.raises(
        SimMIMError, match=r"^compress: config\.device is 'cuda:7', which cannot be used here \("
    ):
        compress(config=CompressConfig(device="cuda:7"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: compress(checkpoint_dir=3), "compress: checkpoint_dir must be a path, got int"),
        (lambda: simmim_ext.load(3, MODEL), "load: dir must be a path, got int"),
        (
            lambda: simmim_ext.prune(MODEL, X, constraints=HALF),
            "prune: scores must be what score() returned, or a mapping of layer name to [units], "
            "got Tensor",
        ),
        (
            lambda: simmim_ext.distill(3, MODEL, DATA),
            "distill: student must be a torch.nn.Module, got int",
        ),
        (
            lambda: simmim_ext.distill(CompressionResult(MODEL, {}), MODEL, DATA),
            "distill: student must be a torch.nn.Module, got CompressionResult; give its attribute",
        ),
        (
            lambda: simmim_ext.distill(MODEL, None, DATA),
            "distill: teacher must be a torch.nn.Module, got NoneType",
        ),
    ],
)
def test_other_arguments_of_another_kind(call, text) -> None:
    with pytest.raises(TypeError, match="^" + re.escape(text)):
        call()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))


def half_meta() -> nn.Module:
    model = network()
    model[2].to("meta")
    return model


WITHOUT_WEIGHTS = {
    "lazy": (lazy, "'0.weight' is of a lazy layer and has no shape yet; run one batch through"),
    "meta": (lambda: network().to("meta"), "'0.weight' is on the meta device, where tensors"),
    "half": (half_meta, "'2.weight' is on the meta device, where tensors have no values; load the"),
}


@pytest.mark.parametrize("kind", WITHOUT_WEIGHTS)
@pytest.mark.parametrize("caller", ["compress", "score", "diagnose", "prune", "distill"])
def test_models_without_weights(caller, kind) -> None:
    make, text = WITHOUT_WEIGHTS[kind]
    callers = {**CALLERS, "distill": lambda model: simmim_ext.distill(MODEL, model, DATA)}
    with pytest.raises(SimMIMError, match=rf"^{caller}: \w+ must have its weights, and {text}"):
        callers[caller](make())


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_masked_layers_are_not_compressed_again(granularity) -> None:
    config = CompressConfig(epochs=0)
    settings = {"calibration": DATA, "config": config, "progress": False}
    sparse = {"constraints": {"sparsity": 0.5}, "granularity": "weight"}
    budget = sparse if granularity == "weight" else {"constraints": {"params": 0.5}}
    model = simmim_ext.compress(MODEL, **settings, **sparse, ignored_layers=["0"]).model
    text = (
        r"^compress: the layer '2' is a MaskedLinear, as an earlier compression leaves it; give "
        r"simmim_ext.nn.strip\(model\), in which"
    )
    with pytest.raises(SimMIMError, match=text):
        simmim_ext.compress(model, **settings, **budget)
    simmim_ext.compress(strip(model), **settings, **budget)
    if granularity == "weight":
        simmim_ext.compress(model, **settings, **budget, ignored_layers=["2"])


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_sparse_layers_are_not_compressed_again() -> None:
    config = CompressConfig(epochs=0)
    settings = {"calibration": DATA, "progress": False}
    sparse = {"constraints": {"sparsity": 0.5}, "granularity": "weight"}
    masked = simmim_ext.compress(MODEL, **settings, **sparse, config=config).model
    model = accelerate(masked)
    assert isinstance(model[0], SparseLinear)
    text = r"is a SparseLinear, as an earlier .*; give simmim_ext.nn.strip\(model\)"
    for call in (simmim_ext.score, simmim_ext.diagnose):
        with pytest.raises(SimMIMError, match=rf"^{call.__name__}: the layer '0' {text}"):
            call(model, DATA)
    with pytest.raises(SimMIMError, match=f"^compress: the layer '0' {text}"):
        simmim_ext.compress(model, **settings, **sparse, config=config)
    with pytest.raises(
        SimMIMError, match=r"no parameter .*; simmim_ext.nn.strip\(model\) has some"
    ):
        simmim_ext.compress(model, **settings, **sparse)


def test_a_lazy_instance_is_not_loaded_into() -> None:
    with pytest.raises(SimMIMError, match=r"^load: model must have its weights, and '0.weight' is"):
        simmim_ext.load("folder", lazy())


def test_a_device_on_which_nothing_has_a_value() -> None:
    text = r"^compress: config\.device is 'meta', which cannot be used here .*; choose another"
    with pytest.raises(SimMIMError, match=text):
        compress(config=CompressConfig(device="meta"))


@pytest.mark.parametrize("caller", ["score", "diagnose", "prune", "distill"])
def test_device_that_the_model_is_not_on(caller, monkeypatch) -> None:
    monkeypatch.setattr("simmim_ext.arguments.device_of", lambda _: torch.device("cuda"))
    text = (
        f"{caller}: config.device is 'cpu', and {caller} computes where the model is, on 'cuda'; "
        "move the model with model.to('cpu'), or leave device at None"
    )
    config = CompressConfig(device="cpu")
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        if caller == "prune":
            simmim_ext.prune(MODEL, {}, constraints=HALF, config=config)
        elif caller == "distill":
            simmim_ext.distill(MODEL, MODEL, DATA, config=config)
        else:
            getattr(simmim_ext, caller)(MODEL, DATA, config=config)


@pytest.mark.parametrize(
    ("device", "model", "fine"),
    [
        (None, "cuda:1", True),
        ("cpu", "cpu", True),
        ("cpu:0", "cpu", True),
        ("cuda", "cuda:1", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:0", "cuda:1", False),
        ("cuda", "cpu", False),
    ],
)
def test_devices_that_are_alike(device, model, fine, monkeypatch) -> None:
    monkeypatch.setattr("simmim_ext.arguments.device_of", lambda _: torch.device(model))
    with nullcontext() if fine else pytest.raises(ValueError, match="score: config.device is"):
        check_device("score", MODEL, CompressConfig(device=device))


@pytest.mark.parametrize("caller", ["compress", "score", "diagnose", "prune"])
def test_example_inputs_without_a_sample(caller) -> None:
    text = f"{caller}: example_inputs must hold at least one sample, got a batch of 0; give"
    with pytest.raises(SimMIMError, match=f"^{text}"):
        if caller == "prune":
            simmim_ext.prune(MODEL, {}, constraints=HALF, example_inputs=X[:0])
        elif caller == "compress":
            compress(example_inputs=X[:0])
        else:
            getattr(simmim_ext, caller)(MODEL, DATA, example_inputs=X[:0])
