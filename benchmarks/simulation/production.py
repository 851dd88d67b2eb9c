"""InferHub's own policy: the production `Router` over the production `Directory`, on virtual time.

Nothing is modelled here. Reports become `Endpoint`s as the gateway makes them, and every call takes the way
that the attempt ring takes: begin, next, try, how it went.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

from benchmarks.simulation.machine import QUEUE_PER_SLOT, Report
from benchmarks.simulation.policies import Maker, View
from benchmarks.simulation.traffic import Request
from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, Overloaded
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause
from inferhub.pipeline.directory import Directory
from inferhub.routing import Journey, Router, RouterLimits, Trial
from inferhub.routing.prefix import MARKS
from inferhub.testing.calls import make_call

MODEL = "m"
_SPECS = {
    slots: ModelSpec(f"{MODEL}#1", "echo", slots=slots, queue_limit=slots * QUEUE_PER_SLOT)
    for slots in range(1, 9)
}
"""By the number of slots: where the spec leaves it to the backend, a worker reports what that chose."""
_CAPABILITIES = (Capability("chat", frozenset({"stream"})),)
_DEFAULT = Scheduling()


_MOST_PREFIXES = len(MARKS)
"""The gateway hashes no more of one prompt."""


async def _never(_call: Call, _emit: Emit) -> None:
    raise NotImplementedError("The simulation runs nothing.")


def endpoint_of(worker: int, report: Report, *, is_suspect: bool = False) -> Endpoint:
    status = ModelStatus(
        _SPECS[report.slots],
        _CAPABILITIES,
        "cuda:0",
        running=report.running,
        queued=report.queued,
        pending_cost=report.pending_cost,
        s_per_cost=report.s_per_cost,
        prefixes=report.prefixes,
    )
    return Endpoint(f"w{worker}", status, _never, is_suspect=is_suspect, report=report.id)


class Views:
    """Makes the directory of each view once, for all gateways."""

    def __init__(self) -> None:
        self._directory = Directory()
        self._made: dict[int, tuple[Report, bool, Endpoint]] = {}

    def directory(self, view: View) -> Directory:
        if view.revision != self._directory.revision:
            endpoints = tuple(self._endpoint(w, r, w in view.suspects) for w, r in view.reports.items())
            self._directory = Directory({MODEL: endpoints}, revision=view.revision)
        return self._directory

    def _endpoint(self, worker: int, report: Report, is_suspect: bool) -> Endpoint:
        made = self._made.get(worker)
        if made is None or made[0] is not report or made[1] != is_suspect:
            made = self._made[worker] = report, is_suspect, endpoint_of(worker, report, is_suspect=is_suspect)
        return made[2]


class Ours:
    """One gateway's."""

    def __init__(
        self,
        random: Random,
        clock: Callable[[], float],
        views: Views,
        *,
        scheduling: Scheduling = _DEFAULT,
        counts_own: bool = True,
    ) -> None:
        """`counts_own`: whether it knows of its own calls what no report says yet."""
        self._router = Router(RouterLimits(), scheduling=lambda: scheduling, clock=clock, random=random)
        self._views = views
        self._counts_own = counts_own
        self._directory = Directory()
        self._call = replace(make_call("chat", MODEL, stream=True), deadline_s=math.inf)
        self._journeys: dict[int, Journey] = {}
        self._trials: dict[int, Trial] = {}
        self._causes: dict[int, Cause] = {}

    def follow(self, view: View) -> None:
        self._directory = self._views.directory(view)

    def pick(self, request: Request) -> int | None:
        journey = self._journeys.get(request.number)
        if journey is None:
            journey = self._journeys[request.number] = self._begin(request)
        elif not journey.may_retry():
            return None
        candidate = journey.next(self._causes.pop(request.number, None))
        if candidate is None:
            return None
        if self._counts_own:
            self._trials[request.number] = journey.try_(candidate)
        return int(candidate.endpoint.id[1:])

    def _begin(self, request: Request) -> Journey:
        call = replace(
            self._call, session=request.session, prefixes=request.prefixes[:_MOST_PREFIXES], cost=request.cost
        )
        return self._router.begin(call, self._directory).__enter__()

    def sent(self, request: Request, worker: int) -> None:
        if self._counts_own:
            self._trials[request.number].__enter__()

    def answered(self, request: Request) -> None:
        if self._counts_own:
            self._trials[request.number].first_content()

    def ended(self, request: Request, worker: int) -> None:
        if self._counts_own:
            trial = self._trials.pop(request.number)
            trial.succeeded()
        self._close(request)

    def gave_up(self, request: Request) -> None:
        self._causes.pop(request.number, None)
        self._close(request)

    def refused(self, request: Request, worker: int, pending_s: float) -> None:
        error = Overloaded("full", retry_after_s=1.0)
        error.pending_s = pending_s
        self._failed(request, Cause.OVERLOAD, error)

    def lost(self, request: Request, worker: int) -> None:
        self._failed(request, Cause.FAILURE, EndpointLost("lost"))

    def _failed(self, request: Request, cause: Cause, error: Overloaded | EndpointLost) -> None:
        self._causes[request.number] = cause
        if self._counts_own:
            self._trials.pop(request.number).failed(error)

    def _close(self, request: Request) -> None:
        self._journeys.pop(request.number).__exit__(None, None, None)


def ours(*, scheduling: Scheduling = _DEFAULT, counts_own: bool = True) -> Maker:
    """Gateways that share the making of directories, and nothing else."""
    views = Views()
    return lambda random, clock: Ours(random, clock, views, scheduling=scheduling, counts_own=counts_own)
