"""The way of one call among the endpoints: where it goes, and where it goes next.

Made by `Router.begin` and driven by the attempt ring, which tells each `Trial` how it went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from inferhub.core.call import Call
from inferhub.core.errors import InferHubError, NoEndpoint, Overloaded, UpstreamRateLimited
from inferhub.core.prices import nano_usd
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import TRANSIENT, Cause, Patience, Route
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.routing.choose import Asked, Candidate, order
from inferhub.routing.concurrency import Caller, shed
from inferhub.routing.condition import Condition, Facts, Key, Standing, key_of
from inferhub.routing.decisions import Trace
from inferhub.routing.filters import is_capable
from inferhub.routing.scheduler import Ask, Decision, Pool, decide, ranked
from inferhub.routing.trial import Trial

if TYPE_CHECKING:
    from inferhub.routing.router import Places, Router

_LEAST_RETRY_AFTER_S = 0.1


class Journey:
    """One call on its way. A context: entering counts the call as active, for the budget of retries.

    with router.begin(call, directory) as journey:
        candidate = journey.next(None)
        while candidate:
            with journey.try_(candidate) as trial: ...
            candidate = journey.next(cause) if journey.may_retry() else None
    """

    __slots__ = (
        "_admitted", "_estimate", "_hard", "_held", "_last", "_needs", "_router", "_running", "_spent",
        "_spoiled", "_trace", "_tried", "call", "caller", "cost", "patience", "route", "tells_first_token",
    )  # fmt: skip

    def __init__(self, router: Router, call: Call, route: Route) -> None:
        modality = modalities()[call.modality]
        self._router = router
        self.call = call
        self.caller = Caller(call.criticality, call.principal.tenant_id)
        self._needs: frozenset[str] | None = None
        self._tried: dict[Key, int] = {}
        self._admitted: set[str] = set()
        self._spoiled: set[str] = set()
        self._hard: set[Cause] = set()
        self._running: dict[Trial, bool] = {}
        """Trial → whether it is a retry."""
        self._spent: dict[Trial, tuple[int, int]] = {}
        self._estimate: Usage | None = None
        self._held: Mapping[str, int] | None = None
        self._trace: Trace = router.decisions.begin(call, router.clock())
        self.route = route
        self.cost = call.cost
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
        decision = self._decision(must)
        if decision is not None:
            return self._chosen(decision, cause)
        found = self._order(cause, must=must)
        candidate = found[0] if found else None
        if candidate is None and cause is Cause.FAILURE:
            candidate = self._same_again(must)
        self._note(candidate, cause)
        return candidate

    def hedge(self) -> Candidate | None:
        """A second endpoint to ask while the first is silent: one that is well, within the budget."""
        if not self.may_retry():
            return None
        decision = self._decision(frozenset())
        if decision is not None:
            return self._chosen(decision, Cause.TIMEOUT)
        candidate = next(iter(self._order(Cause.TIMEOUT, well_only=True)), None)
        self._note(candidate, Cause.TIMEOUT)
        return candidate

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
                f"No endpoint for {self.call.model[:128]!r} can take this call.", retry_after_s=1.0
            )
        name = repr(self.call.model[:128])
        wait_s = max(min(f.until_s for f in known) - now_s, _LEAST_RETRY_AFTER_S)
        if any(f.standing is Standing.CROWDED for f in known):
            return shed(self.call.model, self.caller, wait_s)
        if all(f.standing is Standing.LIMITED for f in known):
            return UpstreamRateLimited(
                f"The upstream of {name} refused calls for its own rate limit a moment ago.",
                retry_after_s=wait_s,
            )
        return Overloaded(
            f"No endpoint of {name} takes calls now: each has failed too often, or is at its limit.",
            retry_after_s=wait_s,
            reason="endpoint_unhealthy" if any(f.standing is Standing.OPEN for f in known) else None,
        )

    def refresh(self, places: Places) -> None:
        """Go on with a newer snapshot, in which a failed endpoint may have a successor."""
        self._router.follow(places)

    # What its trials need.

    def condition(self, candidate: Candidate) -> Condition:
        return self._router.condition(candidate.key)

    def now(self) -> float:
        return self._router.clock()

    def chance(self) -> float:
        return self._router.random.random()

    def entered(self, trial: Trial) -> None:
        candidate, call, router = trial.candidate, self.call, self._router
        # A fallback is no retry: each is asked once a call, so that it cannot be asked more than calls come.
        is_retry = bool(self._tried) and not candidate.is_fallback
        router.budget.retries += is_retry
        self._running[trial] = is_retry
        self._tried[candidate.key] = self._tried.get(candidate.key, 0) + 1
        self._admitted.add(candidate.model)
        self._last = candidate
        if call.prefixes:
            router.pools.prefixes.sent(candidate.endpoint.id, call.prefixes, self.now())
        if candidate.is_spilled:
            expected = self._cost_nano_usd(candidate.model)
            minute = router.spend(self.route.name).add(expected, self.now())
            self._spent[trial] = minute, expected

    def spoil(self, model: str, cause: Cause | None) -> None:
        """What is wrong with the call for one endpoint of a model is wrong for all of them."""
        if cause is not None and cause not in TRANSIENT:
            self._spoiled.add(model)

    def left(self, trial: Trial, usage: Usage | None, *, is_billed: bool, outcome: str) -> None:
        router = self._router
        router.budget.retries -= self._running.pop(trial)
        router.decisions.ended(self._trace, router.clock(), trial.candidate.endpoint.id, outcome)
        if trial in self._spent:
            minute, expected = self._spent.pop(trial)
            used = expected if is_billed else 0
            if usage is not None:
                used = router.cost(trial.candidate.model, self.call.modality, usage)
            router.spend(self.route.name).correct(minute, used - expected)

    # Among the endpoints of one model, which is all that most calls need.

    def _decision(self, must: frozenset[str]) -> Decision | None:
        """Where the route leads to one model, and somebody of it is well: then nothing else comes first."""
        route, pools = self.route, self._router.pools
        if len(route.targets) > 1 or self._hard or route.prefer == "latency":
            return None
        model = route.targets[0].model
        if len(pools.endpoints.get(model, ())) < 2 or model in self._spoiled:
            return None
        features = self._features()
        pool = pools.of(model, self.call.modality, features | must if must else features)
        if not pool.rows:
            return None
        ask, random = self._ask(self.now()), self._router.random
        found = decide(pool, ask, random)
        if found is None and len(pool.rows) > pool.scheduling.sample:
            found = self._found_late(pool, ask)
        return found

    def _found_late(self, pool: Pool, ask: Ask) -> Decision | None:
        """Of a fleet that is unwell for the greatest part, the few who are well."""
        well = ranked(pool, ask, self._router.random)
        if not well:
            return None
        return decide(
            Pool.build(well[: pool.scheduling.sample], pool.scheduling, pool.left_out, pool.ring),
            ask,
            self._router.random,
        )

    def _ask(self, now_s: float) -> Ask:
        call, router = self.call, self._router
        prefixes = call.prefixes
        if prefixes and self._held is None:
            pools = router.pools
            self._held = pools.prefixes.held(prefixes, now_s, pools.scheduling.sample, router.random)
        session = f"{call.principal.tenant_id}/{call.session}" if call.session else ""
        sticks = self.route.affinity
        return Ask(
            now_s, call.cost, len(prefixes), self._held or {}, session, sticks, self._tried, self.caller
        )

    def _chosen(self, decision: Decision, cause: Cause | None) -> Candidate:
        target = self.route.targets[0]
        candidate = Candidate(decision.endpoint, target.model, target.priority)
        router = self._router
        router.decisions.chose(self._trace, router.clock(), candidate, cause or "", decision.verdict)
        return candidate

    def _note(self, candidate: Candidate | None, cause: Cause | None) -> None:
        router = self._router
        router.decisions.chose(self._trace, router.clock(), candidate, cause or "")

    # Among several models.

    def _order(
        self, cause: Cause | None, *, must: frozenset[str] = frozenset(), well_only: bool = False
    ) -> tuple[Candidate, ...]:
        only = self._only_endpoint()
        if only is not None and not must:
            return self._order_of_one(only)
        call, route, router = self.call, self.route, self._router
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
            rank=self._rank,
        )
        facts = self._facts(now_s, predicts=route.prefer == "latency" or route.spill is not None)
        return order(route, router.pools.endpoints, facts, asked, router.random)

    def _rank(self, model: str, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Endpoints of one model, the best first."""
        router = self._router
        pool = router.pools.among(model, endpoints)
        return [row.endpoint for row in ranked(pool, self._ask(self.now()), router.random)]

    def _only_endpoint(self) -> Endpoint | None:
        """Of most calls: a model without alternatives, for which there is nothing to choose."""
        route = self.route
        if len(route.targets) > 1 or route.fallbacks:
            return None
        endpoints = self._router.pools.endpoints.get(route.targets[0].model, ())
        return endpoints[0] if len(endpoints) == 1 else None

    def _order_of_one(self, endpoint: Endpoint) -> tuple[Candidate, ...]:
        key = key_of(endpoint)
        if key in self._tried or self._hard:
            return ()
        if not self._router.condition(key).may_be_asked(self.now(), self.caller):
            return ()
        target = self.route.targets[0]
        return (Candidate(endpoint, target.model, target.priority),)

    def _same_again(self, must: frozenset[str]) -> Candidate | None:
        """The only endpoint that was asked, or the one that took its place, where it may be asked at all."""
        last = self._last
        if last is None or sum(self._tried.values()) > 1:
            return None
        for endpoint in self._router.pools.endpoints.get(last.model, ()):
            if endpoint.id != last.endpoint.id:
                continue
            is_able = not must or is_capable(endpoint, self.call.modality, must)
            if is_able and self._router.condition(key_of(endpoint)).may_be_asked(self.now(), self.caller):
                return replace(last, endpoint=endpoint, why=(*last.why, ("again", 1)))
        return None

    def _facts(self, now_s: float, *, predicts: bool) -> Mapping[Key, Facts]:
        endpoints, condition = self._router.pools.endpoints, self._router.condition
        return {
            (key := key_of(endpoint)): condition(key).facts(now_s, predicts=predicts, caller=self.caller)
            for model in self.route.models
            for endpoint in endpoints.get(model, ())
        }

    def _features(self) -> frozenset[str]:
        if self._needs is None:
            call = self.call
            asked = modalities()[call.modality].requires(call.request)
            self._needs = frozenset(asked if call.native is None else (*asked, *call.native.needs))
        return self._needs

    def _cost_nano_usd(self, model: str) -> int:
        if self._estimate is None:
            call = self.call
            self._estimate = modalities()[call.modality].estimate(call.request, len(call.body))
        return self._router.cost(model, self.call.modality, self._estimate)

    def _spill_room_nano_usd(self, now_s: float) -> int | None:
        spill = self.route.spill
        if spill is None or spill.max_usd_per_hour is None:
            return None
        return nano_usd(spill.max_usd_per_hour) - self._router.spend(self.route.name).total(now_s)
