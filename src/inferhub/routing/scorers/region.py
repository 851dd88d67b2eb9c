"""`region`: how far a worker is from this gateway. 1 its own region, 0.6 a near one, 0.2 any other."""

from __future__ import annotations

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint

LABEL = "region"
OWN, NEAR, FAR = 1.0, 0.6, 0.2


def term(endpoint: Endpoint, scheduling: Scheduling, region: str) -> float | None:
    there = endpoint.labels.get(LABEL, "")
    if not there or not region:
        return None
    if there == region:
        return OWN
    return NEAR if there in scheduling.near_regions.get(region, ()) else FAR
