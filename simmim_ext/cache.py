"""Where the package keeps what it found out or fetched."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``simmim_ext`` in XDG_CACHE_HOME, which is ~/.cache unless it is an absolute path."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "simmim_ext")
