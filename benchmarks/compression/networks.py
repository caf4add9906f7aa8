"""The networks of the experiments and their teachers, trained once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from simmim_ext.data import Shuffled
from simmim_ext.images import find_images
from simmim_ext.modes import seeded
from simmim_ext.progress import bar

# Images that nothing is trained, scored or calibrated on: learning rates are chosen on them.
VALIDATION_SHARE = 6


@dataclass(frozen=True)
class Data:
    """The images of an experiment.

    Attributes:
        name: "Fashion-MNIST" or "digits".
        train: [samples, ...] images to calibrate and distil on, and their labels.
        validation: images to choose settings on, and their labels.
        test: images that results are reported on, and their labels.
    """

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """A network and how its teacher is trained.

    Attributes:
        build: the network for images [samples, pixels] or [samples, 1, side, side].
        square: whether it takes the images as squares.
        budget: the constraints of the comparison.
        epochs: of the teacher's training.
        lr: its initial learning rate.
        decay: its weight decay.
    """

    build: Callable[[int, int], nn.Module]
    square: bool
    budget: dict[str, float]
    epochs: int
    lr: float
    decay: float = 0.0


def mlp(pixels: int, classes: int, hidden: int = 500) -> nn.Module:
    return nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def lenet(pixels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(pixels, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def cnn(pixels: int, classes: int) -> nn.Module:
    side = int(pixels**0.5) // 4
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class Residual(nn.Module):
    """relu(x' + f(x)) of two 3 x 3 convolutions, each with BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, side, side] -> [samples, outputs, side / stride, side / stride]."""
        return functional.relu(self.shortcut(x) + self.body(x))


def resnet(pixels: int, classes: int) -> nn.Module:
    del pixels
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


RECIPES = {
    "mlp": Recipe(mlp, False, {"units": 0.1}, 15, 0.05),
    "lenet": Recipe(lenet, False, {"params": 0.1}, 15, 0.05),
    "cnn": Recipe(cnn, True, {"params": 0.064}, 6, 0.05, 1e-4),
    "resnet": Recipe(resnet, True, {"params": 0.1}, 6, 0.05, 1e-4),
}
_BATCH = 64


def load_data(recipe: Recipe, folder: Path | None = None) -> Data:
    """The images, every sixth of the training images set aside for validation."""
    images = find_images(folder)
    train, test = images.train, images.test
    if recipe.square:
        side = int(train.shape[1] ** 0.5)
        train, test = train.view(-1, 1, side, side), test.view(-1, 1, side, side)
    aside = torch.arange(len(train)) % VALIDATION_SHARE == VALIDATION_SHARE - 1
    return Data(
        images.name,
        (train[~aside], images.train_labels[~aside]),
        (train[aside], images.train_labels[aside]),
        (test, images.test_labels),
    )


def build(recipe: Recipe, data: Data) -> nn.Module:
    """A network of the recipe for the data, freshly initialised."""
    pixels = data.test[0][0].numel()
    return recipe.build(pixels, int(data.test[1].max()) + 1)


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float,
    decay: float = 0.0,
    size: int = _BATCH,
    adam: bool = False,
    words: str = "teacher",
) -> nn.Module:
    """Trains the model in place on labels, with a half cosine; SGD with momentum, or Adam."""
    loader = Shuffled([(x, y)], size)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr=lr)
        if adam
        else torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model.train()
    with bar(words, epochs * len(loader)) as advance:
        for _ in range(epochs):
            for images, labels in loader:
                loss = functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
    return model.eval()


def teacher(name: str, data: Data, seed: int, folder: Path) -> nn.Module:
    """The teacher of that seed, from the folder if it is there; it saw all training labels."""
    recipe = RECIPES[name]
    path = folder / f"{name}-{data.name}-{seed}.safetensors"
    with seeded(seed):
        model = build(recipe, data)
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        x, y = (torch.cat(pair) for pair in zip(data.train, data.validation, strict=True))
        train(model, x, y, epochs=recipe.epochs, lr=recipe.lr, decay=recipe.decay)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(model.state_dict(), partial)
    partial.replace(path)
    return model
