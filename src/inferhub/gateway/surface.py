"""One modality → one raw ASGI endpoint: who, what, until when; then the pipeline.

Built by `app` from the modality records; found by `door` with one dictionary look-up.
"""

from __future__ import annotations

import re
import time
from typing import Literal

from starlette.types import Scope

from inferhub.core.call import Call, Handler
from inferhub.core.clock import unix_s
from inferhub.core.errors import Invalid, MethodNotAllowed
from inferhub.gateway.answer import Exchange, answer
from inferhub.gateway.identity import Identity
from inferhub.gateway.payload import parse_request, read_body
from inferhub.modalities.base import Envelope, Modality, wants_stream

_TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
_ID_PREFIX = {"chat": "chatcmpl", "completion": "cmpl"}


class InferenceEndpoint:
    def __init__(self, modality: Modality, handler: Handler, identity: Identity) -> None:
        self._modality = modality
        self._handler = handler
        self._identity = identity
        self._id_prefix = _ID_PREFIX.get(modality.name, modality.name)

    async def __call__(
        self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange, request_id: str
    ) -> None:
        """Raises `InferHubError` before the call starts, `ClientGone` at any time."""
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not answered here; use POST.")
        principal = await self._identity.principal(headers)
        body = await read_body(headers, exchange.receive, exchange.limits)
        request, unknown = parse_request(self._modality, body, exchange.limits.max_json_depth)
        is_stream = wants_stream(request)
        if is_stream and scope.get("http_version") == "1.0":
            raise Invalid("Streaming needs HTTP/1.1 or newer; this request came as HTTP/1.0.", param="stream")
        call = Call(
            id=request_id,
            modality=self._modality.name,
            model=request.model,
            request=request,
            body=body,
            principal=principal,
            deadline_s=time.monotonic() + exchange.limits.request_timeout_s,
            stream=is_stream,
            traceparent=_traceparent(headers),
            unknown_params=unknown,
            cache=_cache_wish(headers),
        )
        seen_as = Envelope(f"{self._id_prefix}-{request_id.removeprefix('req_')}", unix_s(), request.model)
        await answer(call, self._modality, self._handler, exchange, seen_as)


_CACHE_WISHES: dict[bytes, Literal["on", "off", "semantic"]] = {
    b"on": "on",
    b"off": "off",
    b"semantic": "semantic",
}


def _cache_wish(headers: dict[bytes, bytes]) -> Literal["auto", "on", "off", "semantic"]:
    given = headers.get(b"x-inferhub-cache")
    if given is None:
        return "auto"
    wish = _CACHE_WISHES.get(given.strip().lower())
    if wish is None:
        raise Invalid(
            f"x-inferhub-cache is {given[:40].decode('latin-1')!r}; allowed: on, off, semantic.",
            param="x-inferhub-cache",
        )
    return wish


def _traceparent(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"traceparent")
    return value.decode() if value and _TRACEPARENT.match(value) else None
