"""The contract suite over every backend × declared capability, each with its real engine.

The remote backend talks to a real InferHub that serves the echo: an upstream that honours what it is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import pytest_asyncio
from platformdirs import user_cache_path

from inferhub.backends import backend_class, backend_names
from inferhub.backends.base import Backend, check_options
from inferhub.core.models import Capability, ModelSpec
from inferhub.gateway.dialects import dialects
from inferhub.modalities import modalities
from inferhub.registry.weights import Weights
from inferhub.testing.contract import CHECKS, Check
from inferhub.testing.servers import running_hub
from inferhub.testing.upstream_process import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "models: [{name: echo, backend: echo, slots: 64}]\n"
SPECS = {
    "anthropic": ModelSpec("echo", "anthropic"),
    "echo": ModelSpec("echo", "echo"),
    "gemini": ModelSpec("gemini", "gemini", slots=8),
    "llamacpp": ModelSpec("smollm2", "llamacpp", weights="smollm2-135m", slots=2),
    "onnx_embedding": ModelSpec("minilm", "onnx_embedding", weights="minilm-l6-v2"),
    "hibari": ModelSpec("hibari", "hibari"),
    "kokoro": ModelSpec("kokoro", "kokoro", weights="kokoro-82m"),
    "openai_compatible": ModelSpec("echo", "openai_compatible", options={"vendor": "inferhub"}),
    "realesrgan": ModelSpec("realesrgan", "realesrgan", weights="realesrgan"),
    "scene": ModelSpec("scene", "scene"),
    "style_transfer": ModelSpec("style", "style_transfer"),
    "whisper": ModelSpec("whisper", "whisper", weights="whisper-tiny.en"),
}
NEED_TORCH = {"diffusers", "transformers_vision"}
"""`make test-slow` tries them, on tiny models made by their own tests."""
CASES = [(check, modality) for check in CHECKS for modality in sorted(check.modalities)]


@asynccontextmanager
async def loaded(spec: ModelSpec) -> AsyncIterator[Backend]:
    kind = backend_class(spec.backend)
    # Where `make weights` put them; a missing file fails with that remedy.
    cache = Weights(user_cache_path("inferhub", appauthor=False))
    options = dict(spec.options)
    for option in kind.further_weights:
        if name := getattr(check_options(kind, spec), option):
            options[option] = str(cache.resolve(name))
    backend = kind(replace(spec, options=options), cache.resolve(spec.weights) if spec.weights else None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(SPECS))
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    spec = SPECS[request.param]
    if spec.backend == "gemini":
        async with Upstream(strict=True, script="echo=1") as upstream:
            wanted = ["chat", "embedding", "token_count"]
            options = {"base_url": upstream.url, "api_key": "k", "modalities": wanted}
            async with loaded(replace(spec, options=options)) as remote:
                yield remote
            assert await upstream.violations() == []
        return
    if spec.backend not in ("anthropic", "openai_compatible"):
        async with loaded(spec) as engine:
            yield engine
        return
    # Checks ask the same again and again; what is looked at is the model, not the cache in front of it.
    forgetful = {"cache_ttl_s": 0.001}
    with running_hub("serve", tmp_path_factory.mktemp("upstream"), ECHO, forgetful) as hub:
        # It answers Anthropic's backend in Anthropic's dialect.
        options = {**spec.options, "base_url": hub.api, "api_key": hub.admin_key}
        async with loaded(replace(spec, options=options)) as remote:
            yield remote


@pytest.mark.parametrize(("check", "modality"), CASES, ids=lambda value: getattr(value, "name", value))
async def test_backend_keeps_its_promises(backend: Backend, check: Check, modality: str) -> None:
    """A case that the backend does not declare has nothing to keep; the next test counts those that run."""
    for capability in promised(backend, modality):
        if check.feature is None or check.feature in capability.features:
            await check.run(backend, capability)


def promised(backend: Backend, modality: str) -> list[Capability]:
    """A remote model can only keep what the model behind it can: here, what the echo declares."""
    found = [c for c in backend.capabilities if c.modality == modality]
    if backend.remote:
        return [replace(c, features=c.features & ECHO_FEATURES[modality]) for c in found]
    return found


ECHO_FEATURES = {
    "chat": frozenset({"stream", "tools", "tool_choice_named", "json_object", "logprobs", "n", "seed"}),
    "completion": frozenset({"stream", "n", "many_prompts", "seed"}),
    "embedding": frozenset({"dimensions"}),
    "moderation": frozenset(),
    "rerank": frozenset(),
    "token_count": frozenset({"tools"}),
    "vision": frozenset({"description", "question"}),
    "transcription": frozenset({"stream", "translate", "diarize", "word_timestamps"}),
    "speech": frozenset({"stream", "pitch", "gain"}),
    "image": frozenset({"stream", "generate", "edit", "variation", "mask", "seed", "n"}),
}


async def test_backend_declares_only_known_features(backend: Backend) -> None:
    assert backend.capabilities
    for capability in backend.capabilities:
        # `extra_params` says that unknown parameters are passed on, and the name of a dialect the same of a
        # client that speaks it; neither belongs to a modality.
        own = capability.features - {"extra_params", *dialects()}
        assert own <= set(modalities()[capability.modality].features)


async def test_every_backend_is_in_the_suite() -> None:
    assert set(SPECS) == set(backend_names()) - NEED_TORCH
