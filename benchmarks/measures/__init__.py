"""One file per measure, exposing `MEASURE`; the listing of this folder is the list of measures."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from benchmarks.measure import Measure


def measures() -> dict[str, Measure]:
    """Every measure by name, in the order in which they run."""
    found: list[Measure] = [
        import_module(f"{__name__}.{module.name}").MEASURE for module in iter_modules(__path__)
    ]
    return {measure.name: measure for measure in sorted(found, key=lambda m: m.order)}
