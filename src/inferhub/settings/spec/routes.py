"""The `routes` of a hub.yaml: what is wrong with them, and what they become. Called by `spec.load`.

Names are looked at in the raw tree, so that they are told together with every other problem; what needs a
well-formed entry is looked at once it is one. Routes lead to models only, so no route can lead to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inferhub.core.traffic import Cause, Fallback, Patience, Route, Spill, Target
from inferhub.settings.nearest import did_you_mean
from inferhub.settings.spec.reader import Path
from inferhub.settings.spec.types import RouteEntry, SpecFile

Problems = list[tuple[Path, str]]


def load_route(entry: RouteEntry) -> Route:
    """Of an entry without problems."""
    targets = tuple(Target(t.model, t.weight, t.priority) for t in entry.targets)
    spill = entry.spill
    return Route(
        entry.name,
        targets or (Target(entry.model or ""),),
        tuple(Fallback(f.model, frozenset(map(Cause, f.on))) for f in entry.fallbacks),
        prefer=entry.prefer,
        spill=Spill(spill.first_token_s, spill.max_usd_per_hour) if spill else None,
        affinity=entry.affinity is not None,
        hedge_after_s=entry.hedge_after_s,
        patience=Patience(entry.first_token_timeout_s, entry.idle_timeout_s, entry.request_timeout_s),
        resume=entry.resume,
    )


def check_route_names(routes: Any, models: Sequence[str], names: Sequence[str]) -> Problems:
    """Of `routes` as written, whatever that is; `names` are those of the routes."""
    problems: Problems = []
    for i, route in enumerate(routes if isinstance(routes, list) else ()):
        if not isinstance(route, dict):
            continue
        path: Path = ("routes", i)
        if "model" in route and "targets" in route:
            problems.append(((*path, "targets"), "give 'model' or 'targets', not both"))
        elif not (route.get("model") or route.get("targets")):
            problems.append((path, "the route leads nowhere; give 'model' or 'targets'"))
        first: dict[str, str] = {}
        for place, label, model in _named(route):
            if model not in models:
                problems.append(((*path, *place), _unknown(model, models, names)))
            elif model in first:
                problems.append(
                    ((*path, *place), f"model {model!r} is in this route already: {first[model]}")
                )
            else:
                first[model] = label
    return problems


def _named(route: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """(where below the route, in words, the model) for each model that a route names."""
    if isinstance(model := route.get("model"), str):
        yield ("model",), "model", model
    for key in ("targets", "fallbacks"):
        entries = route.get(key)
        for i, entry in enumerate(entries if isinstance(entries, list) else ()):
            model = entry.get("model") if isinstance(entry, dict) else entry
            if isinstance(model, str):
                yield (key, i, "model"), f"{key}[{i}]", model


def _unknown(model: str, models: Sequence[str], routes: Sequence[str]) -> str:
    if model in routes:
        return f"unknown model {model!r}. It is a route; a route leads to models only"
    known = f" Models: {', '.join(models[:20])}" if models else ""
    return f"unknown model {model!r}.{did_you_mean(model, models)}{known}"


def check_routes(spec: SpecFile) -> Problems:
    """What would be accepted and then do nothing is refused: whoever wrote it counts on it."""
    priced = {price.model for price in spec.prices}
    one_place = {model.name for model in spec.models if model.weights is None}
    return [
        (("routes", i, *place), reason)
        for i, route in enumerate(spec.routes)
        for place, reason in (
            *_check_targets(route),
            *_check_spill(route, priced),
            *_check_price(route, priced),
            *_check_hedge(route, one_place),
        )
    ]


def _check_targets(route: RouteEntry) -> Iterator[tuple[Path, str]]:
    if route.targets and not any(target.weight for target in route.targets):
        yield ("targets",), "every weight is 0, so that nobody takes a call; give one a weight"


def _check_spill(route: RouteEntry, priced: set[str]) -> Iterator[tuple[Path, str]]:
    if route.spill is None:
        return
    priorities = {target.priority for target in route.targets}
    if len(priorities) < 2:
        yield ("spill",), "calls can spill over only to a target of another priority, and there is none"
        return
    dearer = [target.model for target in route.targets if target.priority > min(priorities)]
    if route.spill.max_usd_per_hour is not None and not priced.intersection(dearer):
        reason = f"the cap counts prices, and none of {', '.join(dearer)} has one under 'prices'"
        yield ("spill", "max_usd_per_hour"), reason


def _check_price(route: RouteEntry, priced: set[str]) -> Iterator[tuple[Path, str]]:
    if route.prefer == "cost" and not any(target.model in priced for target in route.targets):
        yield ("prefer",), "no target has a price under 'prices', so that none is the cheapest"


def _check_hedge(route: RouteEntry, one_place: set[str]) -> Iterator[tuple[Path, str]]:
    hedge_s, timeout_s = route.hedge_after_s, route.first_token_timeout_s
    if hedge_s is None:
        return
    if timeout_s is not None and hedge_s >= timeout_s:
        yield ("hedge_after_s",), f"{hedge_s:g} is not before first_token_timeout_s, which is {timeout_s:g}"
    targets = [target.model for target in route.targets] or [route.model or ""]
    has_fallback = any(Cause.TIMEOUT.value in fallback.on for fallback in route.fallbacks)
    if len(targets) == 1 and targets[0] in one_place and not has_fallback:
        # A model with weights may be loaded by several workers.
        reason = (
            f"there is no second endpoint to ask: {targets[0]!r} is in one place; add a target or a fallback"
        )
        yield ("hedge_after_s",), reason
