"""Who may use which address: one table for every route, and the one place that enforces it.

A route without a row is refused, and a test fails on it. What a caller may see *inside* an address
(its own tenant's objects, its own models) is decided where the objects are found.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from inferhub.core.errors import Forbidden, InternalError, Invalid
from inferhub.core.tenancy import Principal
from inferhub.gateway.identity import Identity
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone, read_body, read_object


@dataclass(frozen=True, slots=True)
class Rule:
    """What a caller needs."""

    scope: str | None
    """None where no key is asked for."""
    platform: bool = False
    """Only for the role `admin`: the object belongs to no tenant."""


_PUBLIC = Rule(None)
_PLATFORM = Rule("admin:platform", platform=True)
_TENANTS = Rule("admin:tenants")
_KEYS = Rule("admin:keys")
_LIMITS = Rule("admin:limits")
_USAGE = Rule("admin:usage")

ACCESS: Mapping[str, Rule] = {
    # --- health and pages -------------------------------------------------------------------------
    "GET /livez": _PUBLIC,
    "GET /readyz": _PUBLIC,
    "GET /healthz": _PUBLIC,
    "GET /version": _PUBLIC,
    "GET /docs": _PUBLIC,
    "GET /openapi.json": _PUBLIC,
    # --- inference; the admit ring enforces these, because models and limits are its business -----
    "POST /v1/chat/completions": Rule("inference:chat"),
    "POST /v1/llm/chat": Rule("inference:chat"),
    "POST /infer": Rule("inference:chat"),  # or that of another task, which only the body names
    "POST /v1/audio/transcriptions": Rule("inference:transcription"),
    "POST /v1/audio/translations": Rule("inference:transcription"),
    "POST /v1/asr/transcribe": Rule("inference:transcription"),
    "POST /v1/audio/speech": Rule("inference:speech"),
    "POST /v1/tts/synthesize": Rule("inference:speech"),
    "GET /v1/audio/voices": Rule("models:read"),
    "POST /v1/completions": Rule("inference:completion"),
    "POST /v1/messages": Rule("inference:chat"),
    "POST /v1/messages/count_tokens": Rule("inference:token_count"),
    "POST /v1/chat/completions/input_tokens": Rule("inference:token_count"),
    "POST /v1/embeddings": Rule("inference:embedding"),
    "POST /v1/moderations": Rule("inference:moderation"),
    "POST /v1/rerank": Rule("inference:rerank"),
    "POST /v1/vision/analyze": Rule("inference:vision"),
    "POST /v1/responses": Rule("inference:chat"),
    "POST /v1/responses/input_tokens": Rule("inference:token_count"),
    "GET /v1/responses/{response_id}": Rule("inference:chat"),
    "POST /v1/responses/{response_id}/cancel": Rule("inference:chat"),
    "GET /v1/responses/{response_id}/input_items": Rule("inference:chat"),
    "DELETE /v1/responses/{response_id}": Rule("inference:chat"),
    "POST /v1/images/generations": Rule("inference:image"),
    "POST /v1/images/edits": Rule("inference:image"),
    "POST /v1/images/variations": Rule("inference:image"),
    "GET /v1/blobs/{tenant}/{file}": _PUBLIC,  # whoever has an address with a good signature
    "WS /ws/asr": Rule("inference:transcription"),
    "WS /ws/llm": Rule("inference:chat"),
    "WS /v1/realtime": Rule("inference:transcription"),
    "POST /v1/realtime/client_secrets": Rule("inference:transcription"),
    "GET /v1/models": Rule("models:read"),
    "GET /v1/models/{model:path}": Rule("models:read"),
    # --- the platform -----------------------------------------------------------------------------
    "GET /admin/v1/spec": _PLATFORM,
    "PUT /admin/v1/spec": _PLATFORM,
    "GET /admin/v1/workers": _PLATFORM,
    "GET /admin/v1/decisions/{request_id}": _PLATFORM,
    # --- tenants ----------------------------------------------------------------------------------
    "GET /admin/v1/tenants": _TENANTS,
    "POST /admin/v1/tenants": Rule("admin:tenants", platform=True),
    "GET /admin/v1/tenants/{tenant_id}": _TENANTS,
    "PATCH /admin/v1/tenants/{tenant_id}": _TENANTS,
    "GET /admin/v1/projects": _TENANTS,
    "POST /admin/v1/projects": _TENANTS,
    "GET /admin/v1/projects/{project_id}": _TENANTS,
    "PATCH /admin/v1/projects/{project_id}": _TENANTS,
    "GET /admin/v1/users": _TENANTS,
    "POST /admin/v1/users": _TENANTS,
    "GET /admin/v1/users/{user_id}": _TENANTS,
    "PATCH /admin/v1/users/{user_id}": _TENANTS,
    "GET /admin/v1/keys": _KEYS,
    "POST /admin/v1/keys": _KEYS,
    "GET /admin/v1/keys/{key_id}": _KEYS,
    "DELETE /admin/v1/keys/{key_id}": _KEYS,
    "POST /admin/v1/keys/{key_id}/rotate": _KEYS,
    "GET /admin/v1/limits": _LIMITS,
    "POST /admin/v1/limits": _LIMITS,
    "GET /admin/v1/limits/{limit_id}": _LIMITS,
    "DELETE /admin/v1/limits/{limit_id}": _LIMITS,
    "GET /admin/v1/audit": Rule("admin:audit"),
    # --- the bill ---------------------------------------------------------------------------------
    "GET /admin/v1/usage": _USAGE,
    "GET /admin/usage": _USAGE,
    "GET /admin/v1/usage/events": _USAGE,
    "GET /admin/v1/invoices/{month}": _USAGE,
    "GET /admin/v1/prices": _USAGE,
    "POST /admin/v1/reconciliation": _PLATFORM,
}
"""`METHOD PATH`, the path as the route declares it; HEAD goes with GET, and `WS` is a WebSocket."""


def rule_of(method: str, path: str) -> Rule:
    rule = ACCESS.get(f"{method} {path}")
    if rule is None:
        raise InternalError(f"{method} {path} has no row in the access table.")
    return rule


async def authorise(request: Request) -> None:
    """Raises `Unauthenticated` or `Forbidden`."""
    # The route that matched, never the address as the client wrote it.
    path: str = request.scope["route"].path
    method = "GET" if request.method == "HEAD" else request.method
    rule = rule_of(method, path)
    if rule.scope is not None:
        identity: Identity = request.app.state.identity
        principal = await identity.principal(dict(request.scope["headers"]))
        if not principal.may(rule.scope) or (rule.platform and not principal.is_admin):
            needed = "the role 'admin'" if rule.platform else f"the scope {rule.scope!r}"
            raise Forbidden(f"This address needs a key with {needed}.")
        request.state.principal = principal
    request.state.is_authorised = True


class GuardedRoute(APIRoute):
    """Knows its caller before it reads the body. By itself, FastAPI takes one of any size from anybody,
    and says what is wrong with it, before it runs the first dependency."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await authorise(request)
            if self.body_field is not None:
                request = Request(request.scope, _replay(await _read(request)))
            return await handle(request)

        return guarded


async def require_guard(request: Request) -> None:
    """A dependency of every route, so that one made without `GuardedRoute` answers nobody."""
    if not getattr(request.state, "is_authorised", False):
        raise InternalError(f"{request.scope['route'].path} is not a guarded route.")


async def _read(request: Request) -> bytes:
    """The body, held to what the inference routes demand of theirs. Raises `RequestError`."""
    limits: GatewayLimits = request.app.state.limits
    try:
        body = await read_body(dict(request.scope["headers"]), request.receive, limits)
    except ClientGone as gone:
        raise Invalid("The client hung up before its request was whole.") from gone
    if body:
        read_object(body, limits.max_json_depth)
    return body


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _caller(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_caller)]
"""The principal of an authorised request, as a parameter of a route."""
