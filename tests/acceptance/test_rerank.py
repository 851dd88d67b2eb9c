"""Reranking, moderation and token counts through the whole hub, in the forms that their clients expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from inferhub.modalities.moderation import CATEGORIES
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, Talk

SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: mini, backend: onnx_embedding, weights: minilm-l6-v2}
  - {name: small, backend: llamacpp, weights: smollm2-135m, slots: 1}
routes:
  - {name: omni-moderation-latest, model: echo}
prices:
  - {model: echo, input_per_mtok: 1, output_per_mtok: 1}
"""
DOCUMENTS = [
    "Flour, water and salt make a bread.",
    "Ships sail on the sea.",
    {"text": "A railway in winter.", "id": 7},
]


@pytest.fixture(scope="module", params=["serve", "split"])
def ranking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(request.param, tmp_path_factory.mktemp("ranking"), SPEC) as hub:
        yield hub


@pytest.fixture
def ask(ranking: Hub) -> Talk:
    return Talk(ranking.url, ranking.admin_key)


def query(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "query": "Where do ships sail?", "documents": DOCUMENTS, **more}


@pytest.mark.parametrize("model", ["echo", "mini"])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank/"])
async def test_the_best_document_is_first(ask: Talk, model: str, path: str) -> None:
    answer = await ask.post(path, query(model))
    assert answer.status == 200, answer.body
    scores = [result["relevance_score"] for result in answer.json["results"]]
    assert answer.json["results"][0]["index"] == 1
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in answer.json["results"]) == [0, 1, 2]
    assert all(0 <= score <= 1 for score in scores)
    assert "document" not in answer.json["results"][0]


async def test_the_answer_has_cohere_s_and_jina_s_fields(ask: Talk) -> None:
    answer = await ask.post("/v1/rerank", query("echo", top_n=2, return_documents=True))
    tokens = answer.json["usage"]["total_tokens"]
    assert tokens > 0
    assert answer.json["id"].startswith("rerank-")
    assert answer.json["model"] == "echo"
    assert answer.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer.json["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1, "input_tokens": tokens},
        "tokens": {"input_tokens": tokens},
    }
    assert len(answer.json["results"]) == 2
    assert answer.json["results"][0]["document"] == {"text": DOCUMENTS[1]}
    assert answer.head["x-inferhub-model"] == "echo"


async def test_an_object_comes_back_whole(ask: Talk) -> None:
    answer = await ask.post("/v1/rerank", query("echo", return_documents=True))
    [given] = [result["document"] for result in answer.json["results"] if result["index"] == 2]
    assert given == DOCUMENTS[2]


@pytest.mark.parametrize("param", ["rank_fields", "max_tokens_per_doc", "max_chunks_per_doc"])
async def test_what_a_model_cannot_honour_is_refused(ask: Talk, param: str) -> None:
    value: Any = ["text"] if param == "rank_fields" else 3
    answer = await ask.post("/v1/rerank", query("mini", **{param: value}))
    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert answer.error["param"] == param


async def test_a_model_that_does_not_rank_says_what_it_does(ask: Talk) -> None:
    answer = await ask.post("/v1/rerank", query("small"))
    assert answer.status == 400
    assert CHAT in answer.error["message"]


async def test_a_document_that_is_too_long(ask: Talk) -> None:
    answer = await ask.post("/v1/rerank", query("mini", documents=["sea " * 600]))
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["param"] == "documents"


# --- moderation --------------------------------------------------------------------------------


async def test_openai_s_client_asks_without_a_model(ranking: Hub) -> None:
    async with AsyncOpenAI(base_url=ranking.api, api_key=ranking.admin_key) as client:
        answer = await client.moderations.create(input=["I like the sea.", "Nothing but violence."])
    assert answer.id.startswith("modr-")
    assert answer.model == "omni-moderation-latest"
    assert [result.flagged for result in answer.results] == [False, True]
    assert answer.results[1].categories.violence
    assert answer.results[1].category_scores.violence == 1.0
    assert answer.results[1].category_applied_input_types.violence == ["text"]
    assert not answer.results[1].categories.hate
    assert answer.results[0].category_scores.model_dump(by_alias=True).keys() == set(CATEGORIES)


async def test_the_parts_of_one_list_are_judged_together(ask: Talk) -> None:
    parts = [{"type": "text", "text": "Nothing"}, {"type": "text", "text": " of hate."}]
    answer = await ask.post("/v1/moderations", {"model": "echo", "input": parts})
    assert [result["flagged"] for result in answer.json["results"]] == [True]


async def test_pictures_need_a_model_that_sees(ask: Talk) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://b.example/a.png"}}
    answer = await ask.post("/v1/moderations", {"model": "echo", "input": [part]})
    assert (answer.status, answer.error["param"]) == (400, "input[0]")


# --- token counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["echo", "small"])
async def test_a_count_is_the_prompt_that_chat_would_have(ask: Talk, model: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How deep is it? 🌊"}]
    counted = await ask.post(f"{CHAT}/input_tokens", {"model": model, "messages": messages})
    said = await ask.post(CHAT, {"model": model, "messages": messages, "max_tokens": 1})
    assert counted.status == 200, counted.body
    assert counted.json == {"input_tokens": said.json["usage"]["prompt_tokens"]}


async def test_a_count_needs_no_limit_and_may_say_stream(ask: Talk) -> None:
    """Whoever counts sends the request that it would send to chat."""
    sent = {"model": "echo", "messages": [{"role": "user", "content": "hi there"}], "stream": True}
    answer = await ask.post(f"{CHAT}/input_tokens", sent)
    assert (answer.status, answer.json) == (200, {"input_tokens": 2})
    # Nobody is billed for it: it has no price, where the model has one.
    assert answer.head["x-inferhub-cost-usd"] is None
