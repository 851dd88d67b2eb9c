"""Where a call goes, and where it goes next: decisions over snapshots, and the one class that remembers.

Called by the attempt ring through `Router`. Everything else here is pure: facts in, an order out. It calls
no endpoint, waits for nothing, and knows neither rings nor HTTP.
"""

from __future__ import annotations

from inferhub.routing.breaker import BreakerLimits
from inferhub.routing.causes import cause_of
from inferhub.routing.choose import Candidate
from inferhub.routing.router import Journey, Places, Router, RouterLimits
from inferhub.routing.trial import Trial

__all__ = ["BreakerLimits", "Candidate", "Journey", "Places", "Router", "RouterLimits", "Trial", "cause_of"]
