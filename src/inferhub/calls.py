"""Puts the way of a call together, from the settings: its rings, who is asked, and what they remember.

Called by assembly. Knows every ring's ports and no transport.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

from inferhub.accounting import Accounting
from inferhub.core.call import Handler
from inferhub.core.errors import UpstreamFailed
from inferhub.core.models import public_name
from inferhub.core.prices import cost_nano_usd
from inferhub.core.usage import Usage
from inferhub.egress import Fetcher, FetchLimits
from inferhub.gateway.desired import Desired
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.tokens import TokenVerifier
from inferhub.media import MediaPool
from inferhub.modalities import modalities
from inferhub.pipeline import PipelineLimits, attempt_ring, build_pipeline
from inferhub.pipeline.attempt import Attempt
from inferhub.pipeline.cache import Cache, Semantic
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.links import Keep, Links
from inferhub.pipeline.media import Media, MediaLimits
from inferhub.pipeline.meter import Meter
from inferhub.pipeline.onion import build
from inferhub.routing import BreakerLimits, Decisions, Router, RouterLimits
from inferhub.settings import Settings
from inferhub.telemetry.metrics import Metrics, Place


def open_calls(
    stack: AsyncExitStack,
    settings: Settings,
    fleet: Fleet,
    desired: Desired,
    *,
    accounting: Accounting,
    metrics: Metrics,
    keep: Keep,
    decisions: Decisions,
) -> Handler:
    """The pipeline; what it opens is closed by `stack`."""
    limiter = accounting.limiter
    limits = _pipeline_limits(settings)
    router = _router(settings, desired, fleet, decisions)
    metrics.watch_places(lambda: _places(router))

    def cost(model: str, modality: str, estimate: Usage) -> int:
        """What a call may cost, before it is known who answers it: as much as the dearest model that may."""
        return max(router.cost(name, modality, estimate) for name in fleet.directory().models_of(model))

    return build_pipeline(
        fleet.directory,
        metrics,
        limits,
        router=router,
        limiter=limiter,
        meter=Meter(accounting.ledger, desired.prices, limiter.settle),
        cache=_cache(settings, fleet, accounting, attempt_ring(router, fleet.directory, metrics, limits)),
        media=_media(stack, settings),
        links=Links(keep),
        cost=cost,
    )


def open_tokens(stack: AsyncExitStack) -> TokenVerifier:
    """An issuer is named by the operator, so it may live inside the network."""
    limits = FetchLimits(connect_s=3.0, total_s=10.0, max_bytes=512 * 1024, max_redirects=0)
    fetcher = Fetcher(allow=("0.0.0.0/0", "::/0"), limits=limits)
    stack.push_async_callback(fetcher.close)

    async def fetch(url: str) -> bytes:
        answer = await fetcher.get(url)
        if answer.status != 200:
            raise UpstreamFailed(f"The issuer answered {answer.status}.")
        return answer.body

    return TokenVerifier(fetch)


def _places(router: Router) -> Iterator[Place]:
    # Read by the thread that answers scrapes, while the event loop goes on.
    for (deployment, endpoint), condition in list(router.conditions().items()):
        limit = condition.room.limit_at(router.clock())
        yield public_name(deployment), endpoint, condition.room.total, int(limit.calls)


def _router(settings: Settings, desired: Desired, fleet: Fleet, decisions: Decisions) -> Router:
    def cost(model: str, modality: str, usage: Usage) -> int:
        price = None if modalities()[modality].is_free else desired.prices().at(model, time.time())
        return cost_nano_usd(price, usage) if price else 0

    breaker = BreakerLimits(
        failures_in_row=settings.breaker_failures,
        open_s=settings.breaker_open_s,
        max_open_s=max(settings.breaker_open_s, settings.breaker_max_open_s),
    )
    labels = dict(label.split("=", 1) for label in settings.labels)
    return Router(
        RouterLimits(breaker, retry_share=settings.retry_budget_ratio),
        cost=cost,
        scheduling=lambda: fleet.spec.scheduler,
        region=labels.get("region", ""),
        decisions=decisions,
    )


def _cache(settings: Settings, fleet: Fleet, accounting: Accounting, attempt: Attempt) -> Cache:
    semantic = None
    if settings.semantic_cache_model is not None:
        # The vectors of questions are InferHub's own business, so nobody's limits and bills know of them.
        embed = build([attempt], Dispatch(fleet.directory))
        semantic = Semantic(embed, settings.semantic_cache_model, threshold=settings.semantic_cache_threshold)
    return Cache(accounting.answers, fleet.directory, ttl_s=settings.cache_ttl_s, semantic=semantic)


def _media(stack: AsyncExitStack, settings: Settings) -> Media:
    # Quicker than any patience with the endpoint that waits for it.
    limits = FetchLimits(total_s=15.0, max_bytes=MediaLimits().file_bytes)
    fetcher = Fetcher(allow=settings.egress_allow, limits=limits)
    stack.push_async_callback(fetcher.close)
    pool = MediaPool()
    stack.push_async_callback(pool.close)
    return Media(fetcher.get, pool.clean_image, allow=settings.egress_allow)


def _pipeline_limits(settings: Settings) -> PipelineLimits:
    return PipelineLimits(**{name: getattr(settings, name) for name in PipelineLimits.__dataclass_fields__})
