"""What a gateway process remembers about its endpoints, and the way of one call among them.

`Router.begin` gives each call a `Journey`; the attempt ring asks it where to go next, and tells each `Trial`
how it went. Nothing here waits or calls anybody.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Protocol

from inferhub.core.call import Call
from inferhub.core.errors import (
    InferHubError,
    ModelNotFound,
    NoEndpoint,
    Overloaded,
    UpstreamRateLimited,
)
from inferhub.core.prices import nano_usd
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import TRANSIENT, Cause, Patience, Route, alias
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.routing.breaker import BreakerLimits
from inferhub.routing.budget import RetryBudget
from inferhub.routing.choose import EXPLORE, Asked, Candidate, order
from inferhub.routing.condition import Condition, Facts, Key, Standing, key_of
from inferhub.routing.spend import HourlySpend
from inferhub.routing.trial import Trial

Cost = Callable[[str, str, Usage], int]
"""(model, modality, usage) → billionths of a US dollar."""

_LEAST_RETRY_AFTER_S = 0.1


class Places(Protocol):
    """What can be called now: the part of the directory that routing reads."""

    @property
    def endpoints(self) -> Mapping[str, tuple[Endpoint, ...]]: ...
    @property
    def routes(self) -> Mapping[str, Route]: ...
    @property
    def revision(self) -> int: ...
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
        clock: Callable[[], float] = time.monotonic,
        random: random_module.Random | None = None,
    ) -> None:
        """`cost` prices one model's call; it is asked only for routes that look at prices."""
        self.limits = limits
        self.cost = cost
        self.clock = clock
        self.random = random or random_module.Random()  # noqa: S311 - spreads load, keeps no secret
        self.budget = RetryBudget(share=limits.retry_share, minimum=limits.retry_minimum)
        self._conditions: dict[Key, Condition] = {}
        self._spends: dict[str, HourlySpend] = {}
        self._plain: dict[str, Route] = {}
        self._revision = -1

    def begin(self, call: Call, places: Places) -> Journey:
        """Raises `ModelNotFound`, or `NoEndpoint` where no model of the route is ready anywhere."""
        if places.revision != self._revision:
            self._follow(places)
        route = places.routes.get(call.model) or self._plain_route(call, places)
        if not _is_anywhere(route, places):
            raise NoEndpoint(
                f"The model {call.model[:128]!r} is known but not ready on any worker.", retry_after_s=1.0
            )
        return Journey(self, call, route, places)

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

    def _follow(self, places: Places) -> None:
        """Take over the workers' reports, and forget who is gone."""
        self._revision = places.revision
        self._plain.clear()
        known = {key_of(e): e for endpoints in places.endpoints.values() for e in endpoints}
        for key, condition in list(self._conditions.items()):
            if key not in known and not condition.in_flight:
                del self._conditions[key]
        for key, endpoint in known.items():
            self.condition(key).reported(endpoint.model.running + endpoint.model.queued)
        for name in self._spends.keys() - places.routes.keys():
            del self._spends[name]


def _is_anywhere(route: Route, places: Places) -> bool:
    # The first target is nearly always there, and every call comes this way.
    return bool(places.endpoints.get(route.targets[0].model)) or any(
        places.endpoints.get(model) for model in route.models
    )


