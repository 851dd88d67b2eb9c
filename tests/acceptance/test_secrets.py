"""Canaries in every place where something private can stand: none is found where it does not belong."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.parties import ADMIN, create, make_party
from inferhub.testing.raw_http import Answer, exchange, request_bytes
from inferhub.testing.servers import SHAPES, Hub, StartError, running_hub, start_service, wait_for
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
PROMPT = "canary-prompt-Ux81"
SYSTEM = "canary-system-Kq02"
TOOL = "canary-tool-Wm93"
ARGUMENTS = "canary-arguments-Zt14"
USER = "canary-user-Pd55"
UNKNOWN = "canary-unknown-Ea26"
MODEL = "canary-model-Lf37"
REQUEST_ID = "canary.request.id.Gb48"
IDEMPOTENCY = "canary-idempotency-Hn59"
GARBAGE = "canary-garbage-Rv60"
HEADER = "canary-header-Sx71"
QUERY = "canary-query-Jc82"
TOKEN = "canary-token-Vy93"
UPSTREAM_KEY = "sk-canary-upstream-Bo04"
VENDOR_KEY = "sk-ant-canary-vendor-Xe38"
UPSTREAM_SAID = "canary-upstream-said-Mi15"
PEPPER = "canary-pepper-of-the-installation-Nq26"
WEBHOOK = "canary-webhook-Cw37"
CANARIES = (
    PROMPT, SYSTEM, TOOL, ARGUMENTS, USER, UNKNOWN, MODEL, REQUEST_ID, IDEMPOTENCY, GARBAGE, HEADER, QUERY, TOKEN,
    UPSTREAM_KEY, VENDOR_KEY, UPSTREAM_SAID, PEPPER, WEBHOOK,
)  # fmt: skip

SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: broken, backend: echo, options: {{fail_every: 1}}}}
  - {{name: breaks-late, backend: echo, options: {{fail_every: 1, fail_at: 2}}}}
  - {{name: glacial, backend: echo, options: {{first_token_s: 60}}}}
  - {{name: remote, backend: openai_compatible, options: {{base_url: "{upstream}", api_key: {key}}}}}
  - {{name: remote-dead, backend: openai_compatible, options: {{base_url: "http://127.0.0.1:9", api_key: {key}}}}}
  # An upstream that refuses a key or asks for a rest is left alone for a while, so these have their own.
  - {{name: remote-401, backend: openai_compatible, options: {{base_url: "{upstream}", api_key: {key}}}}}
  - {{name: remote-429, backend: openai_compatible, options: {{base_url: "{upstream}", api_key: {key}}}}}
  - {{name: responds, backend: openai_compatible,
     options: {{base_url: "{upstream}", api_key: {key}, responses: true}}}}
  - {{name: claude, backend: anthropic, options: {{base_url: "{upstream}", api_key: {vendor_key}}}}}
  - {{name: claude-401, backend: anthropic, options: {{base_url: "{upstream}", api_key: {vendor_key}}}}}
  - {{name: claude-429, backend: anthropic, options: {{base_url: "{upstream}", api_key: {vendor_key}}}}}
routes:
  - {{name: falls, targets: [{{model: remote}}, {{model: claude, priority: 1}}, {{model: echo, priority: 2}}]}}
prices:
  - {{model: echo, per_request: 0.01}}
"""


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream_url: str
) -> Iterator[Hub]:
    settings: dict[str, object] = {
        "pepper": PEPPER,
        "log_level": "debug",
        "head_hold_s": 0.1,
        "worker_refresh_s": 0.1,
    }
    settings |= {"breaker_failures": 0}
    spec = SPEC.format(upstream=upstream_url, key=UPSTREAM_KEY, vendor_key=VENDOR_KEY)
    with running_hub(request.param, tmp_path_factory.mktemp(request.param), spec, settings) as running:
        yield running


def private_chat(model: str, **more: Any) -> dict[str, Any]:
    """A chat with something private in every corner."""
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "look", "arguments": json.dumps({"q": ARGUMENTS})},
    }
    tool = {
        "type": "function",
        "function": {"name": "look", "description": TOOL, "parameters": {"type": "object"}},
    }
    body = chat_body(model, PROMPT)
    body["messages"] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ARGUMENTS},
        {"role": "user", "content": PROMPT},
    ]
    return body | {"tools": [tool], "user": USER, "frobnicate": UNKNOWN} | more


