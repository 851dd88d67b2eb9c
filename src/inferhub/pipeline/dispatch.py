"""The leaf of the pipeline: finds an endpoint for the call and hands it over.

Emits `Started` together with the first real chunk, so a failed attempt leaves nothing upstream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from inferhub.core.call import Call, Chunk, Emit, Started
from inferhub.core.errors import InferHubError, Unsupported
from inferhub.core.models import Capability
from inferhub.core.serving import Endpoint
from inferhub.modalities import modalities
from inferhub.pipeline.directory import Directory


class Dispatch:
    """A `Handler`. Counts its own calls per endpoint, because a worker's report is always late."""

    def __init__(self, directory: Callable[[], Directory]) -> None:
        self._directory = directory
        self._running: Counter[str] = Counter()

    async def __call__(self, call: Call, emit: Emit) -> None:
        model, endpoints = self._directory().resolve(call.model, call.principal.may_call)
        endpoint = pick(endpoints, call, self._running)
        capability = fit(call, model, endpoint)
        forwards_all = "extra_params" in capability.features
        started = Started(model, endpoint.id, call.attempt, () if forwards_all else call.unknown_params)
        is_first = True

        async def announce(chunk: Chunk) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                await emit(started)
            await emit(chunk)

        self._running[endpoint.id] += 1
        try:
            await endpoint.infer(replace(call, model=endpoint.model.spec.name), announce)
        except InferHubError as error:
            error.endpoint = endpoint.id
            raise
        finally:
            self._running[endpoint.id] -= 1


def pick(endpoints: Sequence[Endpoint], call: Call, running: Counter[str]) -> Endpoint:
    """The least busy endpoint that has not failed this call yet."""
    if len(endpoints) == 1:
        return endpoints[0]
    fresh = [e for e in endpoints if e.id not in call.avoid] or endpoints
    return min(fresh, key=lambda e: running[e.id])


def fit(call: Call, model: str, endpoint: Endpoint) -> Capability:
    """The endpoint's capability for this call. Raises `Unsupported` naming the parameter."""
    capability = endpoint.model.capability(call.modality)
    modality = modalities()[call.modality]
    if capability is None:
        offers = sorted(modalities()[c.modality].path for c in endpoint.model.capabilities)
        raise Unsupported(
            f"The model {model!r} does not answer {modality.path}; it answers {', '.join(offers)}.",
            param="model",
        )
    for feature, param in modality.requires(call.request).items():
        if feature not in capability.features:
            raise Unsupported(
                f"The model {model!r} does not support '{param}' as used here (feature {feature!r}).",
                param=param,
            )
    return capability
