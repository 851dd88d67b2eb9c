"""What can be asked of the counters behind limits and budgets. Asked by `pipeline/limiter` alone.

Never more than a meter's limit is granted in any window, however many processes ask at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from inferhub.core.quota import MAX_LIMIT, Claim, Meter, Reading, Refusal, Reservation, Unit, Window

BLOCK = "blk_"
"""How the tickets of leased blocks begin. Money held by one that lapses counts as spent, all of it: its
process died, and a budget must not forgive what nobody can tell any more."""
LEASE_S = 30.0
"""A reservation of concurrency or budget that is neither settled nor renewed for so long is given back."""
REMEMBER_S = 600.0
"""So long a store that outlives its callers knows a ticket that was settled, charged or given up."""
HOLD_RETRY_S = 1.0
"""When to ask again where only running calls are in the way: nobody knows when they end."""


def is_held(meter: Meter) -> bool:
    """Whether claims on it are held under their ticket, instead of counted at once and corrected later."""
    return meter.window is Window.NOW or meter.unit is Unit.USD


def countable(amount: int) -> int:
    """An amount as every store can count it. An estimate may come from a number that a client sent."""
    if 0 <= amount <= MAX_LIMIT:
        return amount
    return MAX_LIMIT if amount > 0 else 0


class Counters(Protocol):
    """Every method is atomic and raises `StoreFailed` and nothing foreign. A call names a meter once."""

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        """Grant all claims or none. `ticket` is unique and makes a repeated request the same one.

        - a minute slides: no 60 s ever hold more than the limit;
        - a day and a month are the UTC calendar's, on the store's clock;
        - concurrency, and budgets (`usd`), are held under the ticket until settled or expired: what was
          spent, plus every live hold, plus this claim, stays within the limit;
        - other units over a day or a month are counted at once, and corrected when settled.
        """

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        """Replace the reserved amounts by what was really used; meters not named keep the reserved amount,
        concurrency is always given back. A second time changes nothing.

        What was used counts even where it is more than was reserved, or more than the limit. Less than was
        reserved frees the moment of the reservation; more counts from now. Money counts when it is settled.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Hold for another `LEASE_S`. One that expired meanwhile is held again."""

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        """Count what was used without asking for room, once per ticket: calls that a crash cut off.

        Name their budgets only: what they reserved of other meters stays counted. A hold of the same ticket
        ends. Nothing changes for a ticket that was settled.
        """

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]: ...

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        """True for the first caller of all processes in `ttl_s`; for alerts that must be sent once."""

    async def ping(self) -> None:
        """Raise `StoreFailed` unless the store answers now."""

    async def close(self) -> None: ...
