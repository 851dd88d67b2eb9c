"""Where a call goes, and where it goes next: decisions over snapshots, and the one class that remembers.

Called by the attempt ring through `Router`. Everything else here is pure: facts in, an order out. It calls
no endpoint, waits for nothing, and knows neither rings nor HTTP.
"""

from __future__ import annotations

from inferhub.routing.breaker import BreakerLimits
from inferhub.routing.causes import cause_of
from inferhub.routing.choose import Candidate
from inferhub.routing.decisions import Decisions
from inferhub.routing.journey import Journey
from inferhub.routing.router import Places, Router, RouterLimits
from inferhub.routing.trial import Trial

__all__ = [
    "BreakerLimits",
    "Candidate",
    "Decisions",
    "Journey",
    "Places",
    "Router",
    "RouterLimits",
    "Trial",
    "cause_of",
]
