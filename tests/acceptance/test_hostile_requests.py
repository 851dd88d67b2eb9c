"""What clients try in order to get more than they may, and what one of them must not do to all the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, Talk, chat_body
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: plain, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: claude, backend: anthropic, options: {{base_url: "{upstream}", api_key: sk-canary}}}}
  - {{name: gemini-x, backend: gemini, options: {{base_url: "{upstream}", api_key: sk-canary}}}}
  - name: roomy
    backend: openai_compatible
    options: {{base_url: "{upstream}", headers: {{x-script: "n=3"}}}}
routes:
  - {{name: long, targets: [plain], fallbacks: [{{model: roomy, on: [context_length]}}]}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    """With breakers as they are by default."""
    folder: Path = tmp_path_factory.mktemp("hostile")
    with running_hub("serve", folder, SPEC.format(upstream=upstream_url), {"worker_refresh_s": 0.1}) as found:
        yield found


@pytest.fixture
def ask(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


async def sent(ask: Talk, upstream: Upstream, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The address and the body that reached the upstream."""
    async with ask.opened(CHAT, body) as call:
        head = await call.head()
        assert head.status == 200, await call.connection.body(head)
    record = await upstream.wait_for(call.request_id)
    return record.path, json.loads(record.body)


@pytest.mark.parametrize("model", ["plain", "claude"])
async def test_an_upstream_is_asked_for_the_models_own_name(
    ask: Talk, upstream: Upstream, model: str
) -> None:
    """Never for what InferHub calls this version of it."""
    _, body = await sent(ask, upstream, chat_body(model))
    assert body["model"] == model


async def test_so_it_is_where_the_name_is_in_the_address(ask: Talk, upstream: Upstream) -> None:
    path, _ = await sent(ask, upstream, chat_body("gemini-x"))
    assert "models/gemini-x:" in path


async def test_the_limit_that_was_counted_on_is_the_only_one(ask: Talk, upstream: Upstream) -> None:
    """A server may obey either; a caller's budget has room for the newer one."""
    body = chat_body("plain", max_completion_tokens=5, max_tokens=9_000_000)
    _, forwarded = await sent(ask, upstream, body)
    assert (forwarded["max_completion_tokens"], forwarded["max_tokens"]) == (5, 5)


LONG = "script:mode=error,code=context_length_exceeded;"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_inside_a_200_leads_to_a_fallback(ask: Talk, stream: bool) -> None:
    """As vLLM has it, whose head has left before it looks at the prompt."""
    async with ask.opened(CHAT, chat_body("long", user=f"{LONG}{stream}", stream=stream)) as call:
        head = await call.head()
    assert (head.status, head["x-inferhub-model"]) == (200, "roomy")


async def test_the_refusals_of_one_client_shut_nobody_out(ask: Talk) -> None:
    for number in range(8):
        async with ask.opened(CHAT, chat_body("plain", user=f"{LONG}{number}", stream=True)) as call:
            assert (await call.head()).status == 400
    assert (await ask.chat("plain", "an innocent question")).status == 200


BEHIND = """\
models:
  - {name: slow, backend: echo, options: {first_token_s: 30}}
  - {name: quick, backend: echo}
"""
FRONT = """\
models:
  - {{name: slow, options: {{vendor: inferhub, base_url: "{url}", api_key: "{key}"}}}}
  - {{name: quick, options: {{vendor: inferhub, base_url: "{url}", api_key: "{key}"}}}}
routes:
  - name: hedged
    targets: [{{model: slow, priority: 0}}, {{model: quick, priority: 1}}]
    hedge_after_s: 0.1
"""


async def test_another_model_is_another_request_to_an_upstream_that_remembers_keys(
    tmp_path: Path,
) -> None:
    behind, front = tmp_path / "behind", tmp_path / "front"
    behind.mkdir()
    front.mkdir()
    with running_hub("serve", behind, BEHIND) as house:
        spec = FRONT.format(url=house.url, key=house.admin_key)
        with running_hub("serve", front, spec) as hub:
            async with Talk(hub.url, hub.admin_key).opened(CHAT, chat_body("hedged", "one two")) as call:
                head = await call.head()
    assert (head.status, head["x-inferhub-model"]) == (200, "quick")
    assert (head["x-inferhub-trail"] or "").startswith("slow;cancelled;")
