"""Puts the gateway together from its parts: hot routes in front, the FastAPI application behind.

Called by assembly, which owns every part; this module opens nothing and starts nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from inferhub import __version__
from inferhub.core.call import Handler
from inferhub.core.errors import InferHubError, InternalError, Invalid, MethodNotAllowed, NotFound, TooLarge
from inferhub.gateway.access import GuardedRoute, require_guard
from inferhub.gateway.admin.audit import audit_router
from inferhub.gateway.admin.decisions import decisions_router
from inferhub.gateway.admin.desk import Desk
from inferhub.gateway.admin.keys import keys_router
from inferhub.gateway.admin.limits import limits_router
from inferhub.gateway.admin.spec import spec_router
from inferhub.gateway.admin.tenants import projects_router, tenants_router, users_router
from inferhub.gateway.admin.usage import usage_router
from inferhub.gateway.admin.workers import workers_router
from inferhub.gateway.blobs import BlobLinks, blobs_router
from inferhub.gateway.desired import Desired
from inferhub.gateway.dialects import dialects
from inferhub.gateway.door import Answering, Door
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.health import health_router
from inferhub.gateway.idempotency import Idempotency
from inferhub.gateway.infer import InferEndpoint
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.models import models_router
from inferhub.gateway.openapi import add_docs
from inferhub.gateway.problems import error_headers, form_at
from inferhub.gateway.responses.endpoint import ResponsesEndpoint
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.gateway.responses.routes import responses_router
from inferhub.gateway.sockets.asr import AsrEndpoint
from inferhub.gateway.sockets.live import Listening
from inferhub.gateway.sockets.llm import LlmEndpoint
from inferhub.gateway.sockets.realtime.endpoint import RealtimeEndpoint, realtime_router
from inferhub.gateway.sockets.realtime.secrets import ClientSecrets
from inferhub.gateway.sockets.switchboard import OpenSockets, SocketEndpoint, Switchboard
from inferhub.gateway.surface import DefaultModel, InferenceEndpoint
from inferhub.gateway.uploads import Uploads
from inferhub.gateway.voices import voices_router
from inferhub.routing import Decisions
from inferhub.stores.cache.base import AnswerStore
from inferhub.stores.counters.base import Counters
from inferhub.stores.usage.base import UsageStore
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_MAX_PARAM_CHARS = 200


@dataclass(frozen=True, slots=True)
class GatewayParts:
    pipeline: Handler
    fleet: Fleet
    desired: Desired
    desk: Desk
    answers: AnswerStore
    counters: Counters
    usage: UsageStore
    responses: KeptResponses
    links: BlobLinks
    secrets: ClientSecrets
    readiness: Callable[[], Mapping[str, object]]
    check_url: Callable[[str], object]
    """Raises for an address that no webhook may have."""
    metrics: Metrics
    limits: GatewayLimits
    decisions: Decisions
    cors_origins: Sequence[str] = ()
    sockets: OpenSockets = field(default_factory=OpenSockets)


def build_app(parts: GatewayParts) -> ASGIApp:
    """The whole HTTP surface as one ASGI application."""
    identity = parts.desired.identity
    hot: dict[str, Answering] = {}

    def default_model(
        modality: str, features: Collection[str], may_call: Callable[[str], bool]
    ) -> str | None:
        return parts.fleet.directory().first_for(modality, features, may_call)

    own: dict[str, InferenceEndpoint] = {}
    uploads = Uploads(parts.limits)
    for dialect in dialects().values():
        endpoint: Answering
        endpoint = inference = InferenceEndpoint(dialect, parts.pipeline, identity, default_model, uploads)
        if dialect.translate is None:
            own[dialect.modality.name] = inference
        if dialect.is_stateful:
            endpoint = ResponsesEndpoint(dialect, parts.pipeline, identity, parts.responses)
        for address in (dialect.path, *dialect.aliases):
            # With and without the trailing slash, and for a base URL that forgot `/v1`.
            for path in (address, address.removeprefix("/v1")):
                hot[path] = hot[f"{path}/"] = endpoint
    hot["/infer"] = hot["/infer/"] = InferEndpoint(own, identity, parts.fleet, uploads)
    app: ASGIApp = Door(
        hot,
        cold_app(parts),
        sockets=Switchboard(socket_endpoints(parts, default_model), identity, parts.limits, parts.sockets),
        identity=identity,
        idempotency=Idempotency(parts.answers),
        limits=parts.limits,
        metrics=parts.metrics,
    )
    if parts.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=parts.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
        )
    return app


def socket_endpoints(parts: GatewayParts, default_model: DefaultModel) -> Mapping[str, SocketEndpoint]:
    """Every WebSocket by its path."""
    listening = Listening(parts.pipeline, parts.limits, default_model)
    return {
        "/ws/asr": AsrEndpoint(listening),
        "/ws/llm": LlmEndpoint(listening),
        "/v1/realtime": RealtimeEndpoint(listening, parts.secrets),
    }


def cold_app(parts: GatewayParts) -> FastAPI:
    """Everything that is not inference. Behind the door, which gives each request its id."""
    app = FastAPI(
        title="InferHub",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(require_guard)],
    )
    app.router.route_class = GuardedRoute
    app.state.identity = parts.desired.identity
    app.state.limits = parts.limits
    desk = parts.desk
    for router in (
        health_router(parts.readiness),
        models_router(parts.fleet.directory),
        voices_router(parts.fleet.directory),
        responses_router(parts.responses),
        realtime_router(parts.secrets),
        blobs_router(parts.links),
        spec_router(parts.desired),
        workers_router(parts.fleet.workers),
        decisions_router(parts.decisions),
        tenants_router(desk, parts.check_url),
        projects_router(desk),
        users_router(desk, lambda: parts.fleet.spec.issuers),
        keys_router(desk),
        limits_router(desk, parts.counters.read),
        usage_router(desk, parts.usage, lambda: parts.fleet.spec.prices),
        audit_router(desk),
    ):
        app.include_router(router)
    add_docs(app)
    app.add_exception_handler(InferHubError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_bug)
    return app


async def _answer_error(request: Request, error: Any) -> Response:
    headers = {name.decode(): value.decode("latin-1") for name, value in error_headers(error)}
    form = form_at(request.scope["path"])
    body = form.body(error, request.scope.get("state", {}).get("request_id", ""))
    return Response(body, form.status(error), headers, "application/json")


async def _answer_http(request: Request, error: Any) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    path = request.scope["path"][:200]
    known: dict[int, InferHubError] = {
        404: NotFound(f"Nothing lives at {path}. See /docs."),
        405: MethodNotAllowed(f"{request.method} is not answered at {path}."),
        413: TooLarge(),
    }
    answer = await _answer_error(request, known.get(error.status_code, Invalid(str(error.detail))))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _answer_validation(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    param = ".".join(str(step) for step in first["loc"][1:])[:_MAX_PARAM_CHARS]
    problem = Invalid(f"Invalid value for '{param}': {first['msg']}.", param=param or None)
    return await _answer_error(request, problem)


async def _answer_bug(request: Request, error: Exception) -> Response:
    _log.error("request failed unexpectedly", exc_info=error, extra={"request_id": request.state.request_id})
    return await _answer_error(request, InternalError())
