"""The leaf of the pipeline: hands the call over to its endpoint.

Emits `Started` together with the first real chunk, so a failed attempt leaves nothing upstream. Chooses only
where nobody has chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from inferhub.core.call import Call, Chunk, Emit, Started
from inferhub.core.errors import ContextOverflow, InferHubError, NoEndpoint, Unsupported
from inferhub.core.models import Capability
from inferhub.core.serving import Endpoint
from inferhub.modalities import modalities
from inferhub.modalities.tokens import DEFAULT_OUTPUT_TOKENS
from inferhub.pipeline.address import addressed
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.media import Media


class Dispatch:
    """A `Handler`. Counts its own calls per endpoint, because a worker's report is always late."""

    def __init__(self, directory: Callable[[], Directory], media: Media | None = None) -> None:
        self._directory = directory
        self._media = media
        self._running: Counter[str] = Counter()

    async def __call__(self, call: Call, emit: Emit) -> None:
        model, endpoints = self._directory().resolve(call.model, call.principal.may_call)
        endpoint = chosen(endpoints, call) if call.endpoint else pick(endpoints, self._running)
        capability = fit(call, model, endpoint)
        if self._media is not None and self._media.concerns(call):
            call = await self._media.inline(call, capability)
        native = call.native.dialect if call.native is not None else "extra_params"
        forwards_all = "extra_params" in capability.features or native in capability.features
        ignored = ignored_wishes(call, capability) + (() if forwards_all else call.unknown_params)
        started = Started(model, endpoint.id, call.attempt, ignored)
        is_first = True

        async def announce(chunk: Chunk) -> None:
            await emit(started)
            await emit(chunk)

        # Not a coroutine of its own: it runs for every token.
        def relay(chunk: Chunk) -> Awaitable[None]:
            nonlocal is_first
            if is_first:
                is_first = False
                return announce(chunk)
            return emit(chunk)

        self._running[endpoint.id] += 1
        try:
            await endpoint.infer(addressed(call, endpoint.model.spec.name, endpoint.id, call.attempt), relay)
        except InferHubError as error:
            error.endpoint = endpoint.id
            raise
        finally:
            self._running[endpoint.id] -= 1


def chosen(endpoints: Sequence[Endpoint], call: Call) -> Endpoint:
    """The endpoint that the call names. Raises `NoEndpoint` where it has gone since."""
    for endpoint in endpoints:
        if endpoint.id == call.endpoint:
            return endpoint
    raise NoEndpoint(f"The endpoint {call.endpoint!r} of model {call.model!r} is gone.", retry_after_s=1.0)


def pick(endpoints: Sequence[Endpoint], running: Counter[str]) -> Endpoint:
    """The least busy endpoint."""
    if len(endpoints) == 1:
        return endpoints[0]
    return min(endpoints, key=lambda e: running[e.id])


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
    needed = modality.requires(call.request)
    if call.native is not None and call.native.needs:
        needed = {**needed, **call.native.needs}
    for feature, param in needed.items():
        if feature not in capability.features:
            raise Unsupported(
                f"The model {model!r} does not support '{param}' as used here (feature {feature!r}).",
                param=param,
            )
    _check_length(call, model, capability)
    return capability


def ignored_wishes(call: Call, capability: Capability) -> tuple[str, ...]:
    """Parameters that the model leaves out, because it can do without them."""
    wishes = modalities()[call.modality].wishes
    if wishes is None:
        return ()
    return tuple(param for param, any_of in wishes(call.request).items() if not any_of & capability.features)


def _check_length(call: Call, model: str, capability: Capability) -> None:
    """Raises `ContextOverflow`, which a route may answer with a larger model."""
    limit, context = getattr(call.request, "max_output_tokens", None), capability.context_tokens
    # The default is admission's, for clients that set no limit. Where a dialect demands one, as Anthropic's
    # does, clients send the largest that they know of: the answer then ends where the context does.
    if call.native is not None:
        return
    if limit is None or context is None or limit <= context or limit == DEFAULT_OUTPUT_TOKENS:
        return
    param = "max_completion_tokens" if getattr(call.request, "max_completion_tokens", None) else "max_tokens"
    raise ContextOverflow(
        f"'{param}' is {limit}; the context of {model!r} is {context} tokens, prompt and answer together.",
        param=param,
    )
