"""A recipe: a TOML file that says what to compress, on what data, and to what budget.

    granularity = "unit"             # and output, ignored_layers, round_to, as compress takes them

    [model]
    call = "net.py:build"            # or "package.module:callable"; returns the model
    arguments = { hidden = 500 }     # its keyword arguments
    weights = "trained.safetensors"  # loaded into the model

    [data]
    calibration = "net.py:images"    # returns batches; a table where it takes arguments
    train = { call = "net.py:batches", arguments = { size = 64 } }
    evaluate = "net.py:test"

    [constraints]
    params = 0.25

    [config]                         # fields of CompressConfig
    epochs = 20

More keys: ``data.example_inputs``, which returns a batch; ``forward_fn``, a function that is passed
on and not called; ``checkpoint_dir``. Paths are seen from the recipe's folder, which is importable.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .arguments import check_model, check_options
from .budget import check_budget, check_round_to
from .config import CompressConfig
from .data import check_reiterable
from .errors import SimMIMError
from .granularity import Granularity
from .imports import Reference
from .modes import seeded
from .outputs import check_output

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TYPES = {str: "a string", int: "an integer", list: "an array", dict: "a table"}
_CALL = {"call": (str,), "arguments": (dict,)}
_MODEL = {**_CALL, "weights": (str,)}
_DATA = ("calibration", "train", "evaluate", "example_inputs")
_SETTINGS = {
    "constraints": (dict,),
    "granularity": (str,),
    "output": (str,),
    "ignored_layers": (list,),
    "round_to": (int,),
}
_RECIPE = {
    "model": (str, dict),
    "data": (dict,),
    **_SETTINGS,
    "forward_fn": (str,),
    "config": (dict,),
    "checkpoint_dir": (str,),
}
_MESSAGE = 300


@dataclass(frozen=True)
class Call:
    """Something to be imported and called with these keyword arguments."""

    reference: Reference
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What a recipe says; nothing of it is imported yet.

    Attributes:
        path: the file.
        model: builds the model.
        weights: a safetensors file to load into it, or None.
        data: "calibration" and those of "train", "evaluate" and "example_inputs" that it names.
        forward_fn: a function to pass on, or None.
        settings: those of the other arguments of ``compress`` that it gives, as given.
        config: its table "config".
        checkpoint_dir: where it wants a run's state, or None.
    """

    path: Path
    model: Call
    weights: Path | None
    data: Mapping[str, Call]
    forward_fn: Reference | None
    settings: Mapping[str, Any]
    config: CompressConfig
    checkpoint_dir: Path | None

    def check_budget(self) -> None:
        """Raises SimMIMError unless it has the constraints that ``compress`` needs."""
        with _mistakes(self.path):
            check_budget(
                Granularity.parse(self.settings.get("granularity", "unit")),
                self.settings.get("constraints", {}),
                self.config,
                self.settings.get("round_to", 1),
            )

    def load(self, names: Iterable[str] = _DATA) -> tuple[nn.Module, dict[str, Any]]:
        """The model; the data of these names, where there are any, and ``forward_fn``, by name.

        Everything is imported before anything is called, and called under the recipe's seed.

        Raises:
            SimMIMError: an import or a call fails, or what comes of it is no model and no data.
        """
        if str(folder := self.path.parent) not in sys.path:
            sys.path.insert(0, str(folder))
        calls = {"model": self.model, **{n: self.data[n] for n in names if n in self.data}}
        with _mistakes(self.path):
            found = {name: call.reference.load() for name, call in calls.items()}
            loaded: dict[str, Any] = {}
            if self.forward_fn is not None:
                loaded["forward_fn"] = self.forward_fn.load()
            with seeded(self.config.seed):
                for name, call in calls.items():
                    loaded[name] = call.reference.call(found[name], call.arguments)
            model = loaded.pop("model")
            check_model(self.model.reference.text, model, "what it returns")
            for name in names:
                if name in loaded and name != "example_inputs":
                    check_reiterable(loaded[name], name)
            if self.weights is not None:
                _load_weights(model, self.weights)
        return model, loaded


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe and checks all of it that can be told without importing anything.

    Raises:
        SimMIMError: it cannot be read, or says what cannot be meant.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SimMIMError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SimMIMError(f"{path} is no TOML: {error}") from error
    with _mistakes(path):
        _check(body, "the recipe", _RECIPE, required=("model", "data"))
        folder = path.parent.resolve()
        data = _check(
            body["data"], "data", dict.fromkeys(_DATA, (str, dict)), required=("calibration",)
        )
        model = body["model"]
        if isinstance(model, dict):
            model = dict(_check(model, "model", _MODEL, required=("call",)))
            weights = model.pop("weights", None)
        else:
            weights = None
        settings = {name: body[name] for name in _SETTINGS if name in body}
        Granularity.parse(settings.get("granularity", "unit"))
        check_output(settings.get("output", "auto"))
        check_round_to(settings.get("round_to", 1))
        forward_fn = body.get("forward_fn")
        checkpoint = body.get("checkpoint_dir")
        return Recipe(
            path=folder / path.name,
            model=_call(model, "model", folder),
            weights=None if weights is None else folder / weights,
            data={name: _call(data[name], f"data.{name}", folder) for name in data},
            forward_fn=None if forward_fn is None else Reference("forward_fn", forward_fn, folder),
            settings=settings,
            config=_config(body.get("config", {})),
            checkpoint_dir=None if checkpoint is None else folder / checkpoint,
        )


def _config(table: dict[str, Any]) -> CompressConfig:
    known = [field.name for field in dataclasses.fields(CompressConfig)]
    for key in table:
        if key not in known:
            raise _unknown(key, "config", known)
    config = CompressConfig(**table)
    check_options("config", config=config)
    return config


def _call(entry: str | dict[str, Any], what: str, folder: Path) -> Call:
    table: dict[str, Any] = {"call": entry} if isinstance(entry, str) else entry
    _check(table, what, _CALL, required=("call",))
    return Call(Reference(what, table["call"], folder), table.get("arguments", {}))


def _check(
    table: dict[str, Any],
    where: str,
    types: Mapping[str, tuple[type, ...]],
    required: tuple[str, ...],
) -> dict[str, Any]:
    """The table, if it has the keys required and others that are known, all of their types."""
    for key in required:
        if key not in table:
            raise SimMIMError(f"{where} needs {key!r}, which is missing")
    for key, value in table.items():
        if key not in types:
            raise _unknown(key, where, types)
        # Not isinstance: true is an int.
        if type(value) not in types[key]:
            wanted = " or ".join(_TYPES[kind] for kind in types[key])
            raise SimMIMError(f"{where}: {key!r} must be {wanted}, got {value!r}")
    return table


def _unknown(key: str, where: str, known: Mapping[str, Any] | list[str]) -> SimMIMError:
    return SimMIMError(f"{where} has the unknown key {key!r}; known are {', '.join(known)}")


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, path)
    except OSError as error:
        raise SimMIMError(f"weights: {path} cannot be read: {error}") from error
    except SafetensorError as error:
        raise SimMIMError(
            f"weights: {path} is no safetensors file ({error}); write one with "
            "safetensors.torch.save_model(model, path)"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _MESSAGE else reason[:_MESSAGE] + " ..."
        raise SimMIMError(f"weights: {path} does not fit the model: {reason}") from error


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """Names the recipe in what is wrong with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SimMIMError(f"{path.name}: {error}") from error
