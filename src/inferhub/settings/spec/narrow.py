"""A spec cut down to some of its models, where only some modalities are served. Called by assembly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from inferhub.core.models import ModelSpec
from inferhub.core.traffic import Route
from inferhub.settings.spec.load import Spec


def narrow(spec: Spec, keeps: Callable[[ModelSpec], bool]) -> Spec:
    """Without the other models, what leads to them only, and what they cost."""
    models = tuple(model for model in spec.models if keeps(model))
    names = {model.name for model in models}
    routes = (_narrow_route(route, names) for route in spec.routes)
    priced = [i for i, price in enumerate(spec.prices) if price.model in names]
    return replace(
        spec,
        models=models,
        routes=tuple(route for route in routes if route.targets),
        prices=tuple(spec.prices[i] for i in priced),
        placements={model: placed for model, placed in spec.placements.items() if model in names},
        price_places=tuple(spec.price_places[i] for i in priced),
    )


def _narrow_route(route: Route, names: set[str]) -> Route:
    targets = tuple(target for target in route.targets if target.model in names)
    fallbacks = tuple(fallback for fallback in route.fallbacks if fallback.model in names)
    return replace(route, targets=targets, fallbacks=fallbacks)
