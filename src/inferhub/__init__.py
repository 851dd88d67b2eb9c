"""InferHub: language, speech and vision models behind one OpenAI-compatible door."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferhub.client import Client
    from inferhub.core.errors import InferHubError

__version__ = "0.1.0"

__all__ = ["Client", "InferHubError", "__version__"]

_HOMES = {"Client": "inferhub.client", "InferHubError": "inferhub.core.errors"}


def __getattr__(name: str) -> Any:
    """Load public names on first use: `import inferhub` stays under a few milliseconds."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
