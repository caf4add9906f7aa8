"""Models that change their inputs in place: same results, and the caller's data stay."""

import pytest
import torch
from torch import nn

from simmim_ext import CompressConfig, compress, diagnose, distill, prune, score
from simmim_ext.forward import forward
from simmim_ext.inputs import copies, inputs_kept

DATA = torch.rand(1000, 12, generator=torch.Generator().manual_seed(0))
CONFIG = CompressConfig(epochs=2)


class Normalized(nn.Module):
    """Normalizes its input, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        self.in_place = in_place

    def forward(self, x):
        return self.layers(x.sub_(0.5).mul_(3) if self.in_place else (x - 0.5) * 3)


class Rectified(nn.Sequential):
    def __init__(self, in_place):
        torch.manual_seed(1)
        layers = nn.Linear(12, 16), nn.ReLU(in_place), nn.Linear(16, 4)
        super().__init__(nn.ReLU(in_place), *layers)


def compressed(constraints, granularity="unit", epochs=2):
    def call(model, x):
        config = CompressConfig(epochs=epochs)
        options = {"granularity": granularity, "config": config, "progress": False}
        result = compress(model, calibration=x, constraints=constraints, evaluate=x, **options)
        return [*result.model.state_dict().values(), torch.tensor(result.report["fidelity"]["kl"])]

    return call


def pruned(model, x):
    scores = score(model, x)
    with_data = prune(model, scores, constraints={"units": 0.5}, calibration=x)
    without = prune(model, scores, constraints={"units": 0.5})
    return [*with_data.model.state_dict().values(), *without.model.state_dict().values()]


CALLS = {
    "unit": compressed({"units": 0.5}),
    "weight": compressed({"sparsity": 0.5}, "weight", epochs=0),
    "score": lambda model, x: list(score(model, x).values()),
    "diagnose": lambda model, x: [v.entropy for v in diagnose(model, x).layers.values()],
    "prune": pruned,
    "distill": lambda model, x: distill(
        nn.Sequential(nn.ReLU(model[0].inplace), nn.Linear(12, 4))
        if isinstance(model, Rectified)
        else Normalized(model.in_place),
        model,
        x,
        config=CONFIG,
        progress=False,
    )[0].parameters(),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [Normalized, Rectified])
def test_a_model_may_change_its_input(kind, name):
    found = []
    for in_place in (False, True):
        x = [batch.clone() - 0.2 for batch in DATA.split(250)]
        torch.manual_seed(0)
        found.append(list(CALLS[name](kind(in_place), x)))
        assert torch.equal(torch.cat(x), DATA - 0.2)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_forward_fn_may_change_its_batch():
    x = [batch.clone() for batch in DATA.split(250)]
    model = Normalized(False)
    scores = score(model, x, forward_fn=lambda model, batch: model(batch.sub_(0.5)))
    assert torch.equal(torch.cat(x), DATA)
    expected = score(model, x, forward_fn=lambda model, batch: model(batch - 0.5))
    assert torch.equal(scores["layers.0"], expected["layers.0"])


def test_copies_are_made_only_where_they_are_needed():
    x = DATA.clone()
    assert copies() is None
    with inputs_kept():
        assert copies() is not None  # nobody knows yet
        forward(Normalized(False), x)
        assert copies() is None
    with inputs_kept(models=2):
        forward(Normalized(False), x)
        assert copies() is not None
        forward(Normalized(True), x)
        assert copies() is not None
    assert copies() is None
    assert torch.equal(x, DATA)
