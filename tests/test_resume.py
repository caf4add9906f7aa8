import pytest
import torch
import torch.nn.functional as F
from models import CASES, case, snapshot
from torch import nn

from simmim_ext import CompressConfig, assessment, compress, resume
from simmim_ext.course import Course
from simmim_ext.nn import MaskedLinear
from simmim_ext.order import layers_in_order
from simmim_ext.recording import Recorder
from simmim_ext.remembered import bytes_of


class Split(nn.Module):
    """Two answers, of which the second is read much later."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.a(x), {"late": self.b(x), "size": 6}


class Odd(nn.Module):
    """Long skips, activations in place, a module that runs twice, a branch that nobody reads."""

    def __init__(self):
        super().__init__()
        self.split, self.twice, self.idle = Split(), nn.Linear(6, 6), nn.Linear(6, 2)
        self.act, self.mid, self.head = nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x, more = self.split(x)
        self.idle(x)
        y = F.relu(self.mid(self.act(self.twice(x))), inplace=True)
        y = y + self.twice(y)
        y *= 2
        return self.head(y + more["late"][:, : more["size"]])


def network(name):
    return (Odd(), torch.randn(2, 6)) if name == "odd" else case(name)


def resumed(model, data):
    return resume.Resumed(model, data, Course(model, data[0][:2], None), None)


def plain(model, data, name):
    for batch in data:
        recorder = Recorder(model, [name])
        with torch.no_grad(), recorder.recording():
            outputs = model(batch)
        yield recorder.calls[name], outputs


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["nothing kept", "all kept"])
@pytest.mark.parametrize("name", [*CASES, "odd"])
def test_calls_are_those_of_whole_passes_while_layers_change(name, kept, monkeypatch):
    model, x = network(name)
    monkeypatch.setattr(resume, "MOST_KEPT", kept)
    generator = torch.Generator().manual_seed(3)
    data = [torch.randn(n, *x.shape[1:], generator=generator) for n in (5, 2, 7)]
    model.eval()
    before = snapshot(model)
    runs = resumed(model, data)
    order = layers_in_order(model, data[0][:2], None)
    assert len(order) >= 2
    for name in order:
        for to_the_end in (False, True):
            ran = runs.run([name], to_the_end=to_the_end)
            found = [(list(calls[name]), outputs) for calls, outputs in ran]
            whole_passes = plain(model, data, name)
            for (calls, outputs), (expected, whole) in zip(found, whole_passes, strict=True):
                assert len(calls) == len(expected)
                for one, other in zip(calls, expected, strict=True):
                    assert all(map(torch.equal, one, other))
                assert not to_the_end or torch.equal(outputs, whole)
        assert snapshot(model)[1:] == before[1:]
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(0.9)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("fit", [5, 2], ids=["all batches fit", "two fit"])
def test_what_is_done_is_not_computed_again(fit, monkeypatch):
    monkeypatch.setattr(resume, "MOST_KEPT", fit * 3 * 4 * 4)

    class Counted(nn.Linear):
        computed = 0

        def forward(self, x):
            Counted.computed += len(x) == 3
            return super().forward(x)

    model = nn.Sequential(*(Counted(4, 4) for _ in range(8)))
    data = [torch.randn(3, 4) for _ in range(5)]
    runs = resumed(model, data)
    for i in range(8):
        list(runs.run([str(i)], to_the_end=False))
    # Once as the layer that is asked for, and once more on the way to the next; else by all runs.
    assert Counted.computed == fit * (2 * 8 - 1) + (5 - fit) * sum(range(1, 9))
    assert runs.kept[fit:] == [{}] * (5 - fit)
    for kept in runs.kept[:fit]:
        assert set(kept) == set("0123456")
        assert {name for name, outputs in kept.items() if bytes_of(outputs)} == {"6"}


def test_a_module_that_is_skipped_on_some_batches_is_computed_on_all():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x) if len(x) != 3 else x * 2
            return self.c(self.b(x))

    model = Sometimes()
    data = [torch.randn(n, 4) for n in (5, 3, 4)]
    runs = resumed(model, data)
    for name in "abc":
        found = [calls[name][:] for calls, _ in runs.run([name], to_the_end=False)]
        for one, (expected, _) in zip(found, plain(model, data, name), strict=True):
            assert [tuple(map(torch.Tensor.tolist, c)) for c in one] == [
                tuple(map(torch.Tensor.tolist, c)) for c in expected
            ]
    assert set(runs.kept[0]) == set("ab")
    assert runs.kept[1] == {}


class Twice(nn.Module):
    """A layer that runs twice and reads what it is given by no function of torch's."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.twice = MaskedLinear.from_linear(nn.Linear(6, 6), torch.rand(6, 6) < 0.5)

    def forward(self, x):
        return self.head(self.twice(F.relu(self.twice(self.first(x)))))


def test_what_own_operators_read_is_kept():
    torch.manual_seed(0)
    model, data = Twice().eval(), [torch.randn(5, 6), torch.randn(3, 6)]
    runs = resumed(model, data)
    for name in ("first", "twice", "head"):
        ran = runs.run([name], to_the_end=True)
        for (_, outputs), batch in zip(ran, data, strict=True):
            with torch.no_grad():
                assert torch.equal(outputs, model(batch))


class Encoder(nn.Module):
    """Layers that torch fuses in eval mode, where nothing wants gradients."""

    def __init__(self):
        super().__init__()
        layers = (nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(2))
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


@pytest.mark.filterwarnings("ignore:score. .* calibration samples are few")
@pytest.mark.parametrize(
    ("granularity", "constraints"), [("unit", {"units": 0.5}), ("weight", {"sparsity": 0.5})]
)
def test_layers_of_fused_encoders_are_seen(granularity, constraints, monkeypatch):
    monkeypatch.setattr(assessment, "measure_latency", lambda *_: [1.0, 1.0])
    torch.manual_seed(0)
    result = compress(
        Encoder(),
        calibration=[torch.randn(40, 5, 16)],
        constraints=constraints,
        granularity=granularity,
        ignored_layers=["*.self_attn"],
        config=CompressConfig(epochs=0),
    )
    inner = [layer for layer in result.report["layers"] if "linear1" in layer["name"]]
    assert len(inner) == 2
    assert all(layer["after"] < layer["before"] for layer in inner)


class Sized(nn.Module):
    """A layer that says how many samples there are, which is read when the rest is not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x), len(x)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.sized, self.mid, self.head = Sized(), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x, samples = self.sized(x)
        return self.head(self.mid(x)) / samples


@pytest.mark.parametrize("order", [["sized.layer", "mid", "head"], ["head", "mid", "head"]])
def test_numbers_are_those_of_each_batch_and_runs_may_go_back(order):
    torch.manual_seed(0)
    model, data = Counts(), [torch.randn(n, 6) for n in (5, 3)]
    runs = resumed(model, data)
    for name in order:
        ran = runs.run([name], to_the_end=True)
        for (calls, outputs), (expected, whole) in zip(ran, plain(model, data, name), strict=True):
            assert torch.equal(outputs, whole)
            assert torch.equal(calls[name][0][0], expected[0][0])
    assert all(map(torch.equal, runs.outputs(), [whole for _, whole in plain(model, data, "mid")]))
