"""F3: one file per engine or vendor, each exposing `BACKEND`. A listing imports none of them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.backends.base import Backend

# Helpers of this package that are not backends.
_SHARED = {
    "base",
    "credentials",
    "echo_media",
    "finishing",
    "gemini_media",
    "http",
    "pictures",
    "remote",
    "sender",
    "speaking",
    "vendors",
}


@cache
def backend_names() -> tuple[str, ...]:
    """Every backend that could be used, sorted: those shipped here and those of plug-ins."""
    shipped = {m.name for m in iter_modules(__path__)} - _SHARED
    return tuple(sorted(shipped | {e.name for e in entry_points(group="inferhub.backends")}))


@cache
def backend_class(name: str) -> type[Backend]:
    """Import one backend. Raises `SetupError` for an unknown name."""
    for entry in entry_points(group="inferhub.backends", name=name):
        plugin: type[Backend] = entry.load()
        return plugin
    if name not in backend_names():
        raise SetupError(
            f"Unknown backend {name!r}; available: {', '.join(backend_names())}.", param="backend"
        )
    shipped: type[Backend] = import_module(f"{__name__}.{name}").BACKEND
    return shipped
