"""A model that sees, in the real engine: SmolLM2 with a tiny random picture encoder before it."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.core.call import Call
from inferhub.core.errors import Invalid, SetupError
from inferhub.core.models import ModelSpec
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish
from tests.backends.tiny_gguf import write_mmproj

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLES = Path(__file__).parents[1] / "data"
SMOLLM2_WIDTH = 576


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeing(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCpp]:
    mmproj = tmp_path_factory.mktemp("mmproj") / "tiny-mmproj.gguf"
    write_mmproj(mmproj, SMOLLM2_WIDTH)
    options = {"mmproj": str(mmproj), "context_tokens": 1024}
    backend = LlamaCpp(ModelSpec("seeing", "llamacpp", slots=2, options=options), smollm2_path)
    await backend.load()
    yield backend
    await backend.unload()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def about(*urls: str, **params: Any) -> Call:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": parts}]
    return make_call("chat", messages=messages, **{"temperature": 0, "max_tokens": 6} | params)


COFFEE = (SAMPLES / "coffee.png").read_bytes()
CAT = (SAMPLES / "chelsea.png").read_bytes()


async def test_it_says_that_it_sees(seeing: LlamaCpp) -> None:
    [chat] = [c for c in seeing.capabilities if c.modality == "chat"]
    assert "vision" in chat.features
    assert "remote_urls" not in chat.features


async def test_pictures_become_tokens(seeing: LlamaCpp) -> None:
    without = await finish(seeing, about())
    one = await finish(seeing, about(data_url(COFFEE)))
    two = await finish(seeing, about(data_url(COFFEE), data_url(CAT)))
    patches = (56 // 14) ** 2
    assert one.usage.input_tokens >= without.usage.input_tokens + patches
    assert two.usage.input_tokens >= one.usage.input_tokens + patches
    assert one.text()


async def test_another_picture_is_another_prompt(seeing: LlamaCpp) -> None:
    def logprobs(result: Any) -> list[float]:
        return [token.logprob for delta in result.payloads for token in delta.logprobs or ()]

    coffee = await finish(seeing, about(data_url(COFFEE), logprobs=True))
    cat = await finish(seeing, about(data_url(CAT), logprobs=True))
    assert logprobs(coffee)[0] != logprobs(cat)[0]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.png",
        "file:///etc/passwd",
        data_url(b"PK\x03\x04" + os.urandom(200)),
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        data_url(COFFEE[:2000]),
        data_url(b"\x00\x00\x00\x18ftypmp42" + os.urandom(100)),
    ],
)
async def test_the_engine_gets_no_address_and_no_file_that_a_client_made(seeing: LlamaCpp, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        await finish(seeing, about(url))
    assert caught.value.param == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize("content", [b"", b"no GGUF at all", None])
async def test_what_is_no_encoder_is_refused_by_name(
    smollm2_path: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "mmproj.gguf"
    if content is not None:
        path.write_bytes(content)
    backend = LlamaCpp(ModelSpec("m", "llamacpp", options={"mmproj": str(path)}), smollm2_path)
    with pytest.raises(SetupError, match="mmproj"):
        await backend.load()


async def test_an_encoder_of_another_model_is_refused(smollm2_path: Path, tmp_path: Path) -> None:
    write_mmproj(tmp_path / "other.gguf", 64)
    spec = ModelSpec(
        "m", "llamacpp", slots=1, options={"mmproj": str(tmp_path / "other.gguf"), "context_tokens": 256}
    )
    with pytest.raises(SetupError, match="made for this very model"):
        await LlamaCpp(spec, smollm2_path).load()
