"""What a gateway process remembers about its endpoints, and where each call's way begins.

`Router.begin` gives each call a `Journey` for the attempt ring. Nothing here waits or calls anybody.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from inferhub.core.call import Call
from inferhub.core.errors import ModelNotFound, NoEndpoint
from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Route, alias
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.routing.breaker import BreakerLimits
from inferhub.routing.budget import RetryBudget
from inferhub.routing.choose import EXPLORE
from inferhub.routing.condition import Condition, Key
from inferhub.routing.decisions import Decisions
from inferhub.routing.journey import Journey
from inferhub.routing.pools import Pools
from inferhub.routing.prefix import hashes
from inferhub.routing.spend import HourlySpend

Cost = Callable[[str, str, Usage], int]
"""(model, modality, usage) → billionths of a US dollar."""

DEFAULT = Scheduling()


class Places(Protocol):
    """What can be called now: the part of the directory that routing reads."""

    @property
    def endpoints(self) -> Mapping[str, tuple[Endpoint, ...]]: ...
    @property
    def routes(self) -> Mapping[str, Route]: ...
    def unknown(self, name: str, may_call: Callable[[str], bool]) -> ModelNotFound: ...


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Bounds of one gateway process."""

    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    max_ejected_share: float = 0.5
    """Of a route's endpoints, by their breakers."""
    retry_share: float = 0.2
    """Retries and hedges in flight, of the calls in flight."""
    retry_minimum: int = 3
    """So many are always allowed."""
    explore: float = EXPLORE


class Router:
    """One for a gateway process: all its calls share what is known about endpoints."""

    def __init__(
        self,
        limits: RouterLimits,
        *,
        cost: Cost = lambda *_: 0,
        scheduling: Callable[[], Scheduling] = lambda: DEFAULT,
        region: str = "",
        decisions: Decisions | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: random_module.Random | None = None,
    ) -> None:
        """`cost` prices one model's call; it is asked only for routes that look at prices. `scheduling` is
        looked at with each new snapshot; `region` is where this gateway is. `decisions` takes the notes."""
        self.limits = limits
        self.cost = cost
        self.clock = clock
        self.random = random or random_module.Random()  # noqa: S311 - spreads load, keeps no secret
        self.budget = RetryBudget(share=limits.retry_share, minimum=limits.retry_minimum)
        self.pools = Pools(scheduling, region, self.condition)
        self.decisions = Decisions() if decisions is None else decisions
        self._conditions: dict[Key, Condition] = {}
        self._spends: dict[str, HourlySpend] = {}
        self._plain: dict[str, Route] = {}
        self._places: Places | None = None

    def begin(self, call: Call, places: Places) -> Journey:
        """Raises `ModelNotFound`, or `NoEndpoint` where no model of the route is ready anywhere."""
        self.follow(places)
        route = places.routes.get(call.model) or self._plain_route(call, places)
        if not self._is_anywhere(route):
            raise NoEndpoint(
                f"The model {call.model[:128]!r} is known but not ready on any worker.", retry_after_s=1.0
            )
        return Journey(self, call, route)

    def follow(self, places: Places) -> None:
        """Take over a newer snapshot with its reports, and forget who is gone."""
        if places is self._places:
            return
        self._places = places
        self._plain.clear()
        self.pools.follow(places.endpoints)
        known = self.pools.rows
        for key in [k for k, c in self._conditions.items() if k not in known and not c.in_flight]:
            del self._conditions[key]
        for name in self._spends.keys() - places.routes.keys():
            del self._spends[name]

    def measure(self, call: Call, places: Places) -> tuple[float, tuple[int, ...]]:
        """The cost of a call and the hashes of how its prompt begins, where there is somebody to compare by
        them; 0 and none where there is not, which is most calls."""
        model, endpoints = call.model, places.endpoints
        if call.model in places.routes:
            models = places.routes[call.model].models
            model = next((name for name in models if len(endpoints.get(name, ())) > 1), models[0])
        if len(endpoints.get(model, ())) < 2:
            return call.cost, call.prefixes
        modality = modalities()[call.modality]
        cost, prefixes = call.cost, call.prefixes
        if not cost:
            cost = modality.cost(call.request, call.media, len(call.body))
        if not prefixes and modality.prefix is not None:
            pieces = modality.prefix(call.request)
            prefixes = hashes(pieces, call.principal.tenant_id, model, call.modality)
        return cost, prefixes

    def condition(self, key: Key) -> Condition:
        found = self._conditions.get(key)
        if found is None:
            found = self._conditions[key] = Condition(self.limits.breaker)
        return found

    def conditions(self) -> Mapping[Key, Condition]:
        """(deployment, endpoint) → how it is; for metrics."""
        return self._conditions

    def spend(self, route: str) -> HourlySpend:
        return self._spends.setdefault(route, HourlySpend())

    def _plain_route(self, call: Call, places: Places) -> Route:
        name = call.model
        if name not in places.endpoints:
            raise places.unknown(name, call.principal.may_call)
        route = self._plain.get(name)
        if route is None:
            route = self._plain[name] = alias(name, name)
        return route

    def _is_anywhere(self, route: Route) -> bool:
        # The first target is nearly always there, and every call comes this way.
        endpoints = self.pools.endpoints
        return bool(endpoints.get(route.targets[0].model)) or any(map(endpoints.get, route.models))
