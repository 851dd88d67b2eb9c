"""Who is not compared at all: who cannot do what is asked, may not be asked, or has too much to do.

Pure, and asked by `pools` and `scheduler`. Whether an endpoint is well only its `Load` knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.scorers import region as regions


def is_capable(endpoint: Endpoint, modality: str, features: frozenset[str]) -> bool:
    capability = endpoint.model.capability(modality)
    return capability is not None and features <= capability.features


def may_go_there(endpoint: Endpoint, scheduling: Scheduling, region: str) -> bool:
    """Whether the region policy lets calls of a gateway in `region` go there. Who does not say where it is,
    is not where it must be; but a vendor's model is in no region, and was chosen by name."""
    policy = scheduling.region_policy
    if policy == "any" or endpoint.model.device == "remote":
        return True
    least = regions.OWN if policy == "own" else regions.NEAR
    return (regions.term(endpoint, scheduling, region) or 0.0) >= least


def gate_s(pending_s: Sequence[float], scheduling: Scheduling) -> float | None:
    """More work than this is too much; None while the candidates are about as busy as each other."""
    least, most = min(pending_s), max(pending_s)
    if most - least > scheduling.gate_s and most > scheduling.gate_factor * least:
        return least + scheduling.gate_s
    return None
