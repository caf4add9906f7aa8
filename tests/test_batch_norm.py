"""Distillation of networks with BatchNorm: statistics that stay, and a student that gets worse."""

import re
import warnings

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, compress, distill

FROZEN = CompressConfig(epochs=2, freeze_batch_norm=True)


def network(hidden=32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 5)
    )


@pytest.fixture(scope="module")
def x():
    return torch.randn(1500, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teacher(x):
    """With statistics of its data, as training leaves them."""
    model = network()
    model[1].momentum = None
    model(x)
    return model.eval()


def test_frozen_statistics_stay(teacher, x) -> None:
    student = network(8, seed=1)
    student[1].running_mean.add_(0.3)
    for config in (FROZEN, CompressConfig(epochs=2)):
        trained, _ = distill(student, teacher, [x], config=config)
        for name in ("running_mean", "running_var"):
            same = torch.equal(getattr(trained[1], name), getattr(student[1], name))
            assert same == config.freeze_batch_norm
        assert not torch.equal(trained[1].weight, student[1].weight)
        assert all(module.training for module in trained.modules())


def test_frozen_statistics_need_no_batch_of_their_own(teacher, x) -> None:
    _, history = distill(network(8, seed=1), teacher, list(x[:20].split(1)), config=FROZEN)
    assert [row["loss"] > 0 for row in history] == [True, True]


def test_a_student_that_gets_worse_is_told_of(teacher, x) -> None:
    """With what does: batches that are too few and too small for statistics, and large steps."""

    def run(**settings):
        config = CompressConfig(epochs=1, **settings)
        return compress(
            teacher,
            constraints={"units": 16},
            calibration=[x],
            train=list(x[:8].split(2)),
            config=config,
        )

    with pytest.warns(UserWarning, match="took the model further from the original") as caught:
        run(lr=0.1)
    before, after = map(float, re.findall(r"KL (\S+) to (\S+) nats", str(caught[0].message))[0])
    assert 0 < before < after
    assert "set freeze_batch_norm=True" in str(caught[0].message)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="took the model further") as caught:
        run(lr=0.1, freeze_batch_norm=True)
    assert "freeze" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # labels, or the Gram term, may be worth it
        run(lr=0.1, gram_weight=1.0)
        compress(
            teacher, constraints={"units": 16}, calibration=[x], config=CompressConfig(epochs=20)
        )
