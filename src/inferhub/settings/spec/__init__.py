"""What the platform should be: `hub.yaml` as parsed (`SpecFile`) and as loaded (`Spec`).

Called by assembly, the CLI and whoever applies a spec. Text in, nouns out; it never reads a file,
the environment or the catalog, and it knows no backend.
"""

from __future__ import annotations

from inferhub.settings.spec.defaults import (
    DEFAULT_SPEC_TEXT,
    default_spec,
    spec_for_model,
    spec_text_for_model,
)
from inferhub.settings.spec.load import Spec, load_spec
from inferhub.settings.spec.narrow import narrow
from inferhub.settings.spec.types import ModelEntry, PriceEntry, RouteEntry, SpecFile, json_schema

__all__ = [
    "DEFAULT_SPEC_TEXT",
    "ModelEntry",
    "PriceEntry",
    "RouteEntry",
    "Spec",
    "SpecFile",
    "default_spec",
    "json_schema",
    "load_spec",
    "narrow",
    "spec_for_model",
    "spec_text_for_model",
]
