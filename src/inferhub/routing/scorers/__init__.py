"""What speaks for an endpoint: one file per term, each a pure function from 0 to 1; None: not known.

`BY_ENDPOINT` look at the endpoint alone and are asked once per report; the others look at the call too and
are asked by `scheduler` for each candidate. A term's name is the name of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.scorers import gpu_fit, memory, region, warm

NEUTRAL = 0.5
"""Stands for what is not known: neither for an endpoint nor against it."""

BY_ENDPOINT: Mapping[str, Callable[[Endpoint, Scheduling, str], float | None]] = {
    "warm": warm.term,
    "memory": memory.term,
    "region": region.term,
    "gpu_fit": gpu_fit.term,
}
"""Each is given the endpoint, the scheduling, and the region of this gateway."""
BY_CALL = ("prefix", "pending", "session")

__all__ = ["BY_CALL", "BY_ENDPOINT", "NEUTRAL"]
