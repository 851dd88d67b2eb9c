"""Real weights for the engines' tests: from `INFERHUB_TEST_WEIGHTS`, else from the registry's cache."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from platformdirs import user_cache_path

from inferhub.backends.hibari import Hibari
from inferhub.backends.kokoro import Kokoro
from inferhub.backends.llamacpp import LlamaCpp
from inferhub.backends.speaking.backend import SpeakingBackend
from inferhub.core.errors import SetupError
from inferhub.core.models import ModelSpec
from inferhub.registry.weights import Weights

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _weights("smollm2-135m", SMOLLM2)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    return _weights("minilm-l6-v2", "minilm")


@pytest.fixture(scope="session")
def whisper_base_path() -> Path:
    return _weights("whisper-base", "whisper-base")


@pytest.fixture(scope="session")
def whisper_tiny_path() -> Path:
    return _weights("whisper-tiny.en", "whisper-tiny.en")


@pytest.fixture(scope="session")
def d_vector_path() -> Path:
    return _weights("d-vector", "d-vector/embedder.int8.onnx")


@pytest.fixture(scope="session")
def kokoro_path() -> Path:
    return _weights("kokoro-82m", "kokoro/kokoro-82m.int8.onnx")


@pytest.fixture(scope="session")
def voices_path() -> Path:
    return _weights("kokoro-voices", "kokoro/kokoro-voices-16.fp16.npz")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama(smollm2_path: Path) -> AsyncIterator[LlamaCpp]:
    """SmolLM2 with two slots and its whole context; its tests share a loop with it."""
    backend = LlamaCpp(ModelSpec("m", "llamacpp", slots=2), smollm2_path)
    await backend.load()
    yield backend
    await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hibari() -> AsyncIterator[Hibari]:
    backend = Hibari(ModelSpec("hibari", "hibari", slots=2), None)
    await backend.load()
    yield backend
    await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kokoro(kokoro_path: Path, voices_path: Path) -> AsyncIterator[Kokoro]:
    spec = ModelSpec("kokoro", "kokoro", slots=2, options={"voices": str(voices_path)})
    backend = Kokoro(spec, kokoro_path)
    await backend.load()
    yield backend
    await backend.unload()


@pytest.fixture(params=["hibari", "kokoro"])
def speaker(request: pytest.FixtureRequest) -> SpeakingBackend:
    """Either engine."""
    backend: SpeakingBackend = request.getfixturevalue(request.param)
    return backend


def _weights(name: str, in_folder: str) -> Path:
    """Fails with the remedy: a test that skips itself proves nothing."""
    given = os.environ.get("INFERHUB_TEST_WEIGHTS")
    if given:
        path = Path(given) / in_folder
        if not path.exists():
            pytest.fail(f"INFERHUB_TEST_WEIGHTS has no {in_folder}: {path}")
        return path
    # Where `make weights` puts them.
    cache_dir = Path(os.environ.get("INFERHUB_CACHE_DIR") or user_cache_path("inferhub", appauthor=False))
    try:
        return Weights(cache_dir).resolve(name)
    except SetupError as error:
        pytest.fail(f"{error.message} For the tests: `make weights`.")
