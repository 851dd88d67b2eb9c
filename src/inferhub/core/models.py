"""What can be served: a model as wished for (`ModelSpec`) and what it turned out to offer (`Capability`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Load = Literal["start", "demand"]
"""When a model is loaded: before it is announced, or at its first call."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Somebody who can be asked to speak."""

    id: str
    language: str
    """IETF tag, such as `en-GB`."""
    gender: Literal["female", "male", "neutral"] = "neutral"
    aliases: tuple[str, ...] = ()
    """Further names for it, such as OpenAI's."""


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
    voices: tuple[Voice, ...] = ()
    """Of a model that speaks; the first one where the client names none."""


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
    load: Load | None = None
    """None leaves it to the backend. On demand it may also be unloaded again when memory is short."""
    pinned: bool = False
    """Never unloaded to make room, nor for being idle."""
    idle_ttl_s: float | None = None
    """Unloaded after so long without a call; None: only when room is needed."""
    max_batch: int = 0
    """Calls that are computed together at most, where the backend can; 0 leaves it to the backend."""

    @property
    def public_name(self) -> str:
        return public_name(self.name)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as one worker reports it. Is it pinned or on demand? `spec.load` says."""

    spec: ModelSpec
    capabilities: tuple[Capability, ...]
    device: str
    """Where it really runs, after `auto` was decided."""
    running: int = 0
    queued: int = 0
    ready: bool = True
    """False while the model's child process is started again after it died, or was given up."""
    loaded: bool = True
    """False while a model on demand waits for its first call."""
    memory_bytes: int = 0
    """What its own process takes, measured after it was loaded; 0 where it has none or is not loaded."""
    loading: bool = False
    pending_cost: float = 0.0
    """Cost units (`Modality.cost`) of all calls that wait or run."""
    s_per_cost: float = 0.0
    """Seconds until one cost unit is done while the model is busy, all slots together; 0: not known."""
    prefixes: tuple[int, ...] = ()
    """Hashes of the prompts' beginnings that were answered lately, of which the engine may keep its state."""

    @property
    def pending_s(self) -> float:
        """How long what waits and runs will take; unlike a count, comparable between unlike machines."""
        return self.pending_cost * self.s_per_cost

    def capability(self, modality: str) -> Capability | None:
        return next((c for c in self.capabilities if c.modality == modality), None)
