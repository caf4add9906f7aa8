"""The workflow's functions, given what they can't take: one error each, nothing changed."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import simmim_ext
from simmim_ext import CompressConfig, CompressionResult, SimMIMError
from simmim_ext.arguments import check_device
from simmim_ext.nn import SparseLinear, accelerate, strip

HALF = {"units": 0.5}
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.arange(40) % 3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


MODEL = network()


def compress(model=MODEL, data=DATA, constraints=HALF, **keywords):
    return simmim_ext.compress(
        model, calibration=data, constraints=constraints, progress=False, **keywords
    )


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
        (lambda: simmim_ext.load(3, MODEL), "load: folder must be a path, got int"),
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


class Untouched(list):
    def __iter__(self):
        raise AssertionError("work has begun")


def test_nothing_to_train_is_told_before_any_work() -> None:
    frozen = network().requires_grad_(False)
    text = (
        "compress: config.epochs is 10, and no parameter of the model requires a gradient; call "
        "model.requires_grad_(True), or set epochs=0"
    )
    with pytest.raises(SimMIMError, match="^" + re.escape(text)):
        compress(frozen, Untouched(DATA))


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_a_frozen_model_without_epochs() -> None:
    result = compress(network().requires_grad_(False), config=CompressConfig(epochs=0))
    assert result.model[0].out_features == 4


def fails(model: nn.Module, batch: object) -> torch.Tensor:
    raise ZeroDivisionError("no\nway")


@pytest.mark.parametrize(
    ("data", "forward_fn", "text"),
    [
        (
            [(X[:, :4], DATA[0][1])],
            None,
            "the model failed on a batch, a tuple that begins with tensor of shape [40, 4] "
            "(RuntimeError: mat1 and mat2 shapes cannot be multiplied (40x4 and 6x8)); it was "
            "given the first item alone; check the data, or pass",
        ),
        (
            [{"pixels": X}],
            None,
            "the model failed on a batch, a dict of 'pixels': tensor of shape [40, 6] (TypeError: ",
        ),
        (
            [X],
            fails,
            "forward_fn failed on a batch, tensor of shape [40, 6] (ZeroDivisionError: no); check",
        ),
    ],
)
def test_batches_that_the_model_cannot_take(data, forward_fn, text) -> None:
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    for call in (
        lambda: compress(data=data, forward_fn=forward_fn),
        lambda: simmim_ext.score(MODEL, data, forward_fn=forward_fn),
        lambda: simmim_ext.diagnose(MODEL, data, forward_fn=forward_fn),
        lambda: simmim_ext.distill(MODEL, MODEL, data, forward_fn=forward_fn, progress=False),
    ):
        with pytest.raises(SimMIMError, match="^" + re.escape(text)) as raised:
            call()
        assert "\n" not in str(raised.value)
        assert raised.value.__cause__ is not None
    assert MODEL.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.modules())
    assert all(torch.equal(MODEL.state_dict()[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("argument", ["train", "evaluate"])
def test_data_that_the_model_cannot_take_are_named(argument) -> None:
    text = f"{argument}: the model failed on a batch, tensor of shape [40, 4] (RuntimeError: mat1"
    with pytest.raises(SimMIMError, match="^" + re.escape(text)):
        compress(**{argument: [X, X[:, :4]]}, config=CompressConfig(epochs=1))


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_calibration_data_that_the_model_cannot_be_trained_on_are_named() -> None:
    class OnlyInTests(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 2:
                raise ZeroDivisionError("no way")
            return super().forward(x)

    model = nn.Sequential(OnlyInTests(network()), nn.Linear(3, 3))
    with pytest.raises(SimMIMError, match=r"^calibration: the model failed on a batch, a tuple"):
        compress(model, config=CompressConfig(epochs=1))


def test_students_outputs_must_be_the_teachers() -> None:
    text = "distill: student must have as many outputs as teacher, got [40, 2] and [40, 3]"
    with pytest.raises(SimMIMError, match=re.escape(text)):
        simmim_ext.distill(nn.Linear(6, 2), MODEL, DATA, progress=False)


def test_labels_beyond_the_classes() -> None:
    config = CompressConfig(label_weight=1.0)
    text = "distill: labels must be below the 3 classes of the outputs (or negative, none), got 5"
    with pytest.raises(SimMIMError, match=re.escape(text)):
        simmim_ext.distill(MODEL, MODEL, [(X, DATA[0][1] + 3)], config=config, progress=False)


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("held_out", [False, True])
def test_labels_that_do_not_fit_are_told_before_any_work(held_out, monkeypatch) -> None:
    data = [(X, DATA[0][1] + 1)]
    name = "held-out calibration samples" if held_out else "evaluate"
    scores = simmim_ext.score(MODEL, [X])
    for stage in ("stages.score_groups", "pruning.prune_units"):
        monkeypatch.setattr(f"simmim_ext.{stage}", None)
    with pytest.raises(SimMIMError, match=f"^{name}: labels, .* class below 3 .*, got class 3;"):
        compress(**{"data" if held_out else "evaluate": data})
    with pytest.raises(SimMIMError, match=r"^calibration samples .*: labels, .*, got class 3;"):
        simmim_ext.prune(MODEL, scores, constraints=HALF, calibration=data)
    with pytest.raises(SimMIMError, match=r"^calibration: labels, .*, got class 3; correct"):
        simmim_ext.score(MODEL, data, criterion="taylor")


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model.last = model(torch.rand(2, 4))
    with pytest.raises(
        SimMIMError, match=r"compress: the model cannot be copied \(.*; take from its attributes"
    ):
        simmim_ext.compress(model, calibration=[torch.rand(20, 4)], constraints={"units": 0.5})


class Counting(nn.Module):
    """Its forward changes buffers and attributes in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        self.calls += 1
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_calls_leave_the_buffers_and_attributes_of_a_model() -> None:
    model, student = Counting(), network()
    scores = simmim_ext.score(model, DATA)
    simmim_ext.diagnose(model, DATA)
    pruned = simmim_ext.prune(model, scores, constraints=HALF, calibration=DATA).model
    simmim_ext.prune(model, scores, constraints=HALF)
    simmim_ext.distill(student, model, DATA, config=CompressConfig(epochs=1), progress=False)
    compress(model, config=CompressConfig(epochs=1))
    assert model.calls == 0
    assert model.seen == 0
    own = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in own for parameter in pruned.parameters())


