"""Small networks of the kinds that the workflow must handle."""

import torch
from torch import Tensor, nn

from simmim_ext import CompressionResult


def mlp(inputs: int = 12, hidden: int = 10, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def two_hidden() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def kept_widths(result: CompressionResult) -> dict[str, int]:
    """Layer -> the units that it kept."""
    return {layer["name"]: layer["after"] for layer in result.report["layers"]}


class CNN(nn.Module):
    """Every layer that a plain CNN is made of, activations in place included."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.PReLU(8),
            nn.Dropout(0.3),
        )
        self.hidden = nn.Linear(8 * 4, 9)
        self.norm = nn.LayerNorm(9)
        self.slope = nn.PReLU()
        self.head = nn.Linear(9, 4)
        self.register_buffer("scale", torch.tensor(2.0))
        for layer in (self.features[1], self.norm):  # norms as after training, not as at birth
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        nn.init.uniform_(self.features[1].running_mean, -0.2, 0.2)
        nn.init.uniform_(self.features[1].running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        return self.head(self.slope(self.norm(self.hidden(x)))) * self.scale


class Residual(nn.Module):
    """A block added to what it reads, and one concatenated with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.branch = nn.Conv2d(6, 6, 1)
        self.side = nn.Conv2d(6, 5, 1)
        self.merge = nn.Conv2d(11, 7, 3, padding=1)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.branch(torch.relu(self.depthwise(x)))
        x = torch.cat([x, torch.relu(self.side(x))], dim=1)
        return self.head(torch.relu(self.merge(x)).mean((2, 3)))


IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


def case(name: str) -> tuple[nn.Module, Tensor]:
    """A network and inputs for it."""
    torch.manual_seed(0)
    return {
        "mlp": lambda: (mlp(), ROWS),
        "cnn": lambda: (CNN(), IMAGES),
        "residual": lambda: (Residual(), IMAGES),
    }[name]()


CASES = ("mlp", "cnn", "residual")


def snapshot(model: nn.Module) -> tuple:
    """All of a model that calling it must not change, comparable with ==."""
    state = {name: value.clone().tolist() for name, value in model.state_dict().items()}
    parameters = {
        name: (id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()
    }
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return state, parameters, modes, hooks
