"""The outermost ASGI application: request ids, common headers, and the short way to inference routes.

Everything else (admin, docs, health, models) goes on to the FastAPI application behind it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferhub.core.clock import new_id
from inferhub.core.errors import InferHubError, InternalError
from inferhub.gateway.answer import Exchange
from inferhub.gateway.idempotency import Idempotency
from inferhub.gateway.identity import Identity
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone, read_body
from inferhub.gateway.problems import Form, Headers, form_at
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
# Honoured only when it cannot forge a header or a log line.
_REQUEST_ID = re.compile(rb"^[A-Za-z0-9_-]{8,128}$")

Answering = Callable[[Scope, dict[bytes, bytes], Exchange, str], Awaitable[None]]
"""(scope, its headers, the way back, request id) → answered; raises `InferHubError` before it has begun."""


class Door:
    def __init__(
        self,
        hot: Mapping[str, Answering],
        cold: ASGIApp,
        *,
        sockets: ASGIApp,
        identity: Identity,
        idempotency: Idempotency,
        limits: GatewayLimits,
        metrics: Metrics,
    ) -> None:
        self._hot = hot
        self._cold = cold
        self._sockets = sockets
        self._identity = identity
        self._idempotency = idempotency
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._sockets(scope, receive, send)
        headers = dict(scope["headers"])
        if b"idempotency-key" in headers and scope["method"] == "POST":
            return await self._answer(self._once, scope, headers, receive, send)
        return await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._hot.get(scope["path"])
        if endpoint is None:
            return await self._pass_on(scope, receive, send)
        return await self._answer(endpoint, scope, dict(scope["headers"]), receive, send)

    async def _answer(
        self, how: Answering, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        """Whatever goes wrong in `how` is answered here, or has nobody left to be told."""
        begin = time.perf_counter()
        request_id = request_id_of(headers)
        form = form_at(scope["path"])
        connection = scope["extensions"]["inferhub.connection"]
        exchange = Exchange(
            receive,
            send,
            self._limits,
            lambda: _common(request_id, begin, form),
            connection,
            request_id,
            form,
        )
        try:
            try:
                await how(scope, headers, exchange, request_id)
            except InferHubError as error:
                self._metrics.refused.labels(error.code).inc()
                await exchange.problem(error)
            except Exception:
                _log.exception("request failed unexpectedly", extra={"request_id": request_id})
                await exchange.problem(InternalError())
        except ClientGone:
            return

    async def _once(
        self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange, request_id: str
    ) -> None:
        """A POST with an Idempotency-Key: the ordinary way, at most once."""
        principal = await self._identity.principal(headers)
        body = await read_body(headers, exchange.receive, exchange.limits, accepts_form=True)
        if b"x-request-id" not in headers:
            scope = {**scope, "headers": [*scope["headers"], (b"x-request-id", request_id.encode())]}
        await self._idempotency(scope, body, principal, exchange, self._route)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The cold way: the same headers, and `/v1/models/` means `/v1/models`."""
        begin = time.perf_counter()
        request_id = request_id_of(dict(scope["headers"]))
        path = scope["path"]
        form = form_at(path)
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_common(request_id, begin, form)]
            await send(message)

        await self._cold(scope, receive, send_with_headers)


def request_id_of(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id")
    return given.decode() if given is not None and _REQUEST_ID.match(given) else new_id("req")


def _common(request_id: str, begin: float, form: Form) -> Headers:
    elapsed_ms = round((time.perf_counter() - begin) * 1000)
    named = [(form.request_id_header, request_id.encode())] if form.request_id_header else []
    return [
        *named,
        (b"x-request-id", request_id.encode()),
        (b"openai-processing-ms", str(elapsed_ms).encode()),
        (b"openai-version", b"2020-10-01"),
        (b"access-control-expose-headers", b"X-Request-ID, OpenAI-Processing-Ms, Retry-After"),
    ]
