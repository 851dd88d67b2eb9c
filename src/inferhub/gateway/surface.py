"""One dialect → one raw ASGI endpoint: who, what, until when; then the pipeline.

Built by `app` from the dialect records; found by `door` with one dictionary look-up.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from starlette.types import Scope

from inferhub.core.call import Call, Handler, Media, Native
from inferhub.core.clock import unix_s
from inferhub.core.errors import Invalid, MethodNotAllowed, ModelNotFound
from inferhub.core.tenancy import Principal
from inferhub.gateway.answer import Exchange, Wanted, answer
from inferhub.gateway.criticality import criticality_of
from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.forms import parse_form, read_form
from inferhub.gateway.identity import Identity
from inferhub.gateway.payload import FORM, is_form, parse_request, read_body
from inferhub.gateway.places import placing
from inferhub.gateway.uploads import Uploads
from inferhub.modalities.base import Envelope, Modality, wants_stream
from inferhub.pipeline.admit import check_scope

_TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
_HOST = re.compile(rb"^[A-Za-z0-9.:\[\]-]{1,255}$")
_SESSION = re.compile(rb"^[\x21-\x7e]{1,256}$")


DefaultModel = Callable[[str, Collection[str], Callable[[str], bool]], str | None]
"""(modality, features, which names the caller may use) → the model that is meant where none is named."""


class InferenceEndpoint:
    def __init__(
        self,
        dialect: Dialect,
        handler: Handler,
        identity: Identity,
        default_model: DefaultModel,
        uploads: Uploads,
    ) -> None:
        self._dialect = dialect
        self._handler = handler
        self._identity = identity
        self._default_model = default_model
        self._uploads = uploads

    async def __call__(
        self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange, request_id: str
    ) -> None:
        """Raises `InferHubError` before the call starts, `ClientGone` at any time."""
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not answered here; use POST.")
        principal = await self._identity.principal(headers)
        if not self._dialect.files:
            asked = await read_asked(self._dialect, scope, headers, exchange)
            return await self.run(asked, principal, headers, exchange)
        # Before somebody who may not call it has sent all of a file.
        check_scope(principal, self._dialect.modality.name)
        with self._uploads.room(headers):
            asked = await read_asked(self._dialect, scope, headers, exchange)
            return await self.run(asked, principal, headers, exchange)

    async def run(
        self, asked: Asked, principal: Principal, headers: Mapping[bytes, bytes], exchange: Exchange
    ) -> None:
        """Answer what was read already."""
        call = make_call(asked, principal, headers, exchange, self._default_model)
        seen_as = envelope_for(self._dialect, call, base_url(headers))
        handler = placing(self._handler, self._dialect, asked.body)
        await answer(call, Wanted(self._dialect, asked.request, seen_as), handler, exchange)


class Asked(NamedTuple):
    """A checked request, in the words of its dialect."""

    dialect: Dialect
    request: Any
    body: bytes
    unknown: tuple[str, ...]
    media: tuple[Media, ...] = ()


async def read_asked(
    dialect: Dialect, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange
) -> Asked:
    """What the client asks for. Raises `RequestError`."""
    media: tuple[Media, ...] = ()
    if dialect.files and is_form(headers):
        form = await read_form(headers, exchange.receive, exchange.limits)
        request, unknown, body = parse_form(dialect, form)
        media = tuple(form.files)
    else:
        body = await read_body(headers, exchange.receive, exchange.limits)
        request, unknown = parse_request(dialect, body, exchange.limits.max_json_depth)
        _check_no_form(dialect)
    if wants_stream(request) and scope.get("http_version") == "1.0":
        raise Invalid("Streaming needs HTTP/1.1 or newer; this request came as HTTP/1.0.", param="stream")
    return Asked(dialect, request, body, unknown, media)


def _check_no_form(dialect: Dialect) -> None:
    """Raises `Invalid` where only a form can hold what is required."""
    for name, field in dialect.files.items():
        if field.required:
            raise Invalid(
                f"'{name}' is required: send it as a file of a form, 'Content-Type: {FORM}'.",
                param=name,
                code="missing_required_parameter",
            )


def make_call(
    asked: Asked,
    principal: Principal,
    headers: Mapping[bytes, bytes],
    exchange: Exchange,
    default_model: DefaultModel = lambda *_: None,
) -> Call:
    """The call that a request becomes. Raises `Invalid`, `Unsupported` or `ModelNotFound`."""
    dialect, request, body, unknown, media = asked
    native: Native | None = None
    if dialect.translate is not None:
        translated = dialect.translate(request, body)
        native = Native(dialect.name, body, translated.needs)
        request, body = translated.request, translated.body
        unknown += translated.ignored
    return Call(
        id=exchange.request_id,
        modality=dialect.modality.name,
        model=asked.request.model or _default(default_model, dialect.modality, request, principal),
        request=request,
        body=body,
        principal=principal,
        deadline_s=time.monotonic() + exchange.limits.request_timeout_s,
        stream=wants_stream(asked.request),
        traceparent=_traceparent(headers),
        unknown_params=unknown,
        cache=_cache_wish(headers),
        media=media,
        native=native,
        session=_session(headers, request),
        criticality=criticality_of(headers, asked.request, principal),
    )


def _default(default_model: DefaultModel, modality: Modality, request: Any, principal: Principal) -> str:
    features = sorted(modality.requires(request))
    found = default_model(modality.name, features, principal.may_call)
    if found is None:
        what = f"{modality.name} ({', '.join(features)})" if features else modality.name
        pages = f"{modality.howto} says" if modality.howto else "the pages under docs/howto say"
        raise ModelNotFound(
            f"No model for {what} is served here that this key may call. `inferhub models` lists what is "
            f"served; {pages} how to add a model.",
            param="model",
        )
    return found


def envelope_for(dialect: Dialect, call: Call, base: str = "") -> Envelope:
    return Envelope(f"{dialect.id_prefix}{call.id.removeprefix('req_')}", unix_s(), call.model, base)


def base_url(headers: Mapping[bytes, bytes]) -> str:
    """How the client called this server. TLS ends in front of it, so that is for the setting `public_url`."""
    host = headers.get(b"host", b"")
    return f"http://{host.decode()}" if _HOST.match(host) else ""


def _session(headers: Mapping[bytes, bytes], request: Any) -> str:
    """What ties calls together: a header of ours, or what OpenAI's clients say for their prompt cache."""
    given = headers.get(b"x-inferhub-session", b"")
    if _SESSION.match(given):
        return given.decode()
    return getattr(request, "prompt_cache_key", None) or getattr(request, "user", None) or ""


_CACHE_WISHES: dict[bytes, Literal["on", "off", "semantic"]] = {
    b"on": "on",
    b"off": "off",
    b"semantic": "semantic",
}


def _cache_wish(headers: Mapping[bytes, bytes]) -> Literal["auto", "on", "off", "semantic"]:
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


def _traceparent(headers: Mapping[bytes, bytes]) -> str | None:
    value = headers.get(b"traceparent")
    return value.decode() if value and _TRACEPARENT.match(value) else None
