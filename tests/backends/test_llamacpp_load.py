"""Loading llama.cpp models: what is declared, what is refused, what is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.backends.llamacpp.engine import gpus
from inferhub.core.call import Call
from inferhub.core.errors import ContextOverflow, SetupError, WeightsCorrupt
from inferhub.core.models import Capability, ModelSpec
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(text: str = "Say hello.", **params: Any) -> Call:
    return make_call(
        "chat", messages=[{"role": "user", "content": text}], **{"temperature": 0, "max_tokens": 8} | params
    )


def complete(prompt: Any = "Once upon a time", **params: Any) -> Call:
    return make_call("completion", prompt=prompt, **{"temperature": 0, "max_tokens": 4} | params)


async def load(path: Path, *, slots: int = 2, device: str = "auto", **options: Any) -> LlamaCpp:
    backend = LlamaCpp(ModelSpec("m", "llamacpp", device=device, slots=slots, options=options), path)
    await backend.load()
    return backend


async def test_declares_what_it_can(llama: LlamaCpp) -> None:
    chat_features = {
        "stream", "tools", "tool_choice_named", "json_object", "json_schema", "logprobs", "n", "seed",
        "logit_bias", "prefill",
    }  # fmt: skip
    text_features = {
        "stream", "logprobs", "n", "many_prompts", "token_prompts", "seed", "logit_bias", "prefill",
    }  # fmt: skip
    assert llama.capabilities == (
        Capability("chat", frozenset(chat_features), context_tokens=8192),
        Capability("completion", frozenset(text_features), context_tokens=8192),
        Capability("token_count", frozenset({"tools"}), context_tokens=8192),
    )


async def test_opens_no_port(llama: LlamaCpp) -> None:
    ports = [c for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert ports == []
    address = str(llama._engine._server.listening_address)
    assert address.startswith("unix://")
    assert not os.path.lexists(address.removeprefix("unix://"))  # noqa: ASYNC240 - one look


@pytest.fixture
def base_path(smollm2_path: Path, tmp_path: Path) -> Path:
    """The same model without its chat template."""
    content = smollm2_path.read_bytes()
    assert content.count(b"tokenizer.chat_template") == 1
    base = tmp_path / "base.gguf"
    base.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_nothing!"))
    return base


async def test_a_model_without_chat_template_only_completes(base_path: Path) -> None:
    backend = await load(base_path, slots=1, context_tokens=256)
    assert [c.modality for c in backend.capabilities] == ["completion"]
    assert (await finish(backend, complete())).usage.output_tokens == 4
    await backend.unload()


@pytest.mark.parametrize("size", [0, 3, 24, 5_000, 2_000_000, 50_000_000])
async def test_a_cut_file_is_a_setup_error(smollm2_path: Path, tmp_path: Path, size: int) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        cut.write_bytes(whole.read(size))
    with pytest.raises(SetupError) as caught:
        await load(cut, context_tokens=256)
    assert "cut.gguf" in caught.value.message


async def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"not a model at all" * 100)
    with pytest.raises(WeightsCorrupt, match="not a readable GGUF file"):
        await load(other)


async def test_more_context_than_trained_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(SetupError, match="trained for 8192"):
        await load(smollm2_path, context_tokens=16384)


async def test_a_gpu_that_this_build_cannot_use_is_refused(smollm2_path: Path) -> None:
    wanted = "cuda:99" if gpus() else "cuda:0"
    with pytest.raises(SetupError) as caught:
        await load(smollm2_path, device=wanted)
    assert wanted in caught.value.message


@pytest.mark.gpu
async def test_runs_on_a_gpu(smollm2_path: Path) -> None:
    if not gpus():
        pytest.skip("not run: this build of xllamacpp finds no CUDA device")
    backend = await load(smollm2_path, device="cuda:0", context_tokens=1024)
    assert backend.device == "cuda:0"
    assert (await finish(backend, chat())).text()
    await backend.unload()


async def test_unload_gives_the_memory_back(smollm2_path: Path) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    backend = await load(smollm2_path)
    with pytest.raises(ContextOverflow):  # an error must not keep the engine alive
        await finish(backend, chat("sea " * 9000))
    loaded = process.memory_info().rss
    await backend.unload()
    assert loaded - process.memory_info().rss > (loaded - before) / 2
