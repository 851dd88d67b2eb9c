"""F2: one file per modality, each exposing `MODALITY`. Directory listing is the registration."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferhub.modalities.base import Modality


# Helpers of this package that are not modalities.
_SHARED = {"base", "names", "schemas", "tokens"}


@cache
def modalities() -> Mapping[str, Modality]:
    """Every modality of this package by name, in alphabetical order."""
    names = sorted(m.name for m in iter_modules(__path__) if m.name not in _SHARED)
    found = [import_module(f"{__name__}.{name}").MODALITY for name in names]
    return MappingProxyType({m.name: m for m in found})
