"""`POST /v1/responses`: earlier responses in front of the input, the new one kept behind the answer.

Built by `app` for the stateful dialects, found by `door`. Everything between is the way of every dialect.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
from starlette.types import Scope

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler
from inferhub.core.errors import InferHubError, Invalid, MethodNotAllowed
from inferhub.gateway.answer import Exchange, Wanted, answer
from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.identity import Identity
from inferhub.gateway.places import placing
from inferhub.gateway.problems import Headers, problem_of
from inferhub.gateway.responses.kept import History, KeptResponses, owner_of
from inferhub.gateway.surface import Asked, envelope_for, make_call, read_asked
from inferhub.modalities.base import Envelope
from inferhub.wire.openai_responses.items import reference_of
from inferhub.wire.openai_responses.numbering import numbered
from inferhub.wire.openai_responses.request import ResponsesRequest
from inferhub.wire.openai_responses.thoughts import OWN_REASONING
from inferhub.wire.openai_responses.writer import ResponsesWriter, final_response


class ResponsesEndpoint:
    def __init__(self, dialect: Dialect, handler: Handler, identity: Identity, kept: KeptResponses) -> None:
        self._dialect = dialect
        self._handler = handler
        self._identity = identity
        self._kept = kept

    async def __call__(
        self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange, request_id: str
    ) -> None:
        """Raises `InferHubError` before the call starts, `ClientGone` at any time."""
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not answered here; use POST.")
        principal = await self._identity.principal(headers)
        asked = await read_asked(self._dialect, scope, headers, exchange)
        request: ResponsesRequest = asked.request
        owner = owner_of(principal)
        told = await self._resolved(request, owner)
        history = History([], "")
        full = told
        if request.previous_response_id is not None:
            history = await self._kept.history(owner, request.previous_response_id)
            full = [*history.items, *_as_items(told)]
        try:
            call = make_call(_expanded(asked, full), principal, headers, exchange)
        except Invalid as error:
            raise _as_sent(error, len(history.items)) from error
        if not call.session:
            # One conversation is better answered by one endpoint, which may still have its beginning.
            call = replace(call, session=history.root_id)
        handler = placing(self._handler, self._dialect, asked.body)
        if self._dialect.writer is None:
            wanted = Wanted(self._dialect, request, envelope_for(self._dialect, call))
            return await answer(call, wanted, handler, exchange)
        # Not the request id, which a client may choose: a response's name must be its own.
        seen_as = replace(envelope_for(self._dialect, call), id=f"resp_{call.key.removeprefix('call_')}")
        if not request.is_kept:
            return await answer(call, Wanted(self._dialect, request, seen_as), handler, exchange)
        keeping = Keeping(self._kept, owner, request, seen_as, numbered(told, seen_as.id))
        exchange = replace(exchange, common_headers=keeping.headers(exchange))
        wanted = Wanted(keeping.dialect(self._dialect), request, seen_as)
        return await answer(call, wanted, keeping.handler(handler), exchange)

    async def _resolved(self, request: ResponsesRequest, owner: str) -> str | list[dict[str, Any]]:
        """The input with stored items in the place of references to them."""
        given = request.input or []
        if isinstance(given, str):
            return given
        wanted = {
            item_id: f"input[{position}].id"
            for position, item in enumerate(given)
            if (item_id := reference_of(item)) is not None
        }
        if not wanted:
            return given
        found = await self._kept.items(owner, wanted)
        return [found[item_id] if (item_id := reference_of(item)) is not None else item for item in given]


class Keeping:
    """One answer on its way to the client and to the store.

    It is stored before its end leaves, so that a client which asks for it at once finds it. A stream that
    broke is kept as failed, with what was said; one whose client hung up is not kept.
    """

    def __init__(
        self,
        kept: KeptResponses,
        owner: str,
        request: ResponsesRequest,
        seen_as: Envelope,
        given: list[dict[str, Any]],
    ) -> None:
        self._kept = kept
        self._owner = owner
        self._given = given
        self._previous_id = request.previous_response_id
        self._writer = ResponsesWriter(request, seen_as)
        self._is_stored = kept.is_up
        self._whole = b""

    def headers(self, exchange: Exchange) -> Any:
        def common() -> Headers:
            headers = exchange.common_headers()
            return headers if self._is_stored else [*headers, (b"x-inferhub-stored", b"false")]

        return common

    def dialect(self, dialect: Dialect) -> Dialect:
        """Writes through the writer that is asked for the response which is kept."""
        return replace(dialect, writer=lambda *_: self._writer, fold=lambda *_: self._whole)

    def handler(self, inner: Handler) -> Handler:
        async def handle(call: Call, emit: Emit) -> None:
            has_begun = False
            finished: Finished | None = None

            async def watch(chunk: Chunk) -> None:
                nonlocal has_begun, finished
                if isinstance(chunk, Delta):
                    has_begun = True
                    if not call.stream:
                        self._writer.delta(chunk.payload)
                    elif chunk.raw and chunk.payload.finish_reason:
                        await self._keep_upstreams(final_response(chunk.raw))
                elif isinstance(chunk, Finished):
                    finished = chunk
                await emit(chunk)

            try:
                await inner(call, watch)
            except InferHubError as error:
                if call.stream and has_begun:
                    await self._keep_upstreams(self._writer.failed(problem_of(error)))
                raise
            if finished is not None:
                await self._end(finished, is_stream=call.stream)

        return handle

    async def _end(self, finished: Finished, *, is_stream: bool) -> None:
        if finished.raw is not None:
            await self._keep_upstreams(final_response(finished.raw) if is_stream else finished.raw)
        else:
            self._whole = self._writer.finish(finished.usage)
            if not await self._keep(self._whole):
                self._whole = self._writer.finish(finished.usage, is_stored=False)

    async def _keep_upstreams(self, response: bytes | None) -> None:
        """The upstream's own words, under the upstream's own id."""
        if response is not None:
            await self._keep(self._continued(response))

    async def _keep(self, response: bytes) -> bool:
        self._is_stored = await self._kept.keep(self._owner, response, self._given, self._previous_id)
        return self._is_stored

    def _continued(self, raw: bytes) -> bytes:
        """The upstream was sent the whole conversation, so it does not know what it continues."""
        if self._previous_id is None:
            return raw
        try:
            fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            return raw
        fields["previous_response_id"] = msgspec.Raw(msgspec.json.encode(self._previous_id))
        return msgspec.json.encode(fields)


_PLACE = re.compile(r"\binput\[(\d+)\]")


def _as_sent(error: Invalid, ahead: int) -> Invalid:
    """The error with the places of the client's own items, of which `ahead` others were put in front."""
    if not ahead or not error.param:
        return error

    def moved(match: re.Match[str]) -> str:
        place = int(match[1]) - ahead
        return f"input[{place}]" if place >= 0 else "previous_response_id"

    shown, param = _PLACE.sub(moved, error.message), _PLACE.sub(moved, error.param)
    return type(error)(shown, param=param, code=error.wire_code)


def _as_items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _expanded(asked: Asked, full: str | list[dict[str, Any]]) -> Asked:
    """A request that needs nothing of what is stored here, for backends that get the client's own words."""
    request: ResponsesRequest = asked.request
    native = full if isinstance(full, str) else [item for item in full if not _is_own_thought(item)]
    if request.previous_response_id is None and native == request.input:
        return asked
    fields = msgspec.json.decode(asked.body, type=dict[str, msgspec.Raw])
    fields.pop("previous_response_id", None)
    fields["input"] = msgspec.Raw(msgspec.json.encode(native))
    # The translation gets the thoughts too: they are signed by whoever may answer.
    told = msgspec.structs.replace(request, input=full)
    return asked._replace(request=told, body=msgspec.json.encode(fields))


def _is_own_thought(item: dict[str, Any]) -> bool:
    return item.get("type") == "reasoning" and str(item.get("id", "")).startswith(OWN_REASONING)
