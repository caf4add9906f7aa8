"""Callables by name: "package.module:callable" or "folder/file.py:callable"."""

import importlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import SimMIMError


@dataclass(frozen=True)
class Reference:
    """The name of a callable.

    Attributes:
        what: whose name it is, for errors.
        text: the name.
        folder: files are seen from here.
    """

    what: str
    text: str
    folder: Path

    def __post_init__(self) -> None:
        module, colon, name = self.text.rpartition(":")
        if not (module and colon and name):
            raise SimMIMError(
                f'{self.what}: a callable is named "package.module:callable" or '
                f'"file.py:callable", got {self.text!r}'
            )

    def load(self) -> Callable[..., Any]:
        """Imports it.

        Raises:
            SimMIMError: its module cannot be imported or has no such callable.
        """
        module_name, _, name = self.text.rpartition(":")
        path = self.folder / module_name if module_name.endswith(".py") else None
        if path is not None and not path.is_file():
            raise SimMIMError(f"{self.what}: there is no file {path}")
        importlib.invalidate_caches()
        try:
            module = _import_file(path) if path else importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise self._failed(f"importing {module_name}", error) from error
        try:
            found = operator.attrgetter(name)(module)
        except AttributeError as error:
            raise SimMIMError(f"{self.what}: {module_name} has no {name!r}") from error
        if not callable(found):
            raise SimMIMError(
                f"{self.what}: {self.text} is a {type(found).__name__}, which cannot be called; "
                "name a function that returns it"
            )
        return found  # type: ignore[no-any-return]

    def call(self, found: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Calls what ``load`` gave.

        Raises:
            SimMIMError: it raises something.
        """
        try:
            return found(**arguments)
        except (Exception, SystemExit) as error:
            raise self._failed(self.text, error) from error

    def _failed(self, action: str, error: BaseException) -> SimMIMError:
        """What was raised, and the last line of the user's own files that it came through."""
        lines = [
            f" ({Path(frame.filename).name}, line {frame.lineno})"
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(self.folder)
            and "site-packages" not in frame.filename
        ]
        where = lines[-1] if lines else ""
        kind = type(error).__name__
        return SimMIMError(f"{self.what}: {action} raised {kind}: {error}{where}")


def _import_file(path: Path) -> ModuleType:
    """Imports a file under its own name, as its neighbours and a DataLoader's workers would.

    Where another module has that name already, the file's path becomes its name.
    """
    path = path.resolve()
    loaded = sys.modules.get(path.stem)
    other = loaded is not None and getattr(loaded, "__file__", None) != str(path)
    name = str(path) if other else path.stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