class Journey:
    """One call on its way. A context: entering counts the call as active, for the budget of retries.

    with router.begin(call, directory) as journey:
        candidate = journey.next(None)
        while candidate:
            with journey.try_(candidate) as trial: ...
            candidate = journey.next(cause) if journey.may_retry() else None
    """

    __slots__ = (
        "_admitted", "_call", "_estimate", "_hard", "_last", "_needs", "_places", "_router", "_running",
        "_spent", "_spoiled", "_tried", "patience", "route", "tells_first_token",
    )  # fmt: skip

    def __init__(self, router: Router, call: Call, route: Route, places: Places) -> None:
        modality = modalities()[call.modality]
        self._router = router
        self._call = call
        self._places = places
        self._needs: frozenset[str] | None = None
        self._tried: dict[Key, int] = {}
        self._admitted: set[str] = set()
        self._spoiled: set[str] = set()
        self._hard: set[Cause] = set()
        self._running: dict[Trial, bool] = {}
        """Trial → whether it is a retry."""
        self._spent: dict[Trial, tuple[int, int]] = {}
        self._estimate: Usage | None = None
        self.route = route
        self.patience: Patience = route.patience
        self._last: Candidate | None = None
        self.tells_first_token = call.stream or modality.writer is None
        """Whether the first piece of an answer comes when the answer begins; where a modality does not
        stream, all of the answer is its first piece."""

    @property
    def hedge_after_s(self) -> float | None:
        return self.route.hedge_after_s

    def __enter__(self) -> Journey:
        self._router.budget.active += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._router.budget.active -= 1
        return False

    def next(self, cause: Cause | None, *, must: frozenset[str] = frozenset()) -> Candidate | None:
        """Where to go after a failure for `cause`, or to begin with (None). None: nobody is left for it.

        Never an endpoint that was asked before; but where nobody else can be asked, and the only one failed,
        it is asked once more. `must` names features that the endpoint has to have, such as `prefill` for an
        answer to be continued. Changes nothing: who is named has not been asked until `try_`.
        """
        if cause is not None and cause not in TRANSIENT:
            self._hard.add(cause)
        found = self._order(cause, must=must)
        if found:
            return found[0]
        return self._same_again(must) if cause is Cause.FAILURE else None

    def hedge(self) -> Candidate | None:
        """A second endpoint to ask while the first is silent: one that is well, within the budget."""
        if not self.may_retry():
            return None
        return next(iter(self._order(Cause.TIMEOUT, well_only=True)), None)

    def may_retry(self) -> bool:
        """Whether the budget has room for one more trial beyond the first."""
        return self._router.budget.has_room

    def is_longer_than_predicted(self, condition: Condition, load: int, waited_s: float) -> bool:
        predicted_s = condition.predict_s(self.now(), load)
        return predicted_s is not None and waited_s > predicted_s

    def try_(self, candidate: Candidate) -> Trial:
        return Trial(self, candidate)

    def refusal(self) -> InferHubError:
        """What to tell the client where `next(None)` named nobody: when to come back, never less."""
        now_s = self.now()
        known = [f for f in self._facts(now_s, predicts=False).values() if f.standing is not Standing.WELL]
        if not known:
            return NoEndpoint(
                f"No endpoint for {self._call.model[:128]!r} can take this call.", retry_after_s=1.0
            )
        name = repr(self._call.model[:128])
        wait_s = max(min(f.until_s for f in known) - now_s, _LEAST_RETRY_AFTER_S)
        if all(f.standing is Standing.LIMITED for f in known):
            return UpstreamRateLimited(
                f"The upstream of {name} refused calls for its own rate limit a moment ago.",
                retry_after_s=wait_s,
            )
        return Overloaded(
            f"No endpoint of {name} takes calls now: each has failed too often, or is at its limit.",
            retry_after_s=wait_s,
        )

    def refresh(self, places: Places) -> None:
        """Go on with a newer snapshot, in which a failed endpoint may have a successor."""
        self._places = places

    # What its trials need.

    def condition(self, candidate: Candidate) -> Condition:
        return self._router.condition(candidate.key)

    def now(self) -> float:
        return self._router.clock()

    def chance(self) -> float:
        return self._router.random.random()

    def entered(self, trial: Trial) -> None:
        candidate = trial.candidate
        # A fallback is no retry: each is asked once a call, so that it cannot be asked more than calls come.
        is_retry = bool(self._tried) and not candidate.is_fallback
        self._router.budget.retries += is_retry
        self._running[trial] = is_retry
        self._tried[candidate.key] = self._tried.get(candidate.key, 0) + 1
        self._admitted.add(candidate.model)
        self._last = candidate
        if candidate.is_spilled:
            expected = self._cost_nano_usd(candidate.model)
            minute = self._router.spend(self.route.name).add(expected, self.now())
            self._spent[trial] = minute, expected

    def spoil(self, model: str, cause: Cause | None) -> None:
        """What is wrong with the call for one endpoint of a model is wrong for all of them."""
        if cause is not None and cause not in TRANSIENT:
            self._spoiled.add(model)

    def left(self, trial: Trial, usage: Usage | None, *, is_billed: bool) -> None:
        self._router.budget.retries -= self._running.pop(trial)
        if trial in self._spent:
            minute, expected = self._spent.pop(trial)
            used = expected if is_billed else 0
            if usage is not None:
                used = self._router.cost(trial.candidate.model, self._call.modality, usage)
            self._router.spend(self.route.name).correct(minute, used - expected)

    def _order(
        self, cause: Cause | None, *, must: frozenset[str] = frozenset(), well_only: bool = False
    ) -> tuple[Candidate, ...]:
        only = self._only_endpoint()
        if only is not None and not must:
            return self._order_of_one(only)
        call, route, router = self._call, self.route, self._router
        now_s = self.now()
        asked = Asked(
            call.modality,
            needs=self._features(),
            must=must,
            session=f"{call.principal.tenant_id}/{call.session}" if call.session else "",
            tried=frozenset(self._tried),
            causes=frozenset((cause,) if cause else ()),
            hard=frozenset(self._hard),
            admitted=frozenset(self._admitted),
            spoiled=frozenset(self._spoiled),
            well_only=well_only,
            cost_nano_usd=self._cost_nano_usd,
            spill_room_nano_usd=self._spill_room_nano_usd(now_s),
            explore=router.limits.explore,
            max_ejected_share=router.limits.max_ejected_share,
        )
        facts = self._facts(now_s, predicts=route.prefer == "latency" or route.spill is not None)
        return order(route, self._places.endpoints, facts, asked, router.random)

    def _only_endpoint(self) -> Endpoint | None:
        """Of most calls: a model without alternatives, for which there is nothing to choose."""
        route = self.route
        if len(route.targets) > 1 or route.fallbacks:
            return None
        endpoints = self._places.endpoints.get(route.targets[0].model, ())
        return endpoints[0] if len(endpoints) == 1 else None

    def _order_of_one(self, endpoint: Endpoint) -> tuple[Candidate, ...]:
        key = key_of(endpoint)
        if key in self._tried or self._hard:
            return ()
        if not self._router.condition(key).may_be_asked(self.now()):
            return ()
        target = self.route.targets[0]
        return (Candidate(endpoint, target.model, target.priority),)

    def _same_again(self, must: frozenset[str]) -> Candidate | None:
        """The only endpoint that was asked, or the one that took its place, where it may be asked at all."""
        last = self._last
        if last is None or sum(self._tried.values()) > 1:
            return None
        for endpoint in self._places.endpoints.get(last.model, ()):
            if endpoint.id != last.endpoint.id:
                continue
            capability = endpoint.model.capability(self._call.modality)
            is_able = not must or (capability is not None and must <= capability.features)
            if is_able and self._router.condition(key_of(endpoint)).may_be_asked(self.now()):
                return replace(last, endpoint=endpoint, why=(*last.why, ("again", 1)))
        return None

    def _facts(self, now_s: float, *, predicts: bool) -> Mapping[Key, Facts]:
        endpoints, condition = self._places.endpoints, self._router.condition
        return {
            (key := key_of(endpoint)): condition(key).facts(now_s, predicts=predicts)
            for model in self.route.models
            for endpoint in endpoints.get(model, ())
        }

    def _features(self) -> frozenset[str]:
        if self._needs is None:
            call = self._call
            asked = modalities()[call.modality].requires(call.request)
            self._needs = frozenset(asked).union(call.native.needs if call.native is not None else ())
        return self._needs

    def _cost_nano_usd(self, model: str) -> int:
        if self._estimate is None:
            call = self._call
            self._estimate = modalities()[call.modality].estimate(call.request, len(call.body))
        return self._router.cost(model, self._call.modality, self._estimate)

    def _spill_room_nano_usd(self, now_s: float) -> int | None:
        spill = self.route.spill
        if spill is None or spill.max_usd_per_hour is None:
            return None
        return nano_usd(spill.max_usd_per_hour) - self._router.spend(self.route.name).total(now_s)
