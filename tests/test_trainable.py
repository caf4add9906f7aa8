"""What distillation needs of a model is checked before any work, and calls leave it as it was."""

import re

import pytest
import torch
from small_workflow import DATA, HALF, MODEL, compress, network
from torch import nn

import simmim_ext
from simmim_ext import CompressConfig, SimMIMError


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
