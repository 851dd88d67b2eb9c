"""How many workers there should be: pure, from what waits now and what was decided before.

Asked by `pool` once a second. Quick to grow, slow to shrink, and it takes away only what was not needed at
any moment for a while: whatever is left bore that load already, so that it does not come back for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inferhub.core.models import ModelStatus


@dataclass(frozen=True, slots=True)
class Limits:
    least: int
    most: int
    up_s: float = 1.0
    """More work than this waits per worker: there are too few of them."""
    up_after_s: float = 2.0
    """For so long without a break."""
    settle_s: float = 5.0
    """After a change, before the next one: what it brought has to show."""
    down_s: float = 0.1
    """Less work than this waits per worker, and one of them has nothing to do: there may be too many."""
    down_after_s: float = 60.0
    """For so long without a break; also between one that is taken away and the next."""


@dataclass(frozen=True, slots=True)
class Load:
    """What there is at one moment."""

    serving: int
    """Workers that take calls."""
    starting: int
    """Workers that soon will."""
    idle: int
    """Workers that could be taken away and have no call."""
    waiting_s: float
    """Work that waits, of all of them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A decision, and what the next one has to know of those before."""

    desired: int
    changed_at_s: float = -math.inf
    pressed_since_s: float | None = None
    calm_since_s: float | None = None


def scaled(scale: Scale, load: Load, now_s: float, limits: Limits) -> Scale:
    """The next decision. Never more than doubles, never takes away more than one."""
    is_pressed = load.serving > 0 and load.waiting_s > limits.up_s * load.serving
    is_calm = load.idle > 0 and load.starting == 0 and load.waiting_s <= limits.down_s * load.serving
    now = replace(
        scale,
        pressed_since_s=_since(scale.pressed_since_s, now_s) if is_pressed else None,
        calm_since_s=_since(scale.calm_since_s, now_s) if is_calm else None,
    )
    desired = scale.desired
    if now_s - scale.changed_at_s >= limits.settle_s:
        # Who is still starting was asked for because of what waits here.
        if load.starting == 0 and _lasts(now.pressed_since_s, now_s, limits.up_after_s):
            missing = math.ceil(load.waiting_s / limits.up_s) - load.serving
            desired = min(2 * desired, desired + max(1, missing))
        elif _lasts(now.calm_since_s, now_s, limits.down_after_s):
            desired -= 1
    desired = max(limits.least, min(limits.most, desired))
    return now if desired == scale.desired else Scale(desired, now_s)


def waiting_s(model: ModelStatus) -> float:
    """How long a worker will take for what waits there for this model.

    What runs already is no reason for another worker: it cannot move. A model whose speed is not known
    yet counts a second for each call that waits.
    """
    if model.queued <= 0:
        return 0.0
    if model.s_per_cost <= 0:
        return float(model.queued)
    return model.pending_s * model.queued / (model.queued + max(0, model.running))


def _since(since_s: float | None, now_s: float) -> float:
    return now_s if since_s is None else since_s


def _lasts(since_s: float | None, now_s: float, duration_s: float) -> bool:
    return since_s is not None and now_s - since_s >= duration_s
