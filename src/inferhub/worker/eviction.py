"""Which models leave memory so that another fits. Pure: `room` asks, and acts; no engine is touched here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that takes memory, or is about to."""

    name: str
    memory_bytes: int
    last_used_s: float
    can_leave: bool
    """On demand, and no call needs it now."""


def leavers(residents: Sequence[Resident], needed_bytes: int, budget_bytes: int) -> tuple[str, ...] | None:
    """The least recently used, as few as make room; None where not even all of them would."""
    excess = sum(resident.memory_bytes for resident in residents) + needed_bytes - budget_bytes
    leaving: list[str] = []
    for resident in sorted(residents, key=lambda r: r.last_used_s):
        if excess <= 0:
            break
        if resident.can_leave and resident.memory_bytes:
            leaving.append(resident.name)
            excess -= resident.memory_bytes
    return tuple(leaving) if excess <= 0 else None
