"""DiffHarmony: harmonization of a pasted foreground. Importing this package loads nothing heavy, not even torch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import bundled, convert, read
    from .networks.color_regressor import ColorRegressor
    from .pipeline import DiffHarmony
    from .settings import Settings

__version__ = "0.1.0"
__all__ = ["ColorRegressor", "DiffHarmony", "Settings", "bundled", "convert", "read"]

_HOMES = {
    "ColorRegressor": "networks.color_regressor",
    "DiffHarmony": "pipeline",
    "Settings": "settings",
    "bundled": "checkpoint",
    "convert": "checkpoint",
    "read": "checkpoint",
}


def __getattr__(name: str) -> object:
    """The public names, each imported when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
