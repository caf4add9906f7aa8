"""What a layer's lost units cost, measured: at the widths tried it is what was found."""

import copy
import dataclasses
import math

import pytest
import torch
from architectures import architecture
from models import case
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, original, prune, resume, score
from simmim_ext.conversion import prepared
from simmim_ext.forward import forward
from simmim_ext.outputs import kl_per_sample
from simmim_ext.plan import guarded
from simmim_ext.reconstruction import reconstruct
from simmim_ext.removal import remove_units
from simmim_ext.trials import measured, scaled

PROJECTIONS = [f"blocks.{block}.attention.{part}" for block in (0, 1) for part in "qkv"]

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


@pytest.fixture
def data():
    return torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(5)).split(100)


@pytest.fixture
def model():
    return case("cnn")[0]


def test_expected_becomes_what_was_found():
    expected = torch.tensor([1.0, 0.8, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0]).double()
    same = scaled(expected, {2: 0.4, 4: 0.1})
    torch.testing.assert_close(same, expected)
    found = scaled(expected, {2: 1.2, 4: 0.1})
    assert found[2] == pytest.approx(1.2, rel=1e-3)
    assert found[4] == pytest.approx(0.1, rel=1e-3)
    assert found[1] == pytest.approx(3 * 0.8, rel=1e-3)  # beyond the widths the ratio stays
    assert found[6] == pytest.approx(0.02, rel=1e-2)
    ratio = math.exp(math.log(3) * math.log(4 / 3) / math.log(2))
    assert found[3] == pytest.approx(0.2 * ratio, rel=1e-3)
    assert (scaled(expected, {2: 0.1, 4: 5.0}).diff() <= 0).all()
    assert scaled(expected, {2: math.nan}) is expected


def test_divergences_are_those_of_the_model_with_fewer_units(model, data):
    scores = score(model, data, config=CompressConfig(seed=1))
    before = copy.deepcopy(model.state_dict())
    found = measured(scores, model, data, seed=1)
    again = measured(scores, model, data, seed=1)
    assert all(torch.equal(found.divergence[n], again.divergence[n]) for n in scores)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(found.divergence[n][4] > 2 * scores.divergence[n][4] for n in scores)
    for name, values in found.divergence.items():
        assert (values.diff() <= 0).all()
        width = len(scores[name]) // 2
        budget = {"per_layer": {name: width}}
        result = prune(model, scores, constraints=budget, calibration=data)
        # The same samples are held out; to the ratio some nats are added.
        assert values[width] == pytest.approx(result.report["fidelity"]["kl"], rel=1e-2)


def plainly(scores, model, data, reconstructed):
    """What is measured, each trial by itself and from the input to the output."""
    order, needed = guarded(scores)
    everything = {group.name: range(group.units) for group in scores.groups}
    divergence = {}
    for name, expected in scores.divergence.items():
        found = {}
        for share in (1 / 8, 1 / 2) if len(scores.divergence) <= 12 else (1 / 4,):
            width = max(int(share * len(order[name])), needed[name])
            kept = everything | {name: sorted(order[name][:width])}
            student, history = remove_units(model, scores.groups, kept)
            if reconstructed:
                student = reconstruct(student, model, data, history, samples=2000, depth=6)
            with torch.no_grad():
                ours, theirs = (
                    torch.cat([forward(m.eval(), batch).float() for batch in data])
                    for m in (student, copy.deepcopy(model))
                )
            found[width] = float(kl_per_sample(theirs, ours).mean())
        divergence[name] = scaled(expected, found)
    return divergence


class Odd(nn.Module):
    """A parameter of no layer, a layer that runs twice, a long skip."""

    def __init__(self):
        super().__init__()
        self.place, self.first = nn.Parameter(torch.randn(12)), nn.Linear(12, 16)
        self.twice, self.act = nn.Linear(16, 16), nn.ReLU(inplace=True)
        self.mid, self.last, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x + self.place)
        y = self.act(self.twice(torch.relu(self.twice(x))))
        return self.head(x + self.last(self.act(self.mid(y))))


SOME = ("resnet", "gated transformer", "timm vit", "torch encoder", "in place", "tuple outputs")