def private_message(model: str, **more: Any) -> dict[str, Any]:
    """The same in Anthropic's dialect."""
    said = {"type": "text", "text": PROMPT}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {"q": ARGUMENTS}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": ARGUMENTS}
    tool = {"name": "look", "description": TOOL, "input_schema": {"type": "object"}}
    turns = [
        {"role": "user", "content": [said]},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, said]},
    ]
    body = {"model": model, "max_tokens": 64, "system": SYSTEM, "messages": turns, "tools": [tool]}
    return body | {"metadata": {"user_id": USER}, "frobnicate": UNKNOWN} | more


def private_response(model: str, **more: Any) -> dict[str, Any]:
    """And as a response."""
    items = [
        {"role": "user", "content": PROMPT},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": json.dumps({"q": ARGUMENTS})},
        {"type": "function_call_output", "call_id": "c1", "output": ARGUMENTS},
        {"role": "user", "content": [{"type": "input_text", "text": PROMPT}]},
    ]
    tool = {"type": "function", "name": "look", "description": TOOL, "parameters": {"type": "object"}}
    body = {"model": model, "instructions": SYSTEM, "input": items, "tools": [tool], "user": USER}
    return body | {"metadata": {"note": USER}, "frobnicate": UNKNOWN} | more


HEADERS = {
    "x_request_id": REQUEST_ID,
    # Names of keys in other people's dialects; `x-api-key` is read here, see `present_everything`.
    "api_key": HEADER,
    "x_goog_api_key": HEADER,
    "cookie": f"session={HEADER}",
    "traceparent": HEADER,
}
SCRIPTS = (
    f"mode=400,code={UPSTREAM_SAID},param={UPSTREAM_SAID},leak=1", "mode=500,leak=1", "mode=429,leak=1",
    "mode=garbage", "mode=401,leak=1", "mode=html", "fail_at=2,mode=error,leak=1", "fail_at=2,mode=rst",
)  # fmt: skip


def model_for(model: str, script: str) -> str:
    """The one that may be told to rest without harm to the others."""
    return next((f"{model}-{code}" for code in ("401", "429") if f"mode={code}" in script), model)


async def say_everything(talk: Talk) -> None:
    """Calls that work, that fail early and late, that are kept, and that are given up."""
    for model in ("echo", "remote", "claude", "broken", "breaks-late", "remote-dead", MODEL):
        for stream in (False, True):
            await accepted(talk, CHAT, private_chat(model, stream=stream))
            await accepted(talk, MESSAGES, private_message(model, stream=stream))
            await accepted(talk, RESPONSES, private_response(model, stream=stream))
    for script in SCRIPTS:
        user = f"script:{script};{UPSTREAM_SAID}"
        for stream in (False, True):
            remote, claude = model_for("remote", script), model_for("claude", script)
            await accepted(talk, CHAT, private_chat(remote, stream=stream, user=user))
            by_metadata = private_message(claude, stream=stream, metadata={"user_id": user})
            await accepted(talk, MESSAGES, by_metadata)
    for script in ("n=3", "mode=400,leak=1", "mode=500,leak=1", "fail_at=2,mode=error,leak=1"):
        for stream in (False, True):
            user = f"script:{script};{UPSTREAM_SAID}"
            await accepted(talk, RESPONSES, private_response("responds", stream=stream, user=user))
    for number, cached in enumerate(("on", "on", "off")):
        key = f"{IDEMPOTENCY}-{number}"
        for path, body in (
            (CHAT, private_chat("echo", temperature=0)),
            (MESSAGES, private_message("echo", temperature=0)),
            (RESPONSES, private_response("echo", temperature=0)),
        ):
            for _ in range(2):
                headers = {"idempotency_key": f"{key}{path[-4:]}", "x_inferhub_cache": cached}
                assert (await talk.post(path, body, **headers)).status == 200
    for stream in (False, True):
        async with talk.opened(CHAT, private_chat("glacial", stream=stream)):
            await asyncio.sleep(0.3)
    await say_it_to_the_small_ones(talk)
    # Bodies that are refused on the way in.
    for path in (CHAT, MESSAGES, RESPONSES):
        await talk.post(path, b'{"model": "' + PROMPT.encode())
        await talk.post(path, {"model": "echo", "messages": PROMPT, "input": {PROMPT: PROMPT}})
        await talk.post(path, private_chat("echo", temperature=PROMPT), **HEADERS)
    await talk.post(CHAT, {"model": "echo", "messages": [{"role": PROMPT, "content": PROMPT}]})
    await talk.post(CHAT, private_chat("echo"), content_type=f"text/{HEADER}")
    await talk.post(CHAT, private_chat("echo"), x_inferhub_cache=HEADER)


