"""`warm`: how soon the model could answer there. 1 loaded, 0.8 room for it, 0.6 loading, 0 must make room."""

from __future__ import annotations

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.scorers.memory import FULL_SHARE


def term(endpoint: Endpoint, _scheduling: Scheduling, _region: str) -> float | None:
    model = endpoint.model
    if model.loaded:
        return 1.0
    if model.loading:
        return 0.6
    used = endpoint.memory_used_share
    if used is None:
        return None
    return 0.8 if used < FULL_SHARE else 0.0
