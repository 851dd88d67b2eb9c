"""In which order the endpoints of a route are asked for one call. Pure: facts in, candidates out.

Filter, then priorities, then the route's preference within each, then spill-over; fallbacks for the cause
come after them, and what is not well comes last or not at all. Each candidate names the terms that chose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Fallback, Route, Spill
from inferhub.routing.affinity import by_session
from inferhub.routing.breaker import let_through
from inferhub.routing.condition import Facts, Key, Standing, key_of
from inferhub.routing.filters import is_capable

EXPLORE = 0.02
"""Share of the calls of a route that prefers latency whose order starts anywhere: a prediction that nobody
tests stays wrong."""


@dataclass(slots=True)
class Candidate:
    """An endpoint to ask, as which model, and why. Never changed; one is made for every call, and frozen ones
    take four times as long."""

    endpoint: Endpoint
    model: str
    """Public name; the endpoint calls it `endpoint.model.spec.name`."""
    priority: int = 0
    is_fallback: bool = False
    why: tuple[tuple[str, float], ...] = ()
    """Named terms of the decision, for logs and tests."""
    is_spilled: bool = False
    """Counts towards the hourly cap of the route."""

    @property
    def key(self) -> Key:
        return key_of(self.endpoint)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a choice knows of its call, and of what has become of it so far."""

    modality: str
    needs: frozenset[str] = frozenset()
    """Features that the request asks for. Where no target has them all, the first one says so best."""
    must: frozenset[str] = frozenset()
    """Features without which an endpoint is of no use."""
    session: str = ""
    tried: frozenset[Key] = frozenset()
    causes: frozenset[Cause] = frozenset()
    """What the last attempt failed for."""
    hard: frozenset[Cause] = frozenset()
    """What was wrong with the call for every model so far; only fallbacks for all of it are left."""
    admitted: frozenset[str] = frozenset()
    """Models that were tried."""
    spoiled: frozenset[str] = frozenset()
    """Models that will say the same again."""
    well_only: bool = False
    cost_nano_usd: Callable[[str], int] = lambda _: 0
    """Model → what the call is expected to cost there."""
    spill_room_nano_usd: int | None = None
    """What may still be spent this hour; None without a cap."""
    explore: float = EXPLORE
    max_ejected_share: float = 0.5
    """Of a route's endpoints, by their breakers."""
    rank: Callable[[str, Sequence[Endpoint]], Sequence[Endpoint]] = lambda _, endpoints: endpoints
    """(model, those of its endpoints that are well) → the same, the best first: the scheduler's part."""


class _Option(NamedTuple):
    endpoint: Endpoint
    model: str
    weight: int
    facts: Facts

    def expected_s(self, neutral_s: float = 0.0) -> float:
        """Until the first token: predicted, or `neutral_s` without history; never less than others wait."""
        first_s = self.facts.first_token_s
        return max(neutral_s if first_s is None else first_s, self.facts.waited_s)


_Ranked = tuple[_Option, tuple[str, float]]
"""With the term that gave it its place."""
_Group = tuple[int, list[_Ranked]]
"""A priority, and who has it."""


def order(
    route: Route,
    endpoints: Mapping[str, Sequence[Endpoint]],
    facts: Mapping[Key, Facts],
    asked: Asked,
    random: Random,
) -> tuple[Candidate, ...]:
    """The endpoints left for this call, the best first. `facts` has every endpoint of the route."""
    forced = _let_through(facts, asked.max_ejected_share)
    targets = [] if asked.hard else _targets(route, endpoints, facts, asked)
    well = [(priority, option) for priority, option in targets if _is_well(option)]
    groups = [
        (priority, _ranked(route, [o for p, o in well if p == priority], asked, random))
        for priority in sorted({priority for priority, _ in well})
    ]
    found = _spilled(route.spill, groups, asked)
    fallbacks: list[Candidate] = []
    late: list[Candidate] = []
    for place, fallback in enumerate(_eligible(route, targets, well, asked)):
        options = _options(fallback.model, 1, endpoints, facts, asked)
        options = [o for o in options if is_capable(o.endpoint, asked.modality, asked.needs | asked.must)]
        ready = _best_first(fallback.model, [o for o in options if _is_well(o)], asked)
        fallbacks += [_fallback(o, place) for o in ready]
        late += [_fallback(o, place, _last_term(o)) for o in options if _is_last(o, forced)]
    if asked.well_only:
        return (*found, *fallbacks)
    last = [(priority, o) for priority, o in targets if _is_last(o, forced)]
    last.sort(key=lambda pair: (pair[1].facts.standing is Standing.OPEN, pair[1].facts.until_s, pair[0]))
    unwell = [
        Candidate(o.endpoint, o.model, priority, why=(("priority", priority), _last_term(o)))
        for priority, o in last
    ]
    return (*found, *fallbacks, *unwell, *late)


