import pytest
import torch
from torch import nn

from simmim_ext.gathering import Gatherer
from simmim_ext.gram import CHUNK, Gram, affine_moments, joint_moments
from simmim_ext.layers import input_columns, output_rows
from simmim_ext.moments import Moments
from simmim_ext.recording import draw_positions

ROWS = 3 * CHUNK + 100


def rows(kind, count=ROWS, columns=300):
    """Rows [count, columns] float32 that float32 sums would spoil."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, columns, generator=generator)
    if kind == "far":  # large mean, small variance
        x = 1000 * torch.linspace(-1, 1, columns) + 0.1 * x
    if kind == "drifting":  # the first rows' mean is nobody's
        x = x + torch.linspace(0, 100, count)[:, None]
    if kind == "heavy":
        x = x * torch.rand(count, 1, generator=generator).clamp(min=1e-5) ** -1
    if kind == "scales":
        x = x * 10 ** torch.linspace(-6, 6, columns)
    if kind == "alike":
        x = x[:, :1] + 1e-2 * x
    return x


KINDS = ("plain", "far", "drifting", "heavy", "scales", "alike")


def gram_of(x, sizes):
    gram = Gram(x.shape[1], x.device, x.dtype)
    for part in x.split(sizes):
        gram.add_(part)
    return gram


def relative(found, exact):
    """Errors as shares of sqrt(C_ii C_jj)."""
    scale = exact.diagonal().sqrt()
    return float(((found - exact) / torch.outer(scale, scale)).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_are_those_of_float64(kind):
    x = rows(kind)
    found, xx = gram_of(x, 77).sums()
    exact = x.double()
    torch.testing.assert_close(
        found, exact.sum(0), rtol=1e-7, atol=1e-6 * float(x.abs().sum(0).max())
    )
    assert relative(xx, exact.T @ exact) < 2e-6
    centred = exact - exact.mean(0)
    covariance = xx - torch.outer(found, found) / len(x)
    # Of rows that drift the first mean does not take off what they have in common.
    assert relative(covariance, centred.T @ centred) < 5e-6
    assert torch.equal(xx, xx.T)


def test_batches_make_no_difference():
    x = rows("plain")
    one, two = gram_of(x, 10_000).sums(), gram_of(x, 33).sums()
    assert all(map(torch.equal, one, two))


def test_sums_may_be_asked_for_in_between():
    x = rows("far", 50, 8)
    gram = gram_of(x[:20], 7)
    first = gram.sums()
    torch.testing.assert_close(gram.sums(), first)
    gram.add_(x[20:])
    assert relative(gram.sums()[1], x.double().T @ x.double()) < 1e-6


def test_float64_stays():
    x = rows("plain", 100, 20).double() + 1e-9 * torch.randn(100, 20).double()
    torch.testing.assert_close(gram_of(x, 30).sums()[1], x.T @ x, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("setting", ["autocast", "precision"])
def test_products_keep_their_bits_where_the_user_allows_fewer(setting):
    x = rows("plain", 500, 64)
    before = torch.get_float32_matmul_precision()
    try:
        if setting == "precision":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            _, xx = gram_of(x, 100).sums()
    finally:
        torch.set_float32_matmul_precision(before)
    assert relative(xx, x.double().T @ x.double()) < 1e-6


def moments_of(x, z):
    x, z = x.double(), z.double()
    return Moments(len(x), x.sum(0), z.sum(0), x.T @ x, x.T @ z, z.T @ z)


@pytest.mark.parametrize("bias", [True, False])
def test_affine_moments_are_those_of_the_outputs(bias):
    torch.manual_seed(0)
    layer = nn.Linear(30, 50, bias=bias)
    x = rows("far", 400, 30)
    with torch.no_grad():
        z = x.double() @ layer.weight.T.double() + (layer.bias.double() if bias else 0)
    exact = moments_of(x, z)
    made = affine_moments(gram_of(x, 100), layer.weight, layer.bias)
    joint = joint_moments(gram_of(torch.cat([x.double(), z], 1), 100), 30)
    for found in (made, joint):
        assert found.samples == exact.samples
        for name in ("x", "z", "xx", "xz", "zz"):
            torch.testing.assert_close(
                getattr(found, name), getattr(exact, name), rtol=1e-6, atol=1
            )
        for a, b in zip(found.covariances(), exact.covariances(), strict=True):
            assert float((a - b).abs().max()) < 2e-6 * float(b.abs().max())


class Doubled(nn.Linear):
    """Its outputs are not what its weight makes of its inputs."""

    def forward(self, x):
        return super().forward(x).relu() * 2


class Net(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = second
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x).relu_()
        x = torch.relu_(self.second(x))
        return self.head(x.mean((2, 3)))


def gathered(model, batches, names, *, graded):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    gatherer = Gatherer(model, names, names, torch.Generator().manual_seed(0))
    for x in batches:
        with gatherer.gathering(None, graded):
            outputs = model(x)
            if graded:
                gatherer.backward(outputs.log_softmax(1)[:, 0].sum())
    return gatherer


def test_what_is_gathered_of_a_convolution_between_activations_in_place():
    torch.manual_seed(0)
    model = Net(nn.Conv2d(6, 6, 3, stride=2, padding=1))
    batches = torch.randn(24, 1, 8, 8).split(8)
    gatherer = gathered(model, batches, ["second", "head"], graded=True)
    moments, fisher = gatherer.moments("second"), gatherer.fisher("second")
    generator = torch.Generator().manual_seed(0)
    seen, total, count = [], torch.zeros(6, 6).double(), 0
    for x in batches:
        x = torch.relu(model.first(x))
        z = model.second(x).requires_grad_(True)
        at = draw_positions(model.second, z, generator)
        seen.append((input_columns(model.second, x, at), output_rows(model.second, z.detach(), at)))
        score = model.head(torch.relu(z).mean((2, 3))).log_softmax(1)[:, 0].sum()
        gradient = output_rows(model.second, torch.autograd.grad(score, z)[0], at).double()
        total += gradient.T @ gradient
        count += len(gradient)
    exact = moments_of(*map(torch.cat, zip(*seen, strict=True)))
    for name in ("x", "z", "xx", "xz", "zz"):
        torch.testing.assert_close(
            getattr(moments, name), getattr(exact, name), rtol=1e-5, atol=1e-4
        )
    torch.testing.assert_close(fisher, total / count, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_outputs_that_do_not_follow_from_the_weight_are_gathered(how):
    torch.manual_seed(0)
    layer = Doubled(6, 4) if how == "subclass" else nn.Linear(6, 4)
    if how == "hook":
        layer.register_forward_hook(lambda _, args, z: z.relu() * 2)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), layer)
    x = torch.randn(64, 5)
    with torch.no_grad():
        exact = moments_of(model[:2](x), model(x))
    found = gathered(model, [x], ["2"], graded=False).moments("2")
    torch.testing.assert_close(found.xz, exact.xz, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.zz, exact.zz, rtol=1e-5, atol=1e-5)
