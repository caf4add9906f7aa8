"""A small project that a recipe names: code, weights, and recipes with lines added."""

import sys

import torch

CODE = """
import os
import torch
from torch import nn

print("what a module prints is nobody's JSON")


class Net(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.body = nn.Linear(8, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def build(hidden=16):
    return Net(hidden)


def images(samples=1300):
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(1))
    return x.split(100)


def labelled():
    return [(x, x[:, :3].argmax(1)) for x in images(300)]


class Stops:
    '''Batches whose reader is interrupted in the third pass, once.'''

    def __init__(self, marker):
        self.marker, self.passes = marker, 0

    def __len__(self):
        return len(images())

    def __iter__(self):
        self.passes += 1
        if self.passes == 3 and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            raise KeyboardInterrupt
        return iter(images())


def once():
    return iter(images())


def broken():
    return {}["nothing"]


def leaves():
    raise SystemExit(3)


def outputs(model, batch):
    return model(batch)[:, :2]


numbers = [1, 2]
"""

RECIPE = """
{top}
[model]
call = "net.py:build"
weights = "trained.safetensors"
{model}
[data]
calibration = "net.py:images"
{data}
[constraints]
units = 0.25
{constraints}
[config]
epochs = 2
{config}
"""


def recipe(folder, **parts):
    """Writes the recipe, with lines added to parts of it."""
    blank = dict.fromkeys(("top", "model", "data", "constraints", "config"), "")
    path = folder / "small.toml"
    path.write_text(RECIPE.format(**{**blank, **parts}))
    return path


def project(tmp_path, monkeypatch):
    """A folder with code, weights and a recipe; what is imported from it is forgotten after."""
    from safetensors.torch import save_file  # which the operators' tests do without

    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "here").mkdir()
    torch.manual_seed(0)
    with monkeypatch.context() as changed:
        changed.setattr(sys, "path", [*sys.path])
        scope: dict = {"__name__": "scope"}
        exec(CODE, scope)
        save_file(scope["build"]().state_dict(), tmp_path / "trained.safetensors")
        recipe(tmp_path)
        before = set(sys.modules)
        changed.chdir(tmp_path / "here")
        yield tmp_path
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]


def network(project):
    scope: dict = {"__name__": "scope"}
    exec((project / "net.py").read_text(), scope)
    return scope