async def accepted(talk: Talk, path: str, body: Any, **headers: str) -> Answer:
    """The answer of a call that got as far as its model; its head tells nothing that it should not."""
    answer = await talk.post(path, body, **{**HEADERS, **headers})
    assert answer.status not in (401, 403, 405, 415), answer.body
    # Only what the client sent itself, and knows, may come back to it: the names of what was ignored.
    told = found_in(str(answer.head)) - {UNKNOWN}
    assert not told, answer.head
    assert not found_in(answer.body) & {UPSTREAM_KEY, VENDOR_KEY, PEPPER, HEADER}, answer.body
    return answer


async def say_it_to_the_small_ones(talk: Talk) -> None:
    """The modalities without a conversation, the counts, and what is done with a stored response."""
    for path, body in (
        (COMPLETIONS, {"prompt": PROMPT, "user": USER}),
        (EMBEDDINGS, {"input": [PROMPT, SYSTEM], "user": USER}),
        ("/v1/moderations", {"input": [PROMPT, SYSTEM]}),
        ("/v1/rerank", {"query": PROMPT, "documents": [SYSTEM, {"text": ARGUMENTS, "id": USER}]}),
        ("/v1/responses/input_tokens", {"input": PROMPT, "instructions": SYSTEM}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": PROMPT}], "system": SYSTEM}),
    ):
        for model in ("echo", "remote", "remote-dead", MODEL):
            answer = await accepted(talk, path, {"model": model, **body})
            assert model != "echo" or answer.status == 200, (path, answer.body)
    first = (await accepted(talk, RESPONSES, private_response("echo"))).json
    again = await talk.get(f"{RESPONSES}/{first['id']}")
    assert PROMPT.encode() in again.body, "it was not even stored"
    assert PROMPT.encode() in (await talk.get(f"{RESPONSES}/{first['id']}/input_items")).body
    result = {"type": "function_call_output", "call_id": "call_echo", "output": ARGUMENTS}
    more = [result, {"role": "user", "content": PROMPT}]
    body = private_response("echo", previous_response_id=first["id"], input=more)
    assert (await accepted(talk, RESPONSES, body)).status == 200
    await talk.get(f"{RESPONSES}/{QUERY}")
    await talk.ask("DELETE", f"{RESPONSES}/{QUERY}")
    await accepted(talk, RESPONSES, {"model": "echo", "input": PROMPT, "previous_response_id": QUERY})
    for script in (f"mode=500,code={UPSTREAM_SAID},leak=1", "mode=garbage"):
        body = private_chat("falls", user=f"script:{script};{UPSTREAM_SAID}")
        answer = await accepted(talk, CHAT, body)
        assert len((answer.head["x-inferhub-trail"] or "").split(", ")) == 2, (answer.head, answer.body)


async def present_everything(talk: Talk) -> None:
    """Credentials of every wrong kind, and names in every address."""
    coded = base64.urlsafe_b64encode(json.dumps({"iss": TOKEN, "sub": TOKEN}).encode()).rstrip(b"=").decode()
    head = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": TOKEN}).encode()).rstrip(b"=").decode()
    for given in (
        f"Bearer ' OR '1'='1 {GARBAGE}",
        f"Bearer ih_{'a' * 12}_{GARBAGE}{'x' * 40}",
        f"Basic {GARBAGE}",
        GARBAGE,
        f"Bearer {head}.{coded}.{TOKEN}",
        f"Bearer {TOKEN}.{TOKEN}.{TOKEN}",
    ):
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", CHAT),
            ("GET", f"{ADMIN}/keys"),
            ("POST", f"{ADMIN}/keys"),
        ):
            answer = await talk.ask(method, path, {"authorization": given}, {} if method == "POST" else b"")
            assert answer.status == 401, (given, answer.body)
            assert not found_in(answer.body), "a credential is repeated"
    for path in (CHAT, MESSAGES, RESPONSES, f"{MESSAGES}/count_tokens"):
        for given in (f"ih_{'a' * 12}_{GARBAGE}{'x' * 40}", GARBAGE, f"{GARBAGE} {TOKEN}"):
            for beside in ("", f"Bearer {talk.key}"):
                fields = {"x-api-key": given, **({"authorization": beside} if beside else {})}
                answer = await bare(talk, path, fields)
                assert answer.status == 401, (given, answer.body)
                assert not found_in(answer.body + str(answer.head).encode()), "a credential is repeated"
                assert talk.key.encode() not in answer.body
    for path in (f"/v1/models/{MODEL}", f"{ADMIN}/keys/{QUERY}", f"/{QUERY}", f"/v1/models?key={QUERY}",
                 f"{ADMIN}/usage?model={QUERY}", f"{ADMIN}/usage?after={QUERY}", f"{ADMIN}/users?limit={QUERY}"):  # fmt: skip
        await talk.get(path, **HEADERS)
    await talk.post(f"{ADMIN}/keys", {"name": "x", UNKNOWN: UNKNOWN})
    await talk.post(f"{ADMIN}/tenants", {"name": "x", "webhook_url": f"http://127.0.0.1/?token={WEBHOOK}"})


