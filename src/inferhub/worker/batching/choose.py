"""Which of the waiting calls make the next batch. Pure: a snapshot, the limits and the time go in.

`batcher` asks whenever its engine is idle. The order is that of the queue in front: bands, fair turns of the
tenants, deadlines. The first call always goes; others go with it where that costs it little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inferhub.core.call import Criticality
from inferhub.worker.queue.order import AGE_S

MAX_PADDING = 0.2
"""Share of a batch that may be padding, where a batch of its own would not cost more still."""
DEADLINE_SHARE = 0.9
"""Of the time that the most urgent call has left: the batch must be expected to end before."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call as far as the choice goes."""

    modality: str
    cost: float
    length: float
    deadline_s: float
    arrived_s: float
    criticality: Criticality = Criticality.INTERACTIVE
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one batch."""

    calls: int
    cost: float = math.inf
    """With padding."""


class Prediction(Protocol):
    """What is known of how long batches take."""

    def duration_s(self, modality: str, length: float, cost: float) -> float | None:
        """None while too little is known."""

    def overhead(self, modality: str, length: float) -> float:
        """Cost units that are as much work as beginning one more batch; 0 while it is not known."""


def choose(waiting: Sequence[Waiting], limits: Limits, fit: Prediction, now_s: float) -> list[int]:
    """Positions of the calls to compute together, in their order; empty where none waits."""
    order = in_order(waiting, now_s)
    if not order:
        return []
    first = waiting[order[0]]
    batch = _Batch(first)
    chosen = [order[0]]
    for position in order[1:]:
        if len(chosen) == limits.calls:
            break
        call = waiting[position]
        if call.modality == first.modality and batch.takes(call, limits.cost, fit, now_s):
            chosen.append(position)
    return chosen


def in_order(waiting: Sequence[Waiting], now_s: float) -> list[int]:
    """Positions, the next one first. Within a band every tenant gets its turn by the work it asks for."""
    urgency = [(_band(call, now_s), call.deadline_s, n) for n, call in enumerate(waiting)]
    asked: dict[tuple[int, str], float] = {}
    keys: list[tuple[int, float, int]] = []
    for band, _, position in sorted(urgency):
        call = waiting[position]
        asked[band, call.tenant] = share = asked.get((band, call.tenant), 0.0) + call.cost
        keys.append((band, share, position))
    return [position for _, _, position in sorted(keys)]


class _Batch:
    """What has been chosen so far."""

    def __init__(self, first: Waiting) -> None:
        self.length = first.length
        self.cost = first.cost
        self.deadline_s = first.deadline_s
        self._rows = first.cost / first.length
        """Cost for each unit of length: times the longest length it is the cost with padding."""

    def takes(self, call: Waiting, most: float, fit: Prediction, now_s: float) -> bool:
        """Add the call, unless size, padding or somebody's deadline speaks against it."""
        length = max(self.length, call.length)
        rows = self._rows + call.cost / call.length
        cost = self.cost + call.cost
        padded = length * rows
        if padded > most:
            return False
        if padded - cost > max(MAX_PADDING * padded, fit.overhead(call.modality, length)):
            return False
        deadline_s = min(self.deadline_s, call.deadline_s)
        takes_s = fit.duration_s(call.modality, length, padded)
        if takes_s is not None and takes_s > DEADLINE_SHARE * (deadline_s - now_s):
            return False
        self.length, self._rows, self.cost, self.deadline_s = length, rows, cost, deadline_s
        return True


def _band(call: Waiting, now_s: float) -> int:
    return max(0, call.criticality - int((now_s - call.arrived_s) / AGE_S))


def padded_cost(batch: Sequence[Waiting]) -> float:
    """Of all its calls, each made as long as the longest."""
    return max(call.length for call in batch) * sum(call.cost / call.length for call in batch)