def _let_through(facts: Mapping[Key, Facts], max_ejected_share: float) -> frozenset[Key]:
    ejected = [(key, f.until_s) for key, f in facts.items() if f.standing is Standing.OPEN]
    if not ejected:
        return frozenset()
    chosen = let_through([until_s for _, until_s in ejected], len(facts), max_ejected_share)
    return frozenset(ejected[i][0] for i in chosen)


def _targets(
    route: Route, endpoints: Mapping[str, Sequence[Endpoint]], facts: Mapping[Key, Facts], asked: Asked
) -> list[tuple[int, _Option]]:
    found = [
        (target.priority, option)
        for target in route.targets
        for option in _options(target.model, target.weight, endpoints, facts, asked)
    ]
    everyone = [e for target in route.targets for e in endpoints.get(target.model, ())]
    needs = asked.needs
    if not any(is_capable(endpoint, asked.modality, needs) for endpoint in everyone):
        if not asked.must:
            return found
        needs = frozenset()
    needs |= asked.must
    return [(p, o) for p, o in found if is_capable(o.endpoint, asked.modality, needs)]


def _options(
    model: str,
    weight: int,
    endpoints: Mapping[str, Sequence[Endpoint]],
    facts: Mapping[Key, Facts],
    asked: Asked,
) -> list[_Option]:
    if model in asked.spoiled:
        return []
    return [
        _Option(endpoint, model, weight, facts[key])
        for endpoint in endpoints.get(model, ())
        if (key := key_of(endpoint)) not in asked.tried
    ]


def _is_well(option: _Option) -> bool:
    return option.facts.standing is Standing.WELL


def _is_last(option: _Option, forced: frozenset[Key]) -> bool:
    """Asked where nobody well is left: full, or let through its open breaker."""
    standing = option.facts.standing
    if standing is Standing.OPEN:
        return key_of(option.endpoint) in forced
    return standing is Standing.FULL


def _last_term(option: _Option) -> tuple[str, float]:
    return ("fail_open" if option.facts.standing is Standing.OPEN else "full", 1)


def _eligible(
    route: Route,
    targets: Sequence[tuple[int, _Option]],
    well: Sequence[tuple[int, _Option]],
    asked: Asked,
) -> list[Fallback]:
    """The fallbacks that take over now. Before the first failure only where no target can be asked."""
    causes = asked.causes
    if not well and not asked.hard:
        causes |= {o.facts.cause for _, o in targets if o.facts.cause is not None}
        causes = causes or frozenset({Cause.FAILURE})
    if not causes and not asked.hard:
        return []
    return [
        fallback
        for fallback in route.fallbacks
        if asked.hard <= fallback.on
        and (asked.hard or fallback.model in asked.admitted or not causes.isdisjoint(fallback.on))
    ]


def _ranked(route: Route, options: list[_Option], asked: Asked, random: Random) -> list[_Ranked]:
    """One priority's options by the route's preference."""
    if route.prefer == "latency" and not (route.affinity and asked.session):
        return _by_latency(options, asked, random)
    models: dict[str, list[_Option]] = {}
    for option in options:
        models.setdefault(option.model, []).append(option)
    if route.affinity and asked.session:
        home = [o for model in _sticky(models, asked) for o in _best_first(model, models[model], asked)]
        return [(o, ("affinity", float(place))) for place, o in enumerate(home)]
    costs = {model: asked.cost_nano_usd(model) for model in models} if route.prefer == "cost" else {}
    clocks = {model: _clock(of[0].weight, random) for model, of in models.items()}
    ranked: list[_Ranked] = []
    for model in sorted(models, key=lambda m: (clocks[m] == math.inf, costs.get(m, 0), clocks[m])):
        term = ("cost_nano_usd", float(costs[model])) if costs else ("weight", float(models[model][0].weight))
        ranked += [(o, term) for o in _best_first(model, models[model], asked)]
    return ranked


