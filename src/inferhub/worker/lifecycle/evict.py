"""Which models leave memory: to make room, or because nobody has called them for long. Pure.

`keeper` asks, and acts; no engine is touched here. Both rules ask the same `can_leave`, so that neither ever
sends away what the other has to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferhub.core.serving import DeviceStatus

Bytes = Mapping[str, int]
"""Device → bytes."""

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that takes memory, or is about to."""

    name: str
    memory: Bytes
    last_used_s: float
    is_loaded: bool = True
    """False while it loads or leaves: it counts, and cannot be sent away."""
    is_pinned: bool = False
    users: int = 0
    """Calls that need it now."""
    idle_ttl_s: float | None = None

    @property
    def can_leave(self) -> bool:
        return self.is_loaded and not self.is_pinned and not self.users


def evict(residents: Sequence[Resident], needed: Bytes, budgets: Bytes) -> tuple[str, ...] | None:
    """The least recently used, as few as make room; None where not even all that can leave would.

    A device without a budget has no limit.
    """
    excess = _excess(residents, needed, budgets)
    leaving: list[Resident] = []
    for resident in sorted(residents, key=lambda r: r.last_used_s):
        if not excess:
            break
        if resident.can_leave and any(resident.memory.get(device) for device in excess):
            leaving.append(resident)
            excess = _less(excess, resident)
    if excess:
        return None
    return tuple(r.name for r in _without_needless(leaving, residents, needed, budgets))


def idle(residents: Sequence[Resident], now_s: float) -> tuple[str, ...]:
    """Those whose time without a call is over."""
    return tuple(r.name for r in residents if r.can_leave and (due := _due_s(r)) is not None and due <= now_s)


def next_idle_s(residents: Sequence[Resident]) -> float | None:
    """When the next one may have been without a call for long enough; None where that never comes."""
    return min((due for r in residents if not r.is_pinned and (due := _due_s(r)) is not None), default=None)


def too_large_for(residents: Sequence[Resident], needed: Bytes, budgets: Bytes) -> str | None:
    """The device where `needed` would not fit even if everything left that is not pinned."""
    pinned = [r for r in residents if r.is_pinned]
    return next(iter(_excess(pinned, needed, budgets)), None)


def vram_budgets(devices: Sequence[DeviceStatus], residents: Sequence[Resident], share: float) -> Bytes:
    """What models may take of each GPU: a share of it, and never what somebody else has already."""
    return {
        d.id: min(int(d.memory_total_bytes * share), total(residents, d.id) + d.memory_free_bytes)
        for d in devices
        if d.id != CPU
    }


def total(residents: Sequence[Resident], device: str) -> int:
    return sum(r.memory.get(device, 0) for r in residents)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all models of a worker may take together."""

    memory_bytes: int = 1 << 40
    vram_share: float = 0.9

    def on(self, devices: Sequence[DeviceStatus], residents: Sequence[Resident]) -> Bytes:
        return {CPU: self.memory_bytes, **vram_budgets(devices, residents, self.vram_share)}


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long a model stays: the part of its spec that a loaded one takes over as it is."""

    is_pinned: bool = False
    is_eager: bool = False
    """Brought back at once when its process dies, not by the next call."""
    idle_ttl_s: float | None = None


def _excess(residents: Sequence[Resident], needed: Bytes, budgets: Bytes) -> dict[str, int]:
    """What is too much, by device; only devices that have too much.

    Where something is needed, only there: a full GPU is no reason to refuse a model that runs on the CPU.
    """
    over = {
        device: total(residents, device) + needed.get(device, 0) - budget
        for device, budget in budgets.items()
        if not needed or needed.get(device)
    }
    return {device: bytes_ for device, bytes_ in over.items() if bytes_ > 0}


def _less(excess: Bytes, resident: Resident) -> dict[str, int]:
    left = {device: bytes_ - resident.memory.get(device, 0) for device, bytes_ in excess.items()}
    return {device: bytes_ for device, bytes_ in left.items() if bytes_ > 0}


def _without_needless(
    leaving: Sequence[Resident], residents: Sequence[Resident], needed: Bytes, budgets: Bytes
) -> Sequence[Resident]:
    """A large one that came last may have made smaller ones before it leave for nothing."""
    kept = list(leaving)
    for resident in reversed(leaving):
        gone = {r.name for r in kept if r is not resident}
        if not _excess([r for r in residents if r.name not in gone], needed, budgets):
            kept.remove(resident)
    return kept


def _due_s(resident: Resident) -> float | None:
    return None if resident.idle_ttl_s is None else resident.last_used_s + resident.idle_ttl_s