async def bare(talk: Talk, path: str, fields: Mapping[str, str]) -> Answer:
    """A request with these headers alone."""
    raw = json.dumps({"model": "echo"}).encode()
    return await exchange(talk.url, request_bytes("POST", path, fields, raw))


def found_in(content: bytes | str) -> set[str]:
    raw = content.encode() if isinstance(content, str) else content
    return {canary for canary in CANARIES if canary.encode() in raw}


async def others(talk: Talk) -> list[Answer]:
    """What somebody else is told, who said nothing private."""
    answers = [
        await talk.post(CHAT, chat_body("nope")),
        await talk.post(CHAT, chat_body("broken")),
        await talk.post(CHAT, chat_body("remote-dead")),
        await talk.post(CHAT, chat_body("remote", user="script:mode=400,leak=1")),
        await talk.post(CHAT, chat_body("claude", user="script:mode=400,leak=1")),
        await talk.post(CHAT, chat_body("falls", user="script:mode=500,leak=1")),
        await talk.post(MESSAGES, {"model": "claude"}),
        await talk.post(MESSAGES, {"model": "nope", "max_tokens": 5, "messages": []}),
        await talk.post(RESPONSES, {"model": "remote", "input": "script:mode=400,leak=1"}),
        await talk.post(RESPONSES, {"model": "echo", "input": "x", "previous_response_id": "resp_never"}),
        await talk.post(CHAT, {"model": "echo"}),
        await talk.post(CHAT, chat_body("echo", "one"), x_inferhub_cache="on"),
        await talk.post(CHAT, chat_body("echo"), authorization="Bearer x"),
    ]
    for path in ("/v1/models", "/readyz?verbose", "/openapi.json", f"{ADMIN}/workers", f"{ADMIN}/keys",
                 f"{ADMIN}/users", f"{ADMIN}/audit?limit=1000", f"{ADMIN}/usage?by=key,project,model,status",
                 f"{ADMIN}/prices"):  # fmt: skip
        answer = await talk.get(path)
        assert answer.status == 200, (path, answer.body)
        answers.append(answer)
    return answers


