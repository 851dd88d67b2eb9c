"""Tenants: each one's admin rules it wholly, sees nothing of the others, and never rises above itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from inferhub.testing.parties import ADMIN, Party, create, make_key, make_party, refused, rows
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body

SPEC = """\
models:
  - {name: echo, backend: echo, slots: 64}
  - {name: llama-small, backend: echo}
  - {name: llama-large, backend: echo}
  - {name: secret-model, backend: echo}
routes:
  - {name: lab/llama, model: llama-small}
prices:
  - {model: echo, per_request: 0.01}
"""
LISTS = ("tenants", "projects", "users", "keys", "limits", "audit", "usage/events")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("tenancy"), SPEC) as running:
        yield running


@pytest.fixture
def admin(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


async def furnished(admin: Talk, name: str) -> tuple[Party, set[str]]:
    """A tenant with something of every kind, and every word by which it could be recognised."""
    party = await make_party(admin, name)
    project = await create(party.admin, "projects", name=f"{name} project")
    key_id, caller = await make_key(party.admin, name=f"{name} key", project_id=project["id"])
    person = {"issuer": "https://id.example", "subject": f"{name} subject", "name": f"{name} person"}
    user = await create(admin, "users", **person, tenant_id=party.id)
    bound = {"level": "key", "subject_id": key_id, "unit": "requests", "window": "day", "limit": 777_000}
    limit = await create(party.admin, "limits", **bound)
    assert (await caller.chat("echo")).status == 200
    await until_counted(party)
    ids = {party.id, party.project_id, party.key_id, project["id"], key_id, user["id"], limit["id"]}
    return party, ids | {name}


async def until_counted(party: Party) -> None:
    deadline_s = time.monotonic() + 20
    while not await rows(party.admin, f"{ADMIN}/usage/events"):
        assert time.monotonic() < deadline_s, "the call never arrived in the usage"
        await asyncio.sleep(0.05)


async def test_a_tenants_admin_sees_all_of_its_own_and_nothing_of_another(admin: Talk) -> None:
    a, of_a = await furnished(admin, "Alpha-7f3")
    b, of_b = await furnished(admin, "Beta-91c")
    for party, own, foreign in ((a, of_a, of_b), (b, of_b, of_a)):
        seen = ""
        for noun in LISTS:
            found = await rows(party.admin, f"{ADMIN}/{noun}")
            assert found, noun
            seen += str(found)
        for path in (
            f"{ADMIN}/usage?by=tenant,project,key,model",
            f"{ADMIN}/invoices/{time.strftime('%Y-%m')}",
        ):
            for form in ("json", "csv"):
                answer = await party.admin.get(f"{path}{'&' if '?' in path else '?'}format={form}")
                assert answer.status == 200, answer.body
                assert b"echo" in answer.body, "the call is not in it"
                seen += answer.body.decode()
        assert own - {own_ for own_ in own if own_ not in seen} == own
        assert {word for word in foreign if word in seen} == set()
    everything = str([await rows(admin, f"{ADMIN}/{noun}") for noun in LISTS])
    assert {word for word in of_a | of_b if word not in everything} == set()


async def test_asking_for_another_tenant_by_parameter_is_404(admin: Talk) -> None:
    a, b = await make_party(admin), await make_party(admin)
    month = time.strftime("%Y-%m")
    for path in (*LISTS[1:], "usage", f"invoices/{month}"):
        answer = await a.admin.get(f"{ADMIN}/{path}?tenant_id={b.id}")
        unknown = await a.admin.get(f"{ADMIN}/{path}?tenant_id=ten_AbCdEf012345")
        if path == "users" or answer.status == 404:
            refused(answer, 404, "not_found", "tenant_id")
            assert answer.body.replace(b.id.encode(), b"ten_AbCdEf012345") == unknown.body, path
        else:
            raise AssertionError((path, answer.status, answer.body))
    for name, theirs in (("project_id", b.project_id), ("key_id", b.key_id)):
        answer = await a.admin.get(f"{ADMIN}/usage?{name}={theirs}")
        assert answer.json["data"] == []


async def test_nothing_moves_into_another_tenant(admin: Talk) -> None:
    a, b = await make_party(admin), await make_party(admin)
    before = {
        noun: await rows(admin, f"{ADMIN}/{noun}?tenant_id={b.id}") for noun in ("projects", "users", "keys")
    }
    tries: list[tuple[str, dict[str, Any], str]] = [
        ("projects", {"name": "mine", "tenant_id": b.id}, "tenant_id"),
        ("keys", {"name": "mine", "tenant_id": b.id}, "tenant_id"),
        ("keys", {"name": "mine", "project_id": b.project_id}, "project_id"),
        ("keys", {"name": "mine", "tenant_id": a.id, "project_id": b.project_id}, "project_id"),
        ("users", {"issuer": "x", "subject": "s", "name": "n", "tenant_id": b.id}, "tenant_id"),
        ("users", {"issuer": "x", "subject": "s", "name": "n", "project_id": b.project_id}, "project_id"),
        ("limits", {**limit_of("tenant", b.id)}, "subject_id"),
        ("limits", {**limit_of("project", b.project_id)}, "subject_id"),
        ("limits", {**limit_of("key", b.key_id)}, "subject_id"),
    ]
    for noun, body, param in tries:
        refused(await a.admin.post(f"{ADMIN}/{noun}", body), 404, "not_found", param)
    for noun, rows_before in before.items():
        assert await rows(admin, f"{ADMIN}/{noun}?tenant_id={b.id}") == rows_before, noun
    assert await rows(admin, f"{ADMIN}/limits?tenant_id={b.id}") == []


def limit_of(level: str, subject: str) -> dict[str, Any]:
    return {"level": level, "subject_id": subject, "unit": "requests", "window": "day", "limit": 1}


async def test_nobody_gives_away_what_he_does_not_have(admin: Talk) -> None:
    a = await make_party(admin)
    # Few scopes do not make the role `admin` harmless: it sees every tenant.
    for body in (
        {"role": "admin"},
        {"role": "admin", "scopes": ["admin:keys"]},
        {"role": "admin", "scopes": ["models:read"]},
    ):
        answer = await a.admin.post(f"{ADMIN}/keys", {"name": "up", **body})
        assert "the role 'admin'" in refused(answer, 403, "permission_denied"), body
    _, clerk = await make_key(
        a.admin, role="tenant_admin", scopes=["admin:keys", "models:read"], models=["llama-*"]
    )
    for body, lacks in (
        ({"role": "tenant_admin"}, "admin:audit"),
        ({"role": "tenant_admin", "scopes": ["admin:keys"]}, "every model"),
        ({"role": "enterprise", "scopes": ["inference:chat"], "models": ["llama-small"]}, "inference:chat"),
        ({"role": "enterprise", "scopes": ["models:read"], "models": ["*"]}, "the model '*'"),
        (
            {"role": "enterprise", "scopes": ["models:read"], "models": ["llama-small", "echo"]},
            "the model 'echo'",
        ),
    ):
        answer = await clerk.post(f"{ADMIN}/keys", {"name": "up", **body})
        assert lacks in refused(answer, 403, "permission_denied"), body
    await make_key(clerk, scopes=["models:read"], models=["llama-small", "llama-l*"])
    # Nor does he take over, or away, who has more.
    for verb, path in (("POST", f"{a.key_id}/rotate"), ("DELETE", a.key_id)):
        refused(await clerk.ask(verb, f"{ADMIN}/keys/{path}"), 403, "permission_denied")
    assert (await a.admin.get(f"{ADMIN}/keys/{a.key_id}")).json["revoked_at"] is None


async def test_what_belongs_to_the_platform_is_not_the_tenants(admin: Talk) -> None:
    a, b = await make_party(admin), await make_party(admin, "A name of somebody else")
    before = (await admin.get(f"{ADMIN}/tenants/{a.id}")).json
    path = f"{ADMIN}/tenants/{a.id}"
    # A name that is taken would be answered otherwise than a free one.
    for body in (
        {"disabled": True},
        {"disabled": False},
        {"name": "A name of somebody else"},
        {"name": "free"},
    ):
        refused(await a.admin.ask("PATCH", path, {}, body), 403, "permission_denied")
    refused(await a.admin.post(f"{ADMIN}/limits", limit_of("tenant", a.id)), 403, "permission_denied")
    limit = await create(admin, "limits", **limit_of("tenant", a.id) | {"limit": 1000})
    refused(await a.admin.ask("DELETE", f"{ADMIN}/limits/{limit['id']}"), 403, "permission_denied")
    refused(await a.admin.post(f"{ADMIN}/tenants", {"name": "mine"}), 403, "permission_denied")
    assert (await admin.get(path)).json == before
    # Whose people an issuer's are is the operator's to say: none can be taken over from another tenant.
    person = {"issuer": "https://id.example", "subject": "of B", "name": "Eve"}
    refused(await a.admin.post(f"{ADMIN}/users", person), 403, "permission_denied", "issuer")
    await create(admin, "users", **person, tenant_id=b.id)


@pytest.mark.parametrize(
    "field",
    ["id", "digest", "created_at", "revoked_at", "rotated_to", "last_used_at", "budget", "frobnicate"],
)
async def test_a_body_sets_nothing_but_what_it_may(admin: Talk, field: str) -> None:
    a = await make_party(admin)
    project = await create(a.admin, "projects", name="p")
    limit = limit_of("project", project["id"])
    person = {"issuer": "https://id.example", "subject": "s", "name": "n"}
    bodies: Mapping[str, dict[str, Any]] = {
        "POST keys": {"name": "k"},
        f"POST keys/{a.key_id}/rotate": {},
        "POST projects": {"name": "q"},
        "POST users": person,
        "POST limits": limit,
        f"PATCH projects/{project['id']}": {"name": "r"},
        f"PATCH tenants/{a.id}": {"webhook_url": ""},
    }
    before = await everything(a)
    for address, body in bodies.items():
        verb, _, path = address.partition(" ")
        answer = await a.admin.ask(verb, f"{ADMIN}/{path}", {}, {**body, field: "x"})
        refused(answer, 400, "invalid_value", field)
    for verb, path, param in (
        ("PATCH", f"projects/{project['id']}", "tenant_id"),
        ("PATCH", f"tenants/{a.id}", "role"),
        ("POST", f"keys/{a.key_id}/rotate", "role"),
        ("POST", f"keys/{a.key_id}/rotate", "scopes"),
        ("POST", "limits", "tenant_id"),
    ):
        body = limit if path == "limits" else {}
        refused(
            await a.admin.ask(verb, f"{ADMIN}/{path}", {}, {**body, param: "x"}), 400, "invalid_value", param
        )
    assert await everything(a) == before


async def everything(party: Party) -> list[Any]:
    """All rows of a tenant. When a key was used last is noted some time after, so only that it is a time is kept."""
    found = [await rows(party.admin, f"{ADMIN}/{noun}") for noun in LISTS]
    for row in found[LISTS.index("keys")]:
        row["last_used_at"] = row["last_used_at"] is None or type(row["last_used_at"]) is int
    return found


# --- models and modalities ----------------------------------------------------------------------------

IN_OTHER_WORDS: Mapping[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/moderations": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["x"]},
}


def told(answer: Answer) -> str:
    """The message of a refusal, in any dialect's envelope."""
    return str(answer.json["error"]["message"])


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(request.param, tmp_path_factory.mktemp(f"lists-{request.param}"), SPEC) as running:
        yield running


