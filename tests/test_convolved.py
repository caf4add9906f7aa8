"""Convolutions that pad in a forward function of their own, as timm's Conv2dSame."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simmim_ext import CompressConfig, SimMIMError, compress, score
from simmim_ext.gathering import Gatherer

pytestmark = pytest.mark.filterwarnings("ignore:score. .* samples are few")


class Padding(nn.Conv2d):
    """Pads by itself, as timm's Conv2dSame, or gives too much or too little."""

    def __init__(self, *args, how, **options):
        super().__init__(*args, **options)
        self.how = how

    def forward(self, x):
        if self.how == "same":
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)
        if self.how == "call":
            return F.conv2d(x, self.weight, self.bias, stride=2, padding=(1, 0), dilation=2)
        if self.how == "super":
            return super().forward(F.pad(x, (1, 1, 1, 1)))
        if self.how == "cut":
            return super().forward(F.pad(x, (1, 1, 1, 1)))[:, :, :-1, :-1]
        columns = F.unfold(x, 3, padding=1, stride=self.stride)
        z = self.weight.flatten(1) @ columns + self.bias[:, None]
        return z.view(*z.shape[:2], 4, 4)


@pytest.mark.parametrize("how", ["same", "call", "super", "cut"])
def test_a_convolution_that_pads_by_itself_is_read_as_it_reads(how):
    torch.manual_seed(0)
    layer = Padding(6, 4, 3, stride=2, how=how)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), layer, nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(40, 3, 8, 8)
    model(x)
    gatherer = Gatherer(model.requires_grad_(False), [], ["2"], torch.Generator())
    with gatherer.gathering(None, graded=False):
        model(x)
    moments = gatherer.moments("2")
    # That it reads the right places shows in that its outputs follow from them.
    weight = layer.weight.flatten(1).double()
    xx, xz, _ = moments.covariances()
    torch.testing.assert_close(xx.double() @ weight.T, xz.double(), rtol=1e-4, atol=1e-5)
    assert list(score(model, x.split(20))) == ["0", "2"]


def test_a_convolution_that_pads_out_of_sight_names_what_to_ignore():
    layer = Padding(6, 4, 3, stride=2, how="unfold")
    model = nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.Flatten(), nn.Linear(64, 5))
    data = torch.randn(40, 3, 8, 8).split(20)
    text = (
        r"score: '1' gives outputs at \[4, 4\] positions, and its convolution has \[3, 3\]; put "
        "the layers that make what it reads in ignored_layers"
    )
    with pytest.raises(SimMIMError, match=text):
        score(model, data)
    compress(
        model,
        calibration=data,
        constraints={"params": 0.9},
        ignored_layers=["0"],
        config=CompressConfig(epochs=0, reconstruct=False),
    )