def test_a_teacher_with_a_computed_weight_can_be_watched() -> None:
    teacher = network()
    teacher.extra = teacher[0].weight * 2
    config = CompressConfig(epochs=1)
    assert len(simmim_ext.distill(network(), teacher, DATA, config=config, progress=False)[1]) == 1


def test_sparse_gradients_are_told_before_any_work() -> None:
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    text = (
        "compress: config.epochs is 10, and the Embedding '0' gives sparse gradients, which Adam "
        "does not take; set its attribute sparse to False"
    )
    with pytest.raises(SimMIMError, match="^" + re.escape(text)):
        compress(model, Untouched(DATA))
    model[0].requires_grad_(False)
    data = [torch.randint(0, 9, (40, 2))]
    student, _ = simmim_ext.distill(model, model, data, config=CompressConfig(epochs=1))
    assert not torch.equal(student[2].weight, model[2].weight)


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_outputs_without_gradients_are_told_before_any_work(granularity, monkeypatch) -> None:
    monkeypatch.setattr("simmim_ext.stages.prune_weights", None)
    monkeypatch.setattr("simmim_ext.stages.score_groups", None)

    @torch.no_grad()
    def forward_fn(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return model(batch[0])

    text = "config.epochs is 10, and the model's outputs do not depend on a parameter that"
    budget = {"granularity": granularity}
    budget["constraints"] = HALF if granularity == "unit" else {"sparsity": 0.5}
    with pytest.raises(SimMIMError, match=f"^compress: {text}"):
        compress(forward_fn=forward_fn, **budget)
    with pytest.raises(SimMIMError, match=f"^distill: {text}"):
        simmim_ext.distill(MODEL, MODEL, DATA, forward_fn=forward_fn, progress=False)


class OnlyInTraining(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


def test_gradients_in_training_alone_will_do() -> None:
    model = OnlyInTraining(network(), nn.BatchNorm1d(3))
    config = CompressConfig(epochs=1)
    assert len(simmim_ext.distill(model, model, DATA, config=config, progress=False)[1]) == 1
    assert model[1].num_batches_tracked == 0