async def test_a_key_knows_only_the_models_on_its_list(both: Hub) -> None:
    admin = Talk(both.url, both.admin_key)
    _, caller = await make_key(admin, models=["llama-s*", "echo"])
    listed = (await caller.get("/v1/models")).json["data"]
    assert [model["id"] for model in listed] == ["echo", "llama-small"]
    for model in ("echo", "llama-small"):
        assert (await caller.get(f"/v1/models/{model}")).status == 200
        assert (await caller.chat(model)).status == 200
    for model in ("llama-large", "lab/llama", "secret-model", "secret-mode", "llama-smal"):
        described = await caller.get(f"/v1/models/{model}")
        called = await caller.chat(model)
        streamed = await caller.chat(model, stream=True)
        for answer in (described, called, streamed):
            said = refused(answer, 404, "model_not_found").replace(repr(model), "")
            assert not any(name in said for name in ("llama-large", "lab/llama", "secret-model")), said
    for path, body in IN_OTHER_WORDS.items():
        assert (await caller.post(path, {"model": "echo", **body})).status == 200, path
        for model in ("llama-large", "lab/llama", "secret-model"):
            hidden = await caller.post(path, {"model": model, **body})
            absent = await caller.post(path, {"model": "nope", **body})
            assert hidden.status == absent.status == 404, (path, hidden.body)
            assert told(hidden).replace(repr(model), repr("nope")) == told(absent)
    whole = [model["id"] for model in (await admin.get("/v1/models")).json["data"]]
    assert "secret-model" in whole


async def test_a_key_calls_only_the_modalities_of_its_scopes(both: Hub) -> None:
    admin = Talk(both.url, both.admin_key)
    _, caller = await make_key(admin, scopes=["inference:chat"])
    assert (await caller.chat("echo")).status == 200
    assert "inference:embedding" in refused(
        await caller.post(EMBEDDINGS, {"model": "echo", "input": "x"}), 403, "permission_denied"
    )
    refused(await caller.post(COMPLETIONS, {"model": "echo", "prompt": "x"}), 403, "permission_denied")
    refused(await caller.get("/v1/models"), 403, "permission_denied")
    # The scope is asked for first, so that it does not tell which models there are.
    refused(await caller.post(EMBEDDINGS, {"model": "nope", "input": "x"}), 403, "permission_denied")
    _, reader = await make_key(admin, scopes=["models:read"])
    assert (await reader.get("/v1/models")).status == 200
    refused(await reader.post(CHAT, chat_body("echo", stream=True)), 403, "permission_denied")
