"""The access table and the application say the same, and nothing is answered past it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from inferhub.core.tenancy import ROLE_SCOPES, SCOPES, Role
from inferhub.gateway.access import ACCESS, GuardedRoute, Rule
from inferhub.gateway.app import GatewayParts, cold_app, socket_endpoints
from inferhub.gateway.dialects import dialects
from inferhub.modalities import modalities
from inferhub.modalities.base import JSON
from inferhub.testing.gateway import gateway_parts
from inferhub.testing.parties import Party, create, make_key, make_party
from inferhub.testing.raw_http import Answer, connect
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import Talk
from inferhub.wire.multipart import FormFile, encode_form

SPEC = "models:\n  - {name: echo, backend: echo}\n  - {name: spare, backend: echo}\n"
# Not FastAPI's, so that it can check nothing: each of them tells only what is in the documentation.
PLAIN = {"GET /openapi.json"}
# Whoever has an address with a good signature may open it; without one there is nothing.
SIGNED = "GET /v1/blobs/{tenant}/{file}"
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def bodies() -> Mapping[str, tuple[Any, str]]:
    """Address → a request that is right, and its content type."""
    found: dict[str, tuple[Any, str]] = {"POST /infer": ({"model": "echo", "input": "hi"}, JSON)}
    for dialect in dialects().values():
        body: Any = {"model": "echo", **dialect.example}
        kind = JSON
        if any(field.required for field in dialect.files.values()):
            fields = [(name, str(value)) for name, value in body.items()]
            files = [FormFile(name, b"x", "image/png") for name, f in dialect.files.items() if f.required]
            kind, body = encode_form(fields, files)
        found[f"POST {dialect.path}"] = body, kind
    return found


BODIES = bodies()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[GatewayParts]:
    async with gateway_parts(tmp_path) as made:
        yield made


@pytest.fixture
def app(parts: GatewayParts) -> FastAPI:
    return cold_app(parts)


def every_route(routes: list[Any]) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else every_route(inner.routes)


def addresses(route: Any) -> set[str]:
    return {f"{method} {route.path}" for method in route.methods if method != "HEAD"}


async def test_every_route_has_a_row_and_every_row_a_route(parts: GatewayParts, app: FastAPI) -> None:
    served = {"POST /infer", *(f"POST {dialect.path}" for dialect in dialects().values())}
    served |= {f"WS {path}" for path in socket_endpoints(parts, lambda *_: None)}
    for route in every_route(app.routes):
        if isinstance(route, Mount):
            assert route.path == "/docs/assets"
            continue
        served |= addresses(route)
        if not isinstance(route, GuardedRoute):
            assert isinstance(route, Route), route
            assert not isinstance(route, APIRoute), route
            assert addresses(route) <= PLAIN, route
    assert served == set(ACCESS)


def test_every_scope_of_the_table_is_known_and_some_role_has_it() -> None:
    known = set(SCOPES) | {f"inference:{name}" for name in modalities()}
    for address, rule in ACCESS.items():
        assert rule.scope is None or rule.scope in known, address
        assert rule.platform <= address.startswith(("GET /admin", "PUT /admin", "POST /admin")), address
        assert (rule.scope is None) <= address.startswith("GET "), f"{address} changes something for anybody"
    assert {s for scopes in ROLE_SCOPES.values() for s in scopes} <= set(SCOPES)


async def test_a_route_without_a_row_and_one_without_a_guard_answer_nobody(app: FastAPI) -> None:
    from httpx import ASGITransport, AsyncClient

    async def told() -> str:
        return "told"

    app.router.add_api_route("/new", told, methods=["GET"])
    app.include_router(_unguarded(told))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for path in ("/new", "/livez/unguarded"):
            answer = await client.get(path)
            assert answer.status_code == 500, path
            assert "told" not in answer.text, path


def _unguarded(endpoint: Any) -> Any:
    from fastapi import APIRouter

    router = APIRouter()
    router.add_api_route("/livez/unguarded", endpoint, methods=["GET"])
    return router


# --- the matrix, asked of a running hub ---------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("access"), SPEC) as running:
        yield running


@dataclass(frozen=True, slots=True)
class World:
    """Two tenants, and in each one object of every kind."""

    a: Party
    b: Party
    objects: Mapping[str, Mapping[str, str]]
    """Tenant id → name of a path parameter → id."""


async def world(hub: Hub) -> World:
    admin = Talk(hub.url, hub.admin_key)
    a, b = await make_party(admin), await make_party(admin)
    objects = {}
    for party in (a, b):
        person = {"issuer": "https://id.example", "subject": party.id, "name": "Ada", "tenant_id": party.id}
        user = await create(admin, "users", **person)
        key_id, _ = await make_key(party.admin)
        bound = {"level": "project", "subject_id": party.project_id, "unit": "requests", "window": "day"}
        limit = await create(party.admin, "limits", **bound, limit=1_000_000)
        kept = await party.admin.post("/v1/responses", {"model": "echo", "input": "hi"})
        objects[party.id] = {
            "response_id": kept.json["id"],
            "request_id": str(kept.head["x-request-id"]),
            "tenant_id": party.id,
            "project_id": party.project_id,
            "user_id": user["id"],
            "key_id": key_id,
            "limit_id": limit["id"],
            "month": "2030-01",
            "model:path": "spare",
        }
    return World(a, b, objects)


def filled(address: str, ids: Mapping[str, str]) -> tuple[str, str]:
    method, _, path = address.partition(" ")
    for name, value in ids.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, path
    return method, path


GUARDED = {address: rule for address, rule in ACCESS.items() if rule.scope is not None}


async def test_without_a_key_every_guarded_address_is_401_whatever_is_sent(hub: Hub) -> None:
    ids = dict.fromkeys(
        [
            *("tenant_id", "project_id", "user_id", "key_id", "limit_id"),
            *("month", "model:path", "response_id", "request_id"),
        ],
        "x",
    )
    nobody = Talk(hub.url, "")
    for address in GUARDED:
        method, path = filled(address, ids)
        for body in (b"", b"{", b'{"frobnicate": 1}'):
            if method in ("GET", "WS") and body:
                continue
            for given in ("", "Bearer", "Bearer ih_nobody", "Basic aWhfOng=", f"bearer {'x' * 20_000}"):
                answer = await send(nobody, method, path, {"authorization": given}, body)
                if method == "WS" and len(given) > 20_000:
                    # Its parser is more easily full than the one of HTTP.
                    assert (answer.status, answer.error["code"]) == (431, "invalid_http"), address
                    continue
                assert answer.status == 401, (address, given[:20], answer.body)
                assert answer.head["www-authenticate"] == "Bearer"
    for address in set(ACCESS) - set(GUARDED) - {SIGNED}:
        method, path = filled(address, ids)
        assert (await nobody.ask(method, path)).status == 200, address
    assert (await nobody.get("/v1/blobs/x/x")).status == 404


async def test_every_role_reaches_what_its_scopes_say_and_nothing_else(hub: Hub) -> None:
    there = await world(hub)
    admin = Talk(hub.url, hub.admin_key)
    for role in Role:
        _, talk = await make_key(admin, tenant_id=there.a.id, role=role.value)
        for address, rule in GUARDED.items():
            if address.startswith("DELETE") or address.endswith("/rotate"):
                continue
            answer = await ask(talk, address, there.objects[there.a.id])
            if allowed(role, rule):
                assert answer.status not in (401, 403), (role, address, answer.body)
            else:
                assert (answer.status, answer.error["code"]) == (403, "permission_denied"), (role, address)


def allowed(role: Role, rule: Rule) -> bool:
    has = ROLE_SCOPES[role]
    assert rule.scope is not None
    is_included = rule.scope in has or f"{rule.scope.partition(':')[0]}:*" in has
    return is_included and (role is Role.ADMIN or not rule.platform)


async def test_one_scope_opens_its_own_addresses_only(hub: Hub) -> None:
    there = await world(hub)
    scopes = sorted({rule.scope for rule in GUARDED.values() if rule.scope and not rule.platform})
    for scope in scopes:
        _, talk = await make_key(there.a.admin, role="tenant_admin", scopes=[scope])
        for address, rule in GUARDED.items():
            if address.startswith("DELETE") or address.endswith("/rotate"):
                continue
            answer = await ask(talk, address, there.objects[there.a.id])
            is_open = rule.scope == scope and not rule.platform
            # Behind an open address, somebody with more rights may still be out of reach.
            is_shut = answer.status == 403 and any(
                word in answer.body for word in (b"address needs", b"no scope")
            )
            assert is_shut != is_open, (scope, address, answer.status, answer.body)


async def test_another_tenants_object_is_not_found_in_every_verb_as_one_that_does_not_exist(hub: Hub) -> None:
    there = await world(hub)
    theirs, prefixes = there.objects[there.b.id], {"key_id": "ih_", "limit_id": "quo_"}
    made_up = {name: f"{prefixes.get(name, value[:4])}AbCdEf012345" for name, value in theirs.items()}
    tried = 0
    for address, rule in GUARDED.items():
        name = address.partition("{")[2].partition("}")[0]
        if rule.platform or name in ("", "month", "model:path"):
            continue
        tried += 1
        theirs_said = await ask(there.a.admin, address, theirs)
        unknown_said = await ask(there.a.admin, address, made_up)
        assert theirs_said.status == unknown_said.status == 404, (address, theirs_said.body)
        same = theirs_said.body.replace(theirs[name].encode(), made_up[name].encode())
        assert same == unknown_said.body, address
        own = await ask(there.b.admin, address, theirs)
        assert own.status != 404, f"{address} finds nothing at all"
    assert tried >= 11


async def ask(talk: Talk, address: str, ids: Mapping[str, str]) -> Any:
    method, path = filled(address, ids)
    body, kind = BODIES.get(address, ({} if method in ("POST", "PATCH") else b"", JSON))
    if address == "PUT /admin/v1/spec":
        body = b"models: nonsense"
    return await send(talk, method, path, {"content-type": kind}, body)


async def send(talk: Talk, method: str, path: str, headers: Mapping[str, str], body: Any) -> Answer:
    """`WS` is the request to become a WebSocket; what is said there afterwards is nobody's business here."""
    if method != "WS":
        return await talk.ask(method, path, headers, body)
    async with connect(talk.url) as connection:
        await connection.send(talk.request("GET", path, {**headers, **UPGRADE}))
        head = await connection.head()
        return Answer(head, b"" if head.status == 101 else await connection.body(head))


