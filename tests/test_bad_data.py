"""The workflow's functions, given batches and labels that do not fit the model."""

import re

import pytest
import torch
from small_workflow import DATA, HALF, MODEL, X, compress, network
from torch import nn

import simmim_ext
from simmim_ext import CompressConfig, SimMIMError


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
    given = {"forward_fn": forward_fn}
    for argument, call in (
        ("calibration", lambda: compress(data=data, **given)),
        ("calibration", lambda: simmim_ext.score(MODEL, data, **given)),
        ("data", lambda: simmim_ext.diagnose(MODEL, data, **given)),
        ("data", lambda: simmim_ext.distill(MODEL, MODEL, data, **given, progress=False)),
    ):
        with pytest.raises(SimMIMError, match="^" + re.escape(f"{argument}: {text}")) as raised:
            call()
        assert "\n" not in str(raised.value)
        assert raised.value.__cause__ is not None
    assert MODEL.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.modules())
    assert all(torch.equal(MODEL.state_dict()[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("output", ["classes", "values"])
def test_later_batches_that_the_model_cannot_take(output) -> None:
    data, scores = [X, X[:, :4]], simmim_ext.score(MODEL, [X])
    for argument, call in (
        ("calibration", lambda: compress(data=data, output=output, evaluate=[X])),
        ("calibration", lambda: simmim_ext.score(MODEL, data, output=output)),
        (
            "calibration",
            lambda: simmim_ext.prune(
                MODEL, scores, constraints=HALF, calibration=data[1:], output=output
            ),
        ),
        ("data", lambda: simmim_ext.diagnose(MODEL, data, output=output)),
        ("data", lambda: simmim_ext.distill(MODEL, MODEL, data, output=output, progress=False)),
    ):
        with pytest.raises(SimMIMError, match=f"^{argument}: the model failed on a batch, tensor"):
            call()


def test_batches_without_values_are_named() -> None:
    text = r"^calibration: a batch holds a tensor of shape \[40, 6\] on the meta device"
    with pytest.raises(SimMIMError, match=text):
        compress(data=[X.to("meta")])
    with pytest.raises(SimMIMError, match=r"^example_inputs: a batch must be a tensor, .* a str;"):
        simmim_ext.score(MODEL, [X], example_inputs="x")


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("rows", [13, 60])
def test_outputs_that_are_not_as_many_for_each_sample(rows) -> None:
    def answer(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).repeat(2, 1)[:rows]

    text = f"score: the model's outputs have {rows} rows for 40 samples, not as many for each; pass"
    with pytest.raises(SimMIMError, match=f"^{text} forward_fn="):
        simmim_ext.score(MODEL, [X], forward_fn=answer, output="classes")


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
@pytest.mark.parametrize("argument", ["train", "evaluate"])
def test_data_that_the_model_cannot_take_are_named(argument) -> None:
    text = f"{argument}: the model failed on a batch, tensor of shape [40, 4] (RuntimeError: mat1"
    with pytest.raises(SimMIMError, match="^" + re.escape(text)):
        compress(**{argument: [X, X[:, :4]]}, config=CompressConfig(epochs=1))


@pytest.mark.filterwarnings("ignore:score. .* samples are few")
def test_calibration_data_that_the_model_cannot_be_trained_on_are_named() -> None:
    class OnlyInTests(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 2:
                raise ZeroDivisionError("no way")
            return super().forward(x)

    model = nn.Sequential(network(), OnlyInTests(3), nn.Linear(3, 3))
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