async def test_no_canary_is_where_it_does_not_belong(hub: Hub) -> None:
    admin = Talk(hub.url, hub.admin_key)
    party = await make_party(admin)
    hook = {"webhook_url": f"https://hooks.example.com/in?token={WEBHOOK}"}
    assert (await party.admin.ask("PATCH", f"{ADMIN}/tenants/{party.id}", {}, hook)).status == 200
    key = (await create(party.admin, "keys", name="private"))["key"]
    caller = Talk(hub.url, key)
    answer = await caller.post(CHAT, private_chat("echo"))
    assert PROMPT.encode() in answer.body, "the canaries did not even arrive"
    await say_everything(caller)
    await present_everything(admin)
    wait_for(lambda: hub.metric("inferhub_requests_inflight") == 0, 20, "every call to end")
    for number, told in enumerate(await others(admin)):
        assert not found_in(told.body), (number, told.body)
        assert not found_in(str(told.head)), number
    secrets = {key, key.rpartition("_")[2], hub.admin_key, hub.admin_key.rpartition("_")[2]}
    for process in hub.processes:
        # The first admin key is shown once, to whoever started it.
        said = process.stderr + process.stdout.replace(hub.admin_key, "")
        assert len(process.stderr) > 100
        assert not found_in(said), [line for line in said.splitlines() if found_in(line)]
        assert not [secret for secret in secrets if secret in said]
    metrics = hub.ops_metrics()
    assert "inferhub_" in metrics
    assert not found_in(metrics), [line for line in metrics.splitlines() if found_in(line)]
    looked_at = set()
    for path in (path for path in hub.data_dir.rglob("*") if path.is_file()):
        looked_at.add(path.name)
        content = path.read_bytes()
        assert not found_in(content), (path, found_in(content))
        assert not [secret for secret in secrets if secret.encode() in content], path
    assert len(looked_at) >= 4
    assert any(name.startswith("responses.db") for name in looked_at), looked_at


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("catalog_url", "postgresql://inferhub:{secret}@127.0.0.1:9/inferhub"),
        ("usage_url", "postgresql://inferhub:{secret}@127.0.0.1:9/inferhub"),
        ("usage_url", "clickhouse://inferhub:{secret}@127.0.0.1:9/inferhub"),
        ("counters_url", "redis://inferhub:{secret}@127.0.0.1:9/0"),
        ("cache_url", "redis://inferhub:{secret}@127.0.0.1:9/0"),
        ("events_url", "kafka://127.0.0.1:9?sasl_username=inferhub&sasl_password={secret}"),
        ("catalog_url", "mysql://inferhub:{secret}@127.0.0.1:9/inferhub"),
        ("counters_url", "redis://inferhub:{secret}@127.0.0.1:notaport/0"),
        ("cache_url", "redis://inferhub:{secret}@[::1/0"),
    ],
)
def test_a_store_that_is_away_or_misspelt_does_not_get_its_password_told(
    tmp_path: Path, setting: str, url: str
) -> None:
    secret = "canary-password-Dg48"
    spec = tmp_path / "hub.yaml"
    spec.write_text("models:\n  - {name: echo, backend: echo}\n")
    settings: Mapping[str, object] = {
        setting: url.format(secret=secret),
        "spec_file": spec,
        "log_level": "debug",
    }
    with start_service("serve", tmp_path, settings) as process:
        try:
            process.announcement()
        except StartError:
            assert process.wait() not in (0, -11), process.stderr
            assert "Traceback" not in process.stderr, process.stderr
            assert setting.removesuffix("_url") in process.stderr, process.stderr
    said = process.stdout + process.stderr
    assert secret not in said, [line for line in said.splitlines() if secret in line]


async def test_giants_are_refused_before_anybody_is_asked_who_they_are(hub: Hub) -> None:
    talk = Talk(hub.url, "x")
    for headers in (
        {"authorization": "Bearer " + "x" * 100_000},
        {"x-padding": "x" * 100_000},
        {f"x-{number}": "x" for number in range(200)},
    ):
        assert (await talk.ask("GET", "/v1/models", headers)).status == 431
    assert (await talk.ask("GET", "/v1/models/" + "n" * 100_000)).status == 414
    admin = Talk(hub.url, hub.admin_key)
    for body in (chat_body("n" * 100_000), {"model": "echo", "n" * 100_000: 1, "messages": "x"}):
        answer = await admin.post(CHAT, body)
        assert answer.status in (400, 404), answer.body
        assert len(answer.body) < 4000
    for header in ("x-request-id", "idempotency-key", "x-inferhub-cache", "traceparent"):
        answer = await admin.ask("POST", CHAT, {header: "n" * 20_000}, chat_body("echo"))
        assert answer.status in (200, 400), answer.body
        assert len(answer.head["x-request-id"] or "") < 200
