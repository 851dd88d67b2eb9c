"""Embedding requests that come together are computed together, and nobody notices but the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import EMBEDDINGS, Talk

SPEC = """
models:
  - {name: together, backend: onnx_embedding, weights: minilm-l6-v2}
"""
TEXTS = [f"{thing} number {n}" for n, thing in enumerate(["ship", "letter", "mountain", "bread"] * 8)]


@pytest.fixture(scope="module", params=["serve", "split"])
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Hub]:
    with running_hub(
        request.param, tmp_path_factory.mktemp("batching"), SPEC, {"cache_dir": cache_dir}
    ) as hub:
        yield hub


async def ask(hub: Hub, texts: Sequence[str]) -> list[Answer]:
    """All at once, each in a request of its own."""
    talk = Talk(hub.url, hub.admin_key)
    return await asyncio.gather(
        *(
            talk.post(
                EMBEDDINGS,
                {"model": "together", "input": text, "encoding_format": "float"},
                x_inferhub_cache="off",
            )
            for text in texts
        )
    )


def vector(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    (item,) = answer.json["data"]
    found: list[float] = item["embedding"]
    return found


def sizes(hub: Hub) -> tuple[float, float]:
    """(calls, sum of the sizes of their batches) so far."""
    labels = {"modality": "embedding", "model": "together"}
    return hub.metric("inferhub_batch_size_count", **labels), hub.metric("inferhub_batch_size_sum", **labels)


async def test_requests_that_come_together_share_batches_and_each_gets_its_own_answer(hub: Hub) -> None:
    alone = [(await ask(hub, [text]))[0] for text in TEXTS]
    calls, size = sizes(hub)
    together = await ask(hub, TEXTS)
    for one, other in zip(together, alone, strict=True):
        assert sum(a * b for a, b in zip(vector(one), vector(other), strict=True)) > 0.9999
        assert one.json["usage"] == other.json["usage"]
    if hub.shape == "serve":  # a worker shows its own metrics
        assert calls == size == len(TEXTS)
        more, larger = sizes(hub)
        assert more - calls == len(TEXTS)
        assert (larger - size) / len(TEXTS) > 4


async def test_one_text_that_is_too_long_fails_alone(hub: Hub) -> None:
    bad = 13
    texts = [f"{text} again" for text in TEXTS]
    texts[bad] = "sea " * 600
    answers = await ask(hub, texts)
    assert answers[bad].status == 400
    assert answers[bad].error["code"] == "context_length_exceeded"
    assert all(len(vector(answer)) == 384 for n, answer in enumerate(answers) if n != bad)
