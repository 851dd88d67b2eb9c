"""Contract item 50, embeddings, and item 42, the list of models."""

from __future__ import annotations

import base64
import math
import struct
import time
from typing import Any
from urllib.parse import quote

import pytest
from openai import AsyncOpenAI

from inferhub.testing.servers import Hub
from inferhub.testing.talk import EMBEDDINGS, Talk


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def embed(talk: Talk, given: Any, model: str = "minilm-l6-v2", **more: Any) -> dict[str, Any]:
    answer = await talk.post(EMBEDDINGS, {"model": model, "input": given, **more})
    assert answer.status == 200, answer.body
    parsed: dict[str, Any] = answer.json
    return parsed


async def test_contract_050_the_official_client_s_default_is_base64(client: AsyncOpenAI) -> None:
    """The client asks for base64 by itself and decodes little-endian float32."""
    answer = await client.embeddings.create(model="minilm-l6-v2", input=["a cat", "a kitten", "a tax form"])
    cat, kitten, form = (item.embedding for item in answer.data)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert len(cat) == 384
    assert dot(cat, cat) == pytest.approx(1, abs=1e-3)
    assert dot(cat, kitten) > 0.5 > dot(cat, form)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 6


@pytest.mark.parametrize("model", ["minilm-l6-v2", "echo", "remote"])
async def test_contract_050_both_encodings_are_the_same_vector(talk: Talk, model: str) -> None:
    as_floats = (await embed(talk, "hello", model, encoding_format="float"))["data"][0]["embedding"]
    packed = (await embed(talk, "hello", model, encoding_format="base64"))["data"][0]["embedding"]
    raw = base64.b64decode(packed, validate=True)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(as_floats, abs=1e-6)
    by_default = (await embed(talk, "hello", model))["data"][0]["embedding"]
    assert by_default == pytest.approx(as_floats)


async def test_contract_050_one_and_many(talk: Talk) -> None:
    one = await embed(talk, "hello")
    assert [item["index"] for item in one["data"]] == [0]
    texts = ["hello", "a longer text about something else", "x", "hello"]
    many = await embed(talk, texts)
    assert [item["index"] for item in many["data"]] == [0, 1, 2, 3]
    # Padding beside longer texts may move the last bits, never the meaning.
    for position in (0, 3):
        assert dot(many["data"][position]["embedding"], one["data"][0]["embedding"]) > 0.99
    assert many["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


async def test_contract_050_order_by_index_whatever_the_upstream_does(talk: Talk) -> None:
    """The scripted upstream answers in reverse order; component 0 of input i is i + 1."""
    answer = await embed(talk, ["a", "b", "c", "d"], "remote", encoding_format="float")
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    assert [item["embedding"][0] for item in answer["data"]] == [1, 2, 3, 4]
    assert all(math.isclose(item["embedding"][1], item["embedding"][0] / 2) for item in answer["data"])


async def test_contract_050_token_ids(talk: Talk) -> None:
    ids = [101, 7592, 102]
    one = await embed(talk, ids, "remote")
    assert len(one["data"]) == 1
    assert len((await embed(talk, [ids, ids], "remote"))["data"]) == 2
    mini = await talk.post(EMBEDDINGS, {"model": "minilm-l6-v2", "input": ids})
    assert mini.status in (200, 400)
    if mini.status == 400:
        assert (mini.error["code"], mini.error["param"]) == ("unsupported_parameter", "input")
    else:
        assert len(mini.json["data"][0]["embedding"]) == 384


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["a", ""], "input"),
        ([[]], "input"),
        ([1, "a"], "input"),
        (["a"] * 2049, "input"),
        (5, "input"),
        ({"a": 1}, "input"),
        (None, "input"),
    ],
)
async def test_contract_050_bad_inputs(talk: Talk, given: Any, param: str) -> None:
    answer = await talk.post(EMBEDDINGS, {"model": "minilm-l6-v2", "input": given})
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_contract_050_dimensions(talk: Talk) -> None:
    assert len((await embed(talk, "a", "echo", dimensions=8))["data"][0]["embedding"]) == 8
    wrong = await talk.post(EMBEDDINGS, {"model": "echo", "input": "a", "dimensions": 9})
    assert (wrong.status, wrong.error["param"]) == (400, "dimensions")
    zero = await talk.post(EMBEDDINGS, {"model": "echo", "input": "a", "dimensions": 0})
    assert (zero.status, zero.error["param"]) == (400, "dimensions")
    format_ = await talk.post(EMBEDDINGS, {"model": "echo", "input": "a", "encoding_format": "hex"})
    assert (format_.status, format_.error["param"]) == (400, "encoding_format")


async def test_contract_050_too_long_a_text_names_both_lengths(talk: Talk) -> None:
    answer = await talk.post(EMBEDDINGS, {"model": "echo", "input": "word " * 5000})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "5001" in answer.error["message"] or "5000" in answer.error["message"]
    assert "4096" in answer.error["message"]


async def test_contract_042_list_of_models(talk: Talk, client: AsyncOpenAI) -> None:
    listing = (await talk.get("/v1/models")).json
    assert listing["object"] == "list"
    ids = [card["id"] for card in listing["data"]]
    assert {"echo", "chat", "lab/alias", "lab/echo:v1@2", "smollm2-135m", "minilm-l6-v2", "remote"} <= set(
        ids
    )
    assert len(set(ids)) == len(ids)
    for card in listing["data"]:
        assert card["object"] == "model"
        assert type(card["created"]) is int
        assert card["created"] <= time.time()
        assert isinstance(card["owned_by"], str)
    assert [model.id async for model in client.models.list()] == ids


async def test_contract_042_one_model_however_its_name_is_written(talk: Talk, client: AsyncOpenAI) -> None:
    name = "lab/echo:v1@2"
    for written in (name, quote(name, safe=""), quote(name), "lab%2Fecho:v1%402"):
        answer = await talk.get(f"/v1/models/{written}")
        assert answer.status == 200, written
        assert answer.json["id"] == name
    assert (await client.models.retrieve(name)).id == name
    assert (await client.models.retrieve("lab/alias")).id == "lab/alias"


async def test_contract_042_unknown_model(talk: Talk) -> None:
    for written in ("nope", "lab/echo:v1@3", "..%2F..%2Fetc%2Fpasswd", "%00", "a" * 300):
        answer = await talk.get(f"/v1/models/{written}")
        assert answer.status == 404, written
        assert answer.error["code"] == "model_not_found", written
    assert "'lab/echo:v1@2'" in (await talk.get("/v1/models/lab/echo:v1@3")).error["message"]


async def test_contract_042_no_secret_and_no_address_in_the_list(
    talk: Talk, hub: Hub, upstream_url: str
) -> None:
    for path in ("/v1/models", "/v1/models/remote", "/admin/v1/workers", "/readyz?verbose"):
        body = (await talk.get(path)).body.decode()
        assert "sk-upstream-canary" not in body, path
        assert upstream_url not in body, path