def _clock(weight: int, random: Random) -> float:
    """Weighted draw without replacement: of clocks that ring at random, each at the rate of its weight, the
    first to ring comes first. A weight of 0 never rings."""
    return -math.log(1 - random.random()) / weight if weight else math.inf


def _sticky(models: Mapping[str, Sequence[_Option]], asked: Asked) -> list[str]:
    """The models, the session's own first; how busy one is, its least busy endpoint says."""
    return by_session(
        list(models),
        asked.session,
        name=str,
        weight=lambda model: models[model][0].weight,
        load=lambda model: min(o.facts.load for o in models[model]),
    )


def _by_latency(options: Sequence[_Option], asked: Asked, random: Random) -> list[_Ranked]:
    """The soonest first. Who has no history counts as the middle of those who have, and so gets one."""
    if len(options) > 1 and random.random() < asked.explore:
        return [(o, ("explored", 1.0)) for o in random.sample(options, len(options))]
    known = sorted(o.facts.first_token_s for o in options if o.facts.first_token_s is not None)
    neutral_s = known[len(known) // 2] if known else 0.0
    keys = [(o.weight == 0, o.expected_s(neutral_s), o.facts.load, random.random()) for o in options]
    places = sorted(range(len(options)), key=keys.__getitem__)
    return [(options[i], ("first_token_s", round(keys[i][1], 6))) for i in places]


def _spilled(spill: Spill | None, groups: Sequence[_Group], asked: Asked) -> list[Candidate]:
    """The groups in the order of their priorities; but the first that is in time before them all.

    Where none is, the one that is least late. Within a group, who is in time comes first. An endpoint without
    history is taken to be in time: otherwise it would never get one. Only calls that spill over are capped,
    not those that have nowhere else to go.
    """
    ordered = list(groups)
    leads = 0
    if spill is not None and groups:
        late_s = [_lateness_s(spill, group, asked, is_first=i == 0) for i, group in enumerate(groups)]
        leads = min(range(len(groups)), key=late_s.__getitem__)
        ordered.insert(0, ordered.pop(leads))
    found = []
    for place, (priority, ranked) in enumerate(ordered):
        spills = place == 0 and leads > 0
        in_time_first = ranked
        if spill is not None and place == 0:
            objective_s = spill.first_token_s
            in_time_first = sorted(ranked, key=lambda pair: pair[0].expected_s() > objective_s)
        for option, term in in_time_first:
            is_spilled = spills and _is_affordable(option, asked)
            terms: tuple[tuple[str, float], ...] = (
                ("priority", float(priority)),
                term,
                ("load", float(option.facts.load)),
            )
            if spill is not None:
                terms += (("expected_s", round(option.expected_s(), 6)), ("spilled", float(is_spilled)))
            found.append(Candidate(option.endpoint, option.model, priority, why=terms, is_spilled=is_spilled))
    if leads:
        # Models above the cap are no place to spill to; they stay for calls whom everybody else has failed.
        found.sort(key=lambda c: c.priority == ordered[0][0] and not c.is_spilled)
    return found


def _lateness_s(spill: Spill, group: _Group, asked: Asked, *, is_first: bool) -> float:
    """How much later than the objective; 0 in time, infinite for who costs too much to spill to."""
    soonest_s = [o.expected_s() for o, _ in group[1] if is_first or _is_affordable(o, asked)]
    return max(0.0, min(soonest_s, default=math.inf) - spill.first_token_s)


def _is_affordable(option: _Option, asked: Asked) -> bool:
    room = asked.spill_room_nano_usd
    return room is None or asked.cost_nano_usd(option.model) <= room


def _best_first(model: str, options: Sequence[_Option], asked: Asked) -> Sequence[_Option]:
    """Endpoints of one model."""
    if len(options) < 2:
        return options
    by_key = {key_of(option.endpoint): option for option in options}
    return [by_key[key_of(endpoint)] for endpoint in asked.rank(model, [o.endpoint for o in options])]


def _fallback(option: _Option, place: int, *terms: tuple[str, float]) -> Candidate:
    why = (("fallback", float(place)), ("load", float(option.facts.load)), *terms)
    return Candidate(option.endpoint, option.model, is_fallback=True, why=why)
