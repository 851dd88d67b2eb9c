"""The ONNX embedding backend with its real engine and real weights."""

from __future__ import annotations

import asyncio
import math
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.onnx_embedding import BACKEND, OnnxEmbedding, _batches
from inferhub.core.errors import ContextOverflow, Invalid, SetupError, Unsupported
from inferhub.core.models import Capability, ModelSpec
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

PATIENCE_S = 60.0

# Sizes, not speeds: see `_MAX_BATCH_TOKENS`.
MAX_BATCH, MAX_BATCH_TOKENS = 32, 4096


async def load(path: Path, *, device: str = "auto", **options: Any) -> OnnxEmbedding:
    backend = BACKEND(ModelSpec("m", "onnx_embedding", device=device, options=options), path)
    await backend.load()
    return backend


@pytest_asyncio.fixture
async def minilm(minilm_path: Path) -> AsyncIterator[OnnxEmbedding]:
    backend = await load(minilm_path)
    yield backend
    await backend.unload()


async def vectors(backend: OnnxEmbedding, given: Any) -> list[tuple[float, ...]]:
    deltas = sorted(
        (await finish(backend, make_call("embedding", input=given))).payloads, key=lambda delta: delta.index
    )
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    return [struct.unpack(f"<{len(delta.vector) // 4}f", delta.vector) for delta in deltas]