@pytest.mark.parametrize("noun", ["tenants", "projects"])
async def test_whoever_is_switched_off_is_refused_within_a_second(hub: Hub, noun: str) -> None:
    admin = Talk(hub.url, hub.admin_key)
    party = await make_party(admin)
    _, caller = await make_key(party.admin)
    path = f"/admin/v1/{noun}/{party.id if noun == 'tenants' else party.project_id}"
    for is_off, status in ((True, 401), (False, 200)):
        changed = await admin.ask("PATCH", path, {}, {"disabled": is_off})
        assert changed.status == 200, changed.body
        begin = time.monotonic()
        for talk, address in ((caller, "/v1/models"), (party.admin, "/admin/v1/keys")):
            while (answer := await talk.get(address)).status != status:
                assert time.monotonic() - begin < 1, answer.body
                await asyncio.sleep(0.02)
        assert (await caller.chat("echo")).status == status


async def test_bodies_are_bounded_and_read_once_the_caller_is_known(hub: Hub) -> None:
    head = {"content-length": str(10**12)}
    nobody, admin = Talk(hub.url, "ih_nobody"), Talk(hub.url, hub.admin_key)
    assert (await nobody.ask("POST", "/admin/v1/keys", head, b"{")).status == 401
    assert (await admin.ask("POST", "/admin/v1/keys", head, b"{")).status == 413
    deep = await admin.post("/admin/v1/keys", b"[" * 100_000)
    assert (deep.status, deep.error["code"]) == (400, "too_deep")
    twice = await admin.post("/admin/v1/keys", b'{"name": "x", "role": "free", "role": "admin"}')
    assert (twice.status, twice.error["code"], twice.error["param"]) == (400, "duplicate_name", "role")
    form = await admin.post("/admin/v1/keys", b"name=x", content_type="application/x-www-form-urlencoded")
    assert form.status == 415
