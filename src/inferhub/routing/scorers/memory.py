"""`memory`: how much of its device's memory is free; 0 from four fifths on, where engines begin to evict."""

from __future__ import annotations

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint

FULL_SHARE = 0.8


def term(endpoint: Endpoint, _scheduling: Scheduling, _region: str) -> float | None:
    used = endpoint.memory_used_share
    return None if used is None else min(max(1 - used / FULL_SHARE, 0.0), 1.0)