@pytest.mark.parametrize("name", [*SOME, "odd"])
@pytest.mark.parametrize("kept", ["all", "nothing"])
def test_trials_that_share_what_they_compute_find_what_each_finds_by_itself(
    name, kept, monkeypatch
):
    if kept == "nothing":
        monkeypatch.setattr(resume, "MOST_KEPT", 0)
        monkeypatch.setattr(original, "MOST_KEPT", 0)
        monkeypatch.setattr(original, "MOST_SAID", 0)
    if name == "odd":
        torch.manual_seed(0)
        model, data = Odd(), torch.randn(300, 12).split(100)
    else:
        model, data = architecture(name)
    ignored = PROJECTIONS if "transformer" in name else []
    model = prepared(model, ignored)[0]
    scores = score(model, data, ignored_layers=ignored)
    assert len(scores.divergence) > 1
    for reconstructed in (True, False):
        expected = plainly(scores, model, data, reconstructed)
        found = measured(scores, model, data, reconstructed=reconstructed)
        for n in scores:
            torch.testing.assert_close(found.divergence[n], expected[n], rtol=1e-3, atol=1e-7)


def test_no_trial_computes_what_comes_before_its_layer():
    class Counted(nn.Linear):
        computed = 0

        def forward(self, x):
            self.__class__.computed += len(x) == 50
            return super().forward(x)

    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(12, 12), nn.ReLU())]
    model = nn.Sequential(Counted(12, 12), nn.ReLU(), *layers, nn.Linear(12, 4))
    data = torch.randn(200, 12).split(50)
    scores = score(model, data)
    assert len(scores) == 7
    Counted.computed = 0
    found = measured(scores, model, data)
    assert len(found.divergence) == 7
    # The original's answers, what its layers say, and what the trials of later layers go on from;
    # and the two trials of the first.
    assert Counted.computed == 5 * len(data)


class Viewed(nn.Module):
    """As torch's tutorial on CIFAR-10: the number of channels is written down."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.hidden, self.head = nn.Linear(128, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu().view(-1, 128)
        return self.head(self.hidden(x).relu())


@pytest.mark.parametrize("reconstruct", [True, False])
def test_a_width_that_is_written_down_is_named(reconstruct):
    torch.manual_seed(0)
    data = torch.randn(96, 3, 8, 8).split(24)
    config = CompressConfig(epochs=0, reconstruct=reconstruct)
    text = (
        "does not run: 'hidden' fails .mat1 and mat2 shapes.*put the layers that make what it "
        "reads in ignored_layers; already the units of 'second', removed alone, cause it"
    )
    with pytest.raises(SimMIMError, match=text):
        compress(Viewed(), calibration=data, constraints={"params": 0.5}, config=config)
    compress(
        Viewed(),
        calibration=data,
        constraints={"params": 0.9},
        config=config,
        ignored_layers=["second"],
    )


@pytest.mark.parametrize("budget", ["flops", "latency"])
def test_a_width_that_is_written_down_is_named_where_small_models_are_counted(budget):
    torch.manual_seed(0)
    model, data = Viewed(), torch.randn(30, 3, 8, 8).split(15)
    settings = {
        "calibration": data,
        "constraints": {budget: 0.9},
        "config": CompressConfig(epochs=0),
    }
    text = "does not run: .*; already the units of 'second', removed alone, cause it"
    with pytest.raises(SimMIMError, match=text):
        compress(model, **settings)
    scores = score(model, data)
    with pytest.raises(SimMIMError, match=text):
        prune(model, scores, constraints={budget: 0.9})


def test_a_trial_that_fails_for_another_reason_names_its_layer(model, data, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no room")

    scores = score(model, data)
    monkeypatch.setattr("simmim_ext.trials.refit_", fail)
    text = r"measure: .* failed on calibration data \(RuntimeError: no room\); .* the units of '"
    with pytest.raises(SimMIMError, match=text):
        measured(scores, model, data)


def test_a_few_samples_are_enough(model, data):
    few = [batch[:2] for batch in data[:2]]
    scores = score(model, data)
    found = measured(scores, model, few)
    assert all(torch.isfinite(values).all() for values in found.divergence.values())
    config = CompressConfig(epochs=0)
    budget = {"params": 0.5}
    compress(model, calibration=few, evaluate=data, constraints=budget, config=config)


def test_where_nothing_is_divided_nothing_is_measured(model, data):
    scores = score(model, data)
    one = dataclasses.replace(scores, groups=scores.groups[:1])
    assert measured(one, model, data) is one
    relevance = score(model, data, criterion="relevance")
    assert measured(relevance, model, data) is relevance

    def stages(**options):
        config = CompressConfig(epochs=0, **options.pop("config", {}))
        result = compress(model, calibration=data, config=config, **options)
        return [stage["name"] for stage in result.report["stages"]]

    assert "measure" in stages(constraints={"params": 0.5})
    assert "measure" not in stages(constraints={"per_layer": {scores.groups[0].name: 0.5}})
    assert "measure" not in stages(constraints={"params": 0.5}, config={"allocation": "uniform"})
