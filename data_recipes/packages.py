"""Packages whose *files* are the demo's raw data, imported or located only when a recipe runs."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from vltrain.errors import DataError


def load(name: str) -> ModuleType:
    """Import a package of the ``demo`` extra, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(_remedy(name)) from error


def folder(name: str) -> Path:
    """Where a package of the ``demo`` extra lies, without importing it (scikit-image takes a
    second)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(_remedy(name))
    return Path(spec.origin).parent


def _remedy(name: str) -> str:
    return (
        f"the package {name!r}, whose files this recipe reads, is not installed: "
        "pip install 'vltrain[demo]'"
    )
