"""F4: the way of every call, on one screen. The gateway calls `build_pipeline`'s handler.

    trace → admit → meter → deadline → links → cache → media → describe → attempt → dispatch
        → (transport) worker

Calls go down, chunks come up through `emit`. A ring pushes; only leaves may yield.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inferhub.core.call import Handler, Ring
from inferhub.pipeline.admit import Admit, Cost
from inferhub.pipeline.attempt import Attempt
from inferhub.pipeline.cache import Cache
from inferhub.pipeline.deadline import Deadline
from inferhub.pipeline.describe import Describe
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.limiter import Limiter
from inferhub.pipeline.links import Links
from inferhub.pipeline.media import Media
from inferhub.pipeline.meter import Meter
from inferhub.pipeline.onion import build
from inferhub.pipeline.patience import Limits
from inferhub.pipeline.trace import Trace
from inferhub.routing import Router
from inferhub.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """Bounds of one gateway process; every field is a setting of the same name."""

    max_inflight: int = 1152
    max_attempts: int = 3
    first_token_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0


def build_pipeline(
    directory: Callable[[], Directory],
    metrics: Metrics,
    limits: PipelineLimits,
    *,
    router: Router,
    limiter: Limiter,
    meter: Meter,
    cache: Cache,
    media: Media,
    links: Links,
    cost: Cost,
) -> Handler:
    """`directory` returns the current snapshot; it may be another one for the next call."""
    rings: list[Ring] = [
        Trace(metrics),
        Admit(max_inflight=limits.max_inflight, directory=directory, limiter=limiter, cost=cost),
        meter,
        Deadline(directory),
        links,
        cache,
        media,
        Describe(directory, media),
        attempt_ring(router, directory, metrics, limits),
    ]
    return build(rings, Dispatch(directory, media))


def attempt_ring(
    router: Router, directory: Callable[[], Directory], metrics: Metrics, limits: PipelineLimits
) -> Attempt:
    """The ring that tries; also for calls that InferHub makes for itself."""
    return Attempt(
        router,
        directory,
        metrics,
        max_attempts=limits.max_attempts,
        limits=Limits(limits.first_token_timeout_s, limits.idle_timeout_s),
    )
