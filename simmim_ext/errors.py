"""The workflow's exception and its warnings; argument errors are plain ValueError and TypeError."""

import os
import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep


class SimMIMError(ValueError):
    """A model, budget, data set or file that cannot be handled; the message says what to do."""


def warn(message: str) -> None:
    """Warns at the line outside the package that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
