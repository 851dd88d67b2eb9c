"""The clients that people really use, unchanged, with nothing but the base URL and the key set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from anthropic import AsyncAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from inferhub.testing.clients import node_project, python_environment, run_client, run_node
from inferhub.testing.servers import Hub, running_hub

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "clients"
SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: breaks-late, backend: echo, options: {fail_every: 1, fail_at: 2}}
  - {name: smollm2-135m, backend: llamacpp, weights: smollm2-135m, slots: 1}
  - {name: minilm-l6-v2, backend: onnx_embedding, weights: minilm-l6-v2}
"""


class City(BaseModel):
    city: Literal["Paris", "Rome"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Hub]:
    """One with default settings, as a newcomer has it."""
    with running_hub("serve", tmp_path_factory.mktemp("clients"), SPEC, {"cache_dir": cache_dir}) as running:
        yield running


@pytest.fixture(scope="module")
def env(home: Hub) -> dict[str, str]:
    return {"HUB": home.url, "KEY": home.admin_key}


@pytest.fixture(scope="module")
def node(cache_dir: Path) -> Path:
    return node_project(CLIENTS, cache_dir)


# --- JavaScript -----------------------------------------------------------------------------------


def test_openai_for_javascript(node: Path, env: dict[str, str]) -> None:
    said = run_node(CLIENTS / "openai.mjs", node, env)
    assert said == {
        "whole": "héllo 🌍",
        "usage": True,
        "requestId": True,
        "stream": ["one two three", "one two three", "stop", True],
        "tool": {"name": "say", "arguments": '{"text":"hi"}'},
        "toolStream": '{"text":"hi"}',
        "loop": "said: pass it on",
        "parsed": True,
        "vectors": [384, 384],
        "response": ["as a response", "completed"],
        "items": 1,
        "events": ["response.created", "response.completed", "a b c"],
        "models": True,
        "missing": [True, "model_not_found"],
        "stranger": True,
        "broken": True,
    }


def test_anthropic_for_javascript(node: Path, env: dict[str, str]) -> None:
    said = run_node(CLIENTS / "anthropic.mjs", node, env)
    assert said == {
        "whole": ["héllo 🌍", "end_turn", True],
        "stream": ["héllo 🌍", "end_turn", True],
        "tool": ["say", {"text": "héllo 🌍"}],
        "count": True,
        "missing": [True, "error", "not_found_error"],
        "bad": [400, "invalid_request_error"],
        "broken": True,
    }


def test_the_ai_sdk_through_each_of_its_providers(node: Path, env: dict[str, str]) -> None:
    said = run_node(CLIENTS / "ai.mjs", node, env)
    for provider in ("responses", "chat", "compatible", "anthropic"):
        assert said[provider] == {
            "whole": ["one two", "stop"],
            "stream": ["three four", "stop", True],
            "loop": [2, "said: pass on"],
        }, provider
    assert (said["object"], said["vectors"], said["broken"]) == (True, [384, 384], True)


# --- Python: what a client keeps open it would keep beyond its test's loop, so each is closed ------


def langchain_access(home: Hub) -> dict[str, Any]:
    return {"api_key": SecretStr(home.admin_key), "base_url": f"{home.url}/v1", "max_retries": 0}


def test_instructor(cache_dir: Path, env: dict[str, str]) -> None:
    python = python_environment(ROOT / "locks" / "instructor.lock", cache_dir)
    said = run_client([str(python), str(CLIENTS / "use_instructor.py")], env)
    assert said == {"tools": "hello", "schema": True}


@pytest.mark.parametrize("use_responses_api", [False, True])
async def test_langchain(home: Hub, use_responses_api: bool) -> None:
    async with DefaultAsyncHttpxClient() as http:
        chat = ChatOpenAI(
            model="echo",
            use_responses_api=use_responses_api,
            http_async_client=http,
            **langchain_access(home),
        )
        await talk_with(chat)


async def talk_with(chat: ChatOpenAI) -> None:
    assert (await chat.ainvoke("héllo 🌍")).text == "héllo 🌍"
    assert "".join([piece.text async for piece in chat.astream("one two three")]) == "one two three"

    def say(text: str) -> str:
        """Say it."""
        return text

    [call] = (await chat.bind_tools([say]).ainvoke("hi")).tool_calls
    assert (call["name"], call["args"]) == ("say", {"text": "hi"})


async def test_langchain_has_structured_answers_and_embeddings(home: Hub) -> None:
    async with DefaultAsyncHttpxClient() as http:
        access = {**langchain_access(home), "http_async_client": http}
        small = ChatOpenAI(model="smollm2-135m", max_completion_tokens=100, temperature=0, **access)
        city = await small.with_structured_output(City).ainvoke("Name a city.")
        assert isinstance(city, City)
        vectors = OpenAIEmbeddings(model="minilm-l6-v2", check_embedding_ctx_length=False, **access)
        assert [len(v) for v in await vectors.aembed_documents(["a", "b"])] == [384, 384]


@pytest.mark.parametrize("dialect", ["chat", "responses", "anthropic"])
async def test_pydantic_ai(home: Hub, dialect: str) -> None:
    async with (
        AsyncOpenAI(base_url=f"{home.url}/v1", api_key=home.admin_key, max_retries=0) as openai,
        AsyncAnthropic(base_url=home.url, api_key=home.admin_key, max_retries=0) as anthropic,
    ):
        provider = OpenAIProvider(openai_client=openai)
        model = {
            "chat": lambda: OpenAIChatModel("echo", provider=provider),
            "responses": lambda: OpenAIResponsesModel("echo", provider=provider),
            "anthropic": lambda: AnthropicModel(
                "echo", provider=AnthropicProvider(anthropic_client=anthropic)
            ),
        }[dialect]()
        await work_with(model)


async def work_with(model: Model[Any]) -> None:
    agent = Agent(model, retries=0)
    assert (await agent.run("héllo 🌍")).output == "héllo 🌍"
    async with agent.run_stream("one two three") as answer:
        assert await answer.get_output() == "one two three"

    told: list[str] = []
    with_tool = Agent(model, retries=0)

    @with_tool.tool_plain
    def say(text: str) -> str:
        told.append(text)
        return f"said: {text}"

    assert (await with_tool.run("pass it on")).output == "said: pass it on"
    assert told == ["pass it on"]
