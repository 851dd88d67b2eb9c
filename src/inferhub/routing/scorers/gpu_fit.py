"""`gpu_fit`: whether the model runs on the kind of device it is wanted on, and on how good a one."""

from __future__ import annotations

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint

LABEL = "gpu"


def term(endpoint: Endpoint, scheduling: Scheduling, _region: str) -> float | None:
    model = endpoint.model
    if model.device == "remote":
        return None
    if not model.device.startswith("cuda"):
        # `auto` means a GPU where there is one.
        return 1.0 if model.spec.device == "cpu" else 0.0
    best_first = scheduling.gpus
    if not best_first:
        return 1.0
    kind = endpoint.labels.get(LABEL)
    if kind is None:
        return None
    return 1 - best_first.index(kind) / len(best_first) if kind in best_first else 0.0
