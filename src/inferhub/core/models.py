"""What can be served: a model as wished for (`ModelSpec`) and what it turned out to offer (`Capability`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Capability:
    """What a loaded model offers for one modality; a request *requires*, match is inclusion."""

    modality: str
    features: frozenset[str] = frozenset()
    """Names from the modality's feature list, for example `stream`, `tools`, `json_schema`."""
    context_tokens: int | None = None
    """Prompt and answer together, per call; None when the backend cannot know."""
    dimensions: int | None = None
    """Length of an embedding vector."""


def public_name(deployment: str) -> str:
    """What the operator called the model: without the mark of its version, `#…`, that gateways add."""
    return deployment.partition("#")[0]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as the operator wants it; validated, and the same on every worker."""

    name: str
    backend: str
    weights: str | None = None
    """A name from the weights index, a path, or None where the backend needs no file."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda:N`."""
    slots: int = 4
    """How many calls run at once; more wait in a bounded queue. 0 leaves the number to the backend."""
    queue_limit: int = 64
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The backend's own settings, checked against its `Options` struct. May hold a vendor's key."""

    @property
    def public_name(self) -> str:
        return public_name(self.name)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as one worker reports it."""

    spec: ModelSpec
    capabilities: tuple[Capability, ...]
    device: str
    """Where it really runs, after `auto` was decided."""
    running: int = 0
    queued: int = 0
    ready: bool = True
    """False while the model's child process is started again after it died, or was given up."""

    def capability(self, modality: str) -> Capability | None:
        return next((c for c in self.capabilities if c.modality == modality), None)
