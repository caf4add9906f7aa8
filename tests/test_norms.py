"""A layer without a bias has one in the BatchNorm that alone reads it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simmim_ext.graph import trace_units
from simmim_ext.norms import norms_behind
from simmim_ext.reconstruction import reconstruct
from simmim_ext.removal import remove_units

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.other = conv(3, 3), conv(3, 3), Norm(3), Norm(3)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


class Norm(nn.BatchNorm2d):
    """With statistics as after training."""

    def __init__(self, channels):
        super().__init__(channels)
        nn.init.uniform_(self.running_mean, -0.3, 0.3)
        nn.init.uniform_(self.running_var, 0.5, 1.5)


class ReadTwice(Plain):
    def forward(self, x):
        y = self.a(x)
        return self.norm(y) + y


class ReadByAModule(Plain):
    def __init__(self):
        super().__init__()
        self.last = nn.Identity()

    def forward(self, x):
        y = self.a(x)
        return self.norm(y) + self.last(y).detach()


class InBetween(Plain):
    def forward(self, x):
        return self.norm(torch.relu(self.a(x)))


class ChangedInPlace(Plain):
    def forward(self, x):
        y = self.a(x)
        y.mul_(2)
        return self.norm(y)


class NormTwice(Plain):
    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


class LayerTwice(Plain):
    def forward(self, x):
        return self.norm(self.a(x)) + self.other(self.a(x + 1))


class OfTheBatch(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)


class ByFunction(Plain):
    def forward(self, x):
        n = self.norm
        return F.batch_norm(self.a(x), n.running_mean, n.running_var)


@pytest.mark.parametrize(
    ("network", "behind"),
    [
        (Plain, {"a": "norm"}),
        (ReadTwice, {}),
        (ReadByAModule, {}),
        (InBetween, {}),
        (ChangedInPlace, {}),
        (NormTwice, {}),
        (LayerTwice, {}),
        (OfTheBatch, {}),
        (ByFunction, {}),
    ],
)
def test_the_norm_alone_reads_the_layer(network, behind):
    model = network().eval()
    before = model(X)
    assert norms_behind(model, ["a", "b"], X, lambda model, x: model(x).mean((2, 3))) == behind
    assert torch.equal(model(X), before)


def network():
    torch.manual_seed(0)
    layers = [conv(3, 12), Norm(12), nn.ReLU(), conv(12, 8), Norm(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def test_a_bias_in_the_norm_makes_up_for_the_mean_of_what_was_removed():
    teacher = network()
    data = (torch.rand(400, 3, 6, 6) + 1).split(100)  # whose means say much
    groups = trace_units(teacher, data[0])
    units = {g.name: range(g.units // 3 if g.name == "0" else g.units) for g in groups}
    student, history = remove_units(teacher, groups, units)
    fitted = reconstruct(student, teacher, data, history, samples=400)
    assert not torch.equal(fitted[4].running_mean, student[4].running_mean)
    assert torch.equal(fitted[4].running_var, student[4].running_var)
    x = torch.cat(data)
    with torch.no_grad():
        mine, theirs = fitted[:4](x) - fitted[4].running_mean.view(-1, 1, 1), teacher[:4](x)
        theirs -= teacher[4].running_mean.view(-1, 1, 1)
        spread = theirs.std((0, 2, 3))
    # Of the positions that were looked at it is exact.
    assert ((mine.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs() < 0.1 * spread).all()
