"""What clients speak: one file per dialect that is not a modality's own, each exposing `DIALECT`.

Directory listing is the registration. A dialect translates requests into a modality's and writes its
deltas; the pipeline between them knows of none.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from inferhub.gateway.dialects.base import own_dialect
from inferhub.modalities import modalities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferhub.gateway.dialects.base import Dialect

_SHARED = {"base"}


@cache
def dialects() -> Mapping[str, Dialect]:
    """Every dialect by name: the modalities' own first, then those of this package."""
    own = [own_dialect(modality) for modality in modalities().values()]
    names = sorted(m.name for m in iter_modules(__path__) if m.name not in _SHARED)
    foreign = [import_module(f"{__name__}.{name}").DIALECT for name in names]
    return {dialect.name: dialect for dialect in (*own, *foreign)}