def similarity(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_declares_what_it_can(minilm: OnnxEmbedding) -> None:
    features = frozenset({"token_inputs", "dimensions"})
    assert minilm.capabilities == (
        Capability("embedding", features, 512, 384),
        Capability("rerank", context_tokens=512),
    )


async def test_reranks_by_meaning(minilm: OnnxEmbedding) -> None:
    """Without a word in common."""
    documents = ["The invoice is overdue.", "A kitten sleeps on the sofa.", "Rust prevents data races."]
    call = make_call("rerank", query="Where is my cat?", documents=documents)
    result = await finish(minilm, call)
    best, *others = sorted(result.payloads, key=lambda delta: -delta.relevance_score)
    assert best.index == 1
    assert best.relevance_score > 0.6 > max(other.relevance_score for other in others)
    asked = await finish(minilm, make_call("embedding", input=["Where is my cat?", *documents]))
    assert result.usage.input_tokens == asked.usage.input_tokens


async def test_names_the_document_that_is_too_long(minilm: OnnxEmbedding) -> None:
    with pytest.raises(ContextOverflow, match=r"documents\[1\]") as refused:
        await finish(minilm, make_call("rerank", query="a", documents=["b", "sea " * 600]))
    assert refused.value.param == "documents"


async def test_meaning_is_near_meaning(minilm: OnnxEmbedding) -> None:
    cat, kitten, login, password = await vectors(
        minilm, ["a cat", "a kitten", "I cannot log in", "my password does not work"]
    )
    assert similarity(cat, kitten) > 0.6
    assert similarity(login, password) > 0.4
    assert max(similarity(cat, login), similarity(kitten, password)) < 0.3


async def test_batch_mates_do_not_matter(minilm: OnnxEmbedding) -> None:
    texts = [f"Ship {n} sails " + "over the wide sea " * (n % 17) for n in range(70)]
    together = await vectors(minilm, texts)
    for position in (0, 1, 16, 33, 69):
        (alone,) = await vectors(minilm, texts[position])
        assert max(abs(a - b) for a, b in zip(alone, together[position], strict=True)) < 1e-2
        assert math.isclose(math.hypot(*alone), 1.0, abs_tol=1e-5)


async def test_contract_050_the_four_shapes_agree(minilm: OnnxEmbedding) -> None:
    ids = list(minilm._tokenizer.encode("the wide sea", add_special_tokens=False).ids)
    (text,) = await vectors(minilm, "the wide sea")
    assert await vectors(minilm, ["the wide sea"]) == [text]
    assert await vectors(minilm, ids) == [text]
    assert await vectors(minilm, [ids, ids]) == [text, text]
    framed = list(minilm._tokenizer.encode("the wide sea").ids)
    assert await vectors(minilm, framed) == [text]


async def test_usage_counts_no_padding(minilm: OnnxEmbedding) -> None:
    short, long = "sea", "the sea " * 40
    alone = [
        (await finish(minilm, make_call("embedding", input=t))).usage.input_tokens for t in (short, long)
    ]
    together = (await finish(minilm, make_call("embedding", input=[short, long]))).usage
    assert together.input_tokens == sum(alone) == 3 + 82
    assert together.output_tokens == 0


async def test_the_longest_text_fits_and_one_more_token_does_not(minilm: OnnxEmbedding) -> None:
    assert len(await vectors(minilm, "sea " * 510)) == 1
    for given, where, length in (
        ("sea " * 511, "'input'", 513),
        (["sea", "sea " * 600], "'input[1]'", 602),
        ([1000] * 511, "'input'", 513),
        ([[1000], [1000], [1000] * 700], "'input[2]'", 702),
    ):
        with pytest.raises(ContextOverflow) as caught:
            await vectors(minilm, given)
        assert caught.value.param == "input"
        assert f"{where} has {length} tokens" in caught.value.message
        assert "512 tokens" in caught.value.message


@pytest.mark.parametrize(
    ("given", "said"), [([-1], "'input' has the token -1"), ([[5], [30522]], "'input[1]'")]
)
async def test_tokens_that_do_not_exist_are_refused(minilm: OnnxEmbedding, given: Any, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        await vectors(minilm, given)
    assert caught.value.param == "input"
    assert said in caught.value.message
    assert "0 to 30521" in caught.value.message


async def test_only_the_native_length_is_made(minilm: OnnxEmbedding) -> None:
    await finish(minilm, make_call("embedding", input="sea", dimensions=384))
    with pytest.raises(Unsupported, match="384") as caught:
        await finish(minilm, make_call("embedding", input="sea", dimensions=256))
    assert caught.value.param == "dimensions"


async def test_odd_texts_have_vectors(minilm: OnnxEmbedding) -> None:
    for vector in await vectors(minilm, [" ", "\u0000", "😀👩\u200d👧", "x" * 5000, "[CLS] [PAD] [MASK]"]):
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5)


async def test_a_cancelled_call_stops_the_batch_that_is_computed(minilm: OnnxEmbedding) -> None:
    finished = 0

    async def pull() -> None:
        nonlocal finished
        async with aclosing(minilm.run(make_call("embedding", input=["sea " * 500] * 200))) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                finished += 1

    task = asyncio.create_task(pull())
    async with asyncio.timeout(PATIENCE_S):
        while not finished:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The one thread is free again: another call gets through.
        await vectors(minilm, "sea")
    assert finished < 100


async def test_a_stopped_run_leaves_the_engine_usable(minilm: OnnxEmbedding) -> None:
    import onnxruntime

    switch = onnxruntime.RunOptions()
    switch.terminate = True
    with pytest.raises(Exception, match="embedding engine failed"):
        await minilm._work(minilm._embed, [[101, 102]], switch)
    assert len(await vectors(minilm, "sea")) == 1


def test_batches_are_bounded_and_complete() -> None:
    lengths = [3, 512, 7, 510, 60, 2] * 40
    batches = list(_batches(lengths))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= MAX_BATCH
        assert len(batch) * max(lengths[index] for index in batch) <= MAX_BATCH_TOKENS
    assert list(_batches([])) == []
    assert list(_batches([5000, 5000])) == [[0], [1]]


# --- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"), [("model.onnx", "onnxruntime cannot load"), ("tokenizer.json", "tokenizer")]
)
async def test_a_damaged_file_is_a_setup_error(
    minilm_path: Path, tmp_path: Path, name: str, said: str
) -> None:
    for file in ("model.onnx", "tokenizer.json"):
        shutil.copy(minilm_path / file, tmp_path / file)
    (tmp_path / name).write_bytes((minilm_path / name).read_bytes()[:100_000])
    with pytest.raises(SetupError, match=said) as caught:
        await load(tmp_path)
    assert "models pull" in caught.value.message


async def test_a_folder_without_its_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"'model\.onnx' and no 'tokenizer\.json'"):
        await load(tmp_path)


async def test_more_context_than_the_model_has_is_refused(minilm_path: Path) -> None:
    with pytest.raises(SetupError, match="texts of 513 tokens"):
        await load(minilm_path, context_tokens=513)


async def test_a_lower_limit_is_kept(minilm_path: Path) -> None:
    backend = await load(minilm_path, context_tokens=16, threads=1)
    assert backend.capabilities[0].context_tokens == 16
    with pytest.raises(ContextOverflow, match="16 tokens"):
        await vectors(backend, "sea " * 15)
    await backend.unload()


async def test_a_gpu_that_is_not_there_is_refused(minilm_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        await load(minilm_path, device="cuda:99")
    assert "cuda:99" in caught.value.message


@pytest.mark.gpu
async def test_runs_on_a_gpu(minilm_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("not run: this build of onnxruntime has no CUDA")
    backend = await load(minilm_path, device="cuda:0")
    assert backend.device == "cuda:0"
    assert len(await vectors(backend, "sea")) == 1
    await backend.unload()
