"""How many calls a gateway process has at once, and which of them it takes while there is little room.

Kept by `admit`. Memory is bounded whatever arrives; the last of the room is for the more critical calls, and
for tenants that have less than their share of it.
"""

from __future__ import annotations

import math
from collections import Counter

from inferhub.core.call import Criticality
from inferhub.core.errors import Overloaded

SHARES: dict[Criticality, float] = {
    Criticality.REALTIME: 1.0,
    Criticality.INTERACTIVE: 0.9,
    Criticality.BATCH: 0.65,
}
"""So much of the room a call may find taken, and be taken itself."""
_FAIR_SHARE = 0.05
"""More than that, where its tenant has less of the room than an even share."""

_RETRY_AFTER_S: dict[Criticality, float] = {
    Criticality.REALTIME: 1.0,
    Criticality.INTERACTIVE: 1.0,
    Criticality.BATCH: 5.0,
}


class Doorway:
    def __init__(self, most: int) -> None:
        self._most = most
        self._limits = {kind: math.ceil(share * most) for kind, share in SHARES.items()}
        self._spare = int(_FAIR_SHARE * most)
        self._inside = 0
        self._by_tenant: Counter[str] = Counter()

    def enter(self, criticality: Criticality, tenant: str) -> None:
        """Raises `Overloaded`. Whoever has entered must `leave`."""
        limit = self._limits[criticality]
        if self._inside >= limit and not self._is_owed(limit, tenant):
            raise self._refusal(criticality)
        self._inside += 1
        self._by_tenant[tenant] += 1

    def leave(self, tenant: str) -> None:
        self._inside -= 1
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def _is_owed(self, limit: int, tenant: str) -> bool:
        if self._inside >= min(limit + self._spare, self._most):
            return False
        mine = self._by_tenant[tenant]
        others = len(self._by_tenant) - (mine > 0)
        return others > 0 and mine < limit // (others + 1)

    def _refusal(self, criticality: Criticality) -> Overloaded:
        wait_s = _RETRY_AFTER_S[criticality]
        if criticality is Criticality.BATCH and self._inside < self._limits[Criticality.INTERACTIVE]:
            return Overloaded(
                f"{self._inside} calls are in flight; what is left of the room is for more urgent ones.",
                retry_after_s=wait_s,
                reason="shed_batch",
            )
        return Overloaded(
            f"{self._inside} calls are in flight, the most allowed.",
            retry_after_s=wait_s,
            reason="gateway_full",
        )
