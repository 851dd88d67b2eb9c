"""The ONNX embedding backend with its real engine and real weights."""

from __future__ import annotations

import asyncio
import math
import shutil
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.base import BatchResult
from inferhub.backends.onnx_embedding import BACKEND, OnnxEmbedding, _batches
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import ContextOverflow, InferHubError, Invalid, SetupError, Unsupported
from inferhub.core.models import Capability, ModelSpec
from inferhub.telemetry.batches import BATCHES
from inferhub.testing.calls import Collector, make_call
from inferhub.testing.contract import finish
from inferhub.worker.host import Host

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


# --- batches of calls ----------------------------------------------------------------------------


async def answered(backend: OnnxEmbedding, calls: Sequence[Call]) -> list[BatchResult]:
    async with asyncio.timeout(PATIENCE_S):
        return list(await backend.run_batch(calls))


def vectors_of(result: BatchResult) -> list[tuple[float, ...]]:
    assert not isinstance(result, InferHubError)
    return [struct.unpack("<384f", chunk.payload.vector) for chunk in result if isinstance(chunk, Delta)]


async def test_calls_in_a_batch_get_what_they_get_alone(minilm: OnnxEmbedding) -> None:
    """Vectors by less than a hair, tokens exactly; also calls of many texts, and of token ids."""
    given: list[Any] = [f"Ship {n} sails " + "over the wide sea " * (n % 13) for n in range(40)]
    given += [["one", "two " * 30, "three"], [[1000, 1001], [2000]], [2000]]
    calls = [make_call("embedding", input=item) for item in given]
    for call, result in zip(calls, await answered(minilm, calls), strict=True):
        alone = await finish(minilm, call)
        assert not isinstance(result, InferHubError)
        assert result[-1] == Finished(alone.usage)
        expected = {payload.index: payload.vector for payload in alone.payloads}
        assert [c.payload.index for c in result if isinstance(c, Delta)] == sorted(expected)
        for index, vector in enumerate(vectors_of(result)):
            assert similarity(vector, struct.unpack("<384f", expected[index])) > 0.9999


async def test_a_batch_runs_the_engine_as_seldom_as_it_can(
    minilm: OnnxEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    embed = minilm._embed

    def counting(rows: Sequence[list[int]], switch: Any) -> Any:
        shapes.append((len(rows), max(map(len, rows))))
        return embed(rows, switch)

    monkeypatch.setattr(minilm, "_embed", counting)
    await answered(minilm, [make_call("embedding", input="the sea") for _ in range(32)])
    assert shapes == [(32, 4)]
    shapes.clear()
    long = "sea " * 250
    await answered(
        minilm, [make_call("embedding", input=text) for text in [long, "a", long, *["b"] * 20] * 9]
    )
    assert all(rows <= MAX_BATCH and rows * longest <= MAX_BATCH_TOKENS for rows, longest in shapes)
    assert sum(rows for rows, _ in shapes) == 23 * 9


async def test_reranking_shares_batches_too(minilm: OnnxEmbedding) -> None:
    calls = [
        make_call(
            "rerank", query=query, documents=["The invoice is overdue.", "A kitten sleeps on the sofa."]
        )
        for query in ("Where is my cat?", "What do I have to pay?")
    ]
    for call, result in zip(calls, await answered(minilm, calls), strict=True):
        alone = await finish(minilm, call)
        assert not isinstance(result, InferHubError)
        assert result[-1] == Finished(alone.usage)
        expected = {payload.index: payload.relevance_score for payload in alone.payloads}
        scores = {c.payload.index: c.payload.relevance_score for c in result if isinstance(c, Delta)}
        assert scores == pytest.approx(expected, abs=1e-4)


async def test_what_is_wrong_with_one_call_is_its_own(minilm: OnnxEmbedding) -> None:
    given: list[Any] = ["the sea", "sea " * 600, [[1000, 99_999_999]], "a cat"]
    calls = [make_call("embedding", input=item) for item in given]
    calls.append(make_call("embedding", input="a cat", dimensions=17))
    sea, overlong, unknown, cat, shortened = await answered(minilm, calls)
    assert isinstance(overlong, ContextOverflow)
    assert isinstance(unknown, Invalid)
    assert isinstance(shortened, Unsupported)
    assert [len(vectors_of(result)) for result in (sea, cat)] == [1, 1]


async def test_a_batch_that_nobody_wants_frees_the_engine(minilm: OnnxEmbedding) -> None:
    """The work is half a minute's; the next batch does not wait for it."""
    long = make_call("embedding", input=["sea " * 500] * 8)
    running = asyncio.create_task(minilm.run_batch([long] * 64))
    while minilm._thread._work_queue.qsize() or not minilm._thread._threads:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    (result,) = await answered(minilm, [make_call("embedding", input="the sea")])
    assert len(vectors_of(result)) == 1


async def test_length_is_that_of_the_longest_text(minilm: OnnxEmbedding) -> None:
    short, long = make_call("embedding", input="sea"), make_call("embedding", input=["sea", "sea " * 90])
    ids = make_call("embedding", input=[[7] * 3, [7] * 55])
    ranked = make_call("rerank", query="sea", documents=["sea " * 90, "sea"])
    assert minilm.length(short) < 10
    assert minilm.length(long) == minilm.length(ranked) > 90
    assert minilm.length(ids) == 55


async def test_in_its_own_process_it_gets_batches_from_its_parent(minilm_path: Path) -> None:
    host = Host(lambda _: minilm_path, isolation="always")
    await host.load(ModelSpec("mini", "onnx_embedding", weights="minilm-l6-v2", slots=0))
    assert host.models()[0].spec.slots == 64
    BATCHES.sizes.clear()
    emits = [Collector() for _ in range(24)]
    calls = [make_call("embedding", "mini", input=f"ship number {n}") for n in range(24)]
    await asyncio.gather(*(host.infer(call, emit) for call, emit in zip(calls, emits, strict=True)))
    assert all(len(emit.chunks) == 2 for emit in emits)
    assert len({emit.chunks[0].payload.vector for emit in emits if isinstance(emit.chunks[0], Delta)}) == 24
    assert BATCHES.sizes["embedding", "mini"].sum > 24 * 4
    # What is a batch by itself goes by itself, and is answered all the same.
    emit = Collector()
    await host.infer(make_call("embedding", "mini", input=["sea " * 100] * 50), emit)
    assert len(emit.chunks) == 51
    assert sum(BATCHES.sizes["embedding", "mini"].counts) == 24
    await host.close()
