"""The official client through InferHub to a mock that knows OpenAI's document and nothing of InferHub.

The mock refuses a request that the document does not allow, and says what is wrong with it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError

from inferhub.testing.clients import node_project
from inferhub.testing.openai_document import as_openapi
from inferhub.testing.servers import START_TIMEOUT_S, Hub, Process, environment, fetch, running_hub, wait_for

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[1] / "clients" / "mock"
SPEC = """\
models:
  - {{name: mocked, backend: openai_compatible, options: {{base_url: "{url}", api_key: k, vendor: openai}}}}
"""
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "additionalProperties": False,
    "required": ["a"],
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@dataclass(frozen=True, slots=True)
class Mock:
    """The running mock and everything it says about requests."""

    url: str
    process: Process

    def requests(self) -> list[dict[str, Any]]:
        """What it said of every request so far."""
        lines = [json.loads(line) for line in self.process.stdout.splitlines() if line.startswith("{")]
        return [line for line in lines if line["type"] == "request"]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Mock]:
    folder = tmp_path_factory.mktemp("mock")
    document = folder / "openapi.json"
    document.write_text(json.dumps(as_openapi()), encoding="utf-8")
    (program,) = (node_project(SOURCE, cache_dir) / "node_modules" / "@stdy").glob("cli-*/bin/steady*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-format", "json", "--no-color"]
    with Process([str(program), *options, str(document)], folder, "mock", environment({})) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.exit_code is None, process.stdout + process.stderr
            try:
                return bool(fetch(f"{url}/nothing")[0])
            except OSError:
                return False

        wait_for(answers, START_TIMEOUT_S, "the mock")
        yield Mock(url, process)


@pytest.fixture(scope="module")
def mocked_hub(tmp_path_factory: pytest.TempPathFactory, mock: Mock) -> Iterator[Hub]:
    settings = {"max_attempts": 1, "breaker_failures": 0}
    spec = SPEC.format(url=mock.url)
    with running_hub("serve", tmp_path_factory.mktemp("mocked"), spec, settings) as hub:
        yield hub


@pytest.fixture
async def mocked(mocked_hub: Hub) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=mocked_hub.api, api_key=mocked_hub.admin_key, max_retries=0) as client:
        yield client


def says(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "mocked", "messages": [{"role": "user", "content": content}], **more}


CHATS: list[dict[str, Any]] = [
    says("hi"),
    says("hi", temperature=0.5, top_p=0.9, stop=["a", "b"], seed=7, max_completion_tokens=9, user="u"),
    says(
        "hi",
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"50256": -100},
        logprobs=True,
        top_logprobs=2,
    ),
    says(
        "hi",
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
    ),
    says(
        "hi",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "strict": True, "schema": SCHEMA},
        },
    ),
    says(
        "hi", reasoning_effort="low", service_tier="auto", store=False, metadata={"a": "b"}, verbosity="low"
    ),
    says(
        [
            {"type": "text", "text": "what?"},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        ]
    ),
    {
        "model": "mocked",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "add"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        "tools": [TOOL],
    },
]


def only_request(mock: Mock, before: int) -> dict[str, Any]:
    """What the mock said of the one request since `before`."""
    requests = wait_for(lambda: found if len(found := mock.requests()) > before else None, 30, "its log")
    assert len(requests) == before + 1
    return requests[before]


def check(mock: Mock, before: int, path: str) -> None:
    seen = only_request(mock, before)
    assert seen["request"]["path"] == path
    assert seen.get("diagnostics", []) == []
    assert seen["response"]["status"] == 200


@pytest.mark.parametrize("body", CHATS, ids=lambda body: ",".join(sorted(body))[:60])
async def test_chat(mock: Mock, mocked: AsyncOpenAI, body: dict[str, Any]) -> None:
    before = len(mock.requests())
    answer = await mocked.chat.completions.create(**body, extra_headers={"x-inferhub-cache": "off"})
    assert answer.choices
    check(mock, before, "/v1/chat/completions")


async def test_completions(mock: Mock, mocked: AsyncOpenAI) -> None:
    before = len(mock.requests())
    await mocked.completions.create(model="mocked", prompt="one", max_tokens=3, echo=True, stop="x")
    check(mock, before, "/v1/completions")


async def test_embeddings(mock: Mock, mocked: AsyncOpenAI) -> None:
    before = len(mock.requests())
    with pytest.raises(APIStatusError, match="upstream"):
        # What the mock makes up has another number of vectors than was asked for.
        await mocked.embeddings.create(model="mocked", input=["one", "two"], dimensions=4)
    check(mock, before, "/v1/embeddings")


async def test_moderations(mock: Mock, mocked: AsyncOpenAI) -> None:
    before = len(mock.requests())
    await mocked.moderations.create(model="mocked", input="one")
    check(mock, before, "/v1/moderations")


async def test_responses(mock: Mock, mocked: AsyncOpenAI) -> None:
    before = len(mock.requests())
    # The answer that the mock makes up is one that failed, for no reason.
    with suppress(APIStatusError):
        await mocked.responses.create(model="mocked", input="one", max_output_tokens=20, store=False)
    seen = only_request(mock, before)
    assert seen["request"]["path"] in {"/v1/responses", "/v1/chat/completions"}
    assert seen.get("diagnostics", []) == []


async def test_the_mock_does_refuse(mock: Mock) -> None:
    """Otherwise its silence would say nothing."""
    before = len(mock.requests())
    async with AsyncOpenAI(base_url=f"{mock.url}/v1", api_key="k", max_retries=0) as direct:
        with pytest.raises(BadRequestError):
            await direct.embeddings.create(model="m", input="x", extra_body={"nonsense": 1})
    assert only_request(mock, before)["diagnostics"]
