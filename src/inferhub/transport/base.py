"""The one seam between gateway and worker. `worker.service` answers it; `local` and `grpc` carry it."""

from __future__ import annotations

from typing import Protocol

from inferhub.core.call import Call, Emit
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus


class Transport(Protocol):
    """A worker, wherever it is. Every method raises `InferHubError` and nothing foreign."""

    async def infer(self, call: Call, emit: Emit) -> None:
        """A `Handler`. `call.model` is the spec's name. Cancelling the task frees the engine's slot."""

    async def load(self, spec: ModelSpec) -> ModelStatus:
        """Load, or return the running one when the same spec is loaded already. Loading a changed
        spec under a loaded name is a `Conflict`: unload first."""

    async def unload(self, name: str) -> None:
        """Free the model's memory; unknown names are fine, calls in flight are cancelled."""

    async def status(self) -> WorkerStatus: ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls with `Draining`, return when the running ones ended or `grace_s` is over."""

    async def close(self) -> None: ...
