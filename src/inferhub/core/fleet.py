"""The workers of an installation as one view, and what gateways want them to run.

The orchestrator makes the view, gateways follow it; neither sees a request of the other through it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from inferhub.core.models import ModelSpec
from inferhub.core.serving import Beat, WorkerStatus

Progress = Callable[[str], None]
"""Told the name of each model that is loaded."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that is in the fleet."""

    worker: WorkerStatus
    is_suspect: bool = False
    """Has missed heartbeats, and may be dead."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """Who is there at one moment; a whole new record each time, never a patch."""

    epoch: str = ""
    """Which life of an orchestrator made it; revisions of different lives do not compare."""
    revision: int = 0
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Which workers a model may run on, and on how many of them."""

    replicas: int = 0
    """0: on every one that fits."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """A worker fits that has all of these."""


EVERYWHERE = Placement()


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model that workers should have, under the name that changes with its content."""

    spec: ModelSpec
    placement: Placement = EVERYWHERE


_CHANGED_IN_PLACE = frozenset({"name", "load", "pinned", "idle_ttl_s"})


def deployment_of(spec: ModelSpec) -> ModelSpec:
    """The spec under a name that changes with its content, so that old and new can run side by side.

    Not with what a loaded model can take over as it is. `#` cannot occur in a public name.
    """
    content = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in _CHANGED_IN_PLACE}
    text = json.dumps({"name": spec.name, **content}, sort_keys=True, default=dict)
    return replace(spec, name=f"{spec.name}#{hashlib.sha256(text.encode()).hexdigest()[:10]}")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker is told when it registers."""

    heartbeat_s: float
    """How often it has to be heard from."""
    lease_s: float
    """Unheard for so long, it is out of the fleet until it registers again."""


class ControlPlane(Protocol):
    """The orchestrator as workers and gateways know it: in this process, or over gRPC.

    Every method raises `InferHubError` and nothing foreign; `EndpointLost` where it cannot be reached.
    """

    # For workers.

    async def register(self, worker: WorkerStatus) -> Lease:
        """Enter the fleet, or bring the whole record up to date. Raises `Invalid` for a record that cannot be
        true, `Conflict` for an id that another living worker has, and for a life that is over."""

    async def heartbeat(self, beat: Beat) -> None:
        """Stay in it. Raises `UnknownWorker` where it has to register (again), `Conflict` for what is old."""

    async def leave(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        """Be gone at once instead of after the lease. Unknown ones are fine."""

    # For gateways.

    async def want(
        self, holder: str, deployments: Sequence[Deployment], on_progress: Progress = lambda _: None
    ) -> None:
        """What this gateway needs from now on, instead of what it needed before.

        Returns when every worker that is there and should have it has loaded it; workers that come later get
        it too. What no gateway needs any more is unloaded once it is idle. Raises `SetupError` where one
        cannot be loaded; what was wanted before is then still wanted, and nothing was unloaded.
        """

    def watch(self, holder: str) -> AsyncGenerator[FleetView, None]:
        """The view now, and again whenever it changes, a few times a second at most; the newest is never
        skipped. The wants of `holder` are kept for as long as it watches, and a while longer."""
