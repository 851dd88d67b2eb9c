"""`/ws/llm`: each message is a chat request, several are answered at once, each event names its own.

The requests and answers are those of `POST /v1/chat/completions`; so are the checks, limits and the bill.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inferhub.core.call import Call, Chunk, Delta, Finished, Handler
from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import (
    Conflict,
    InferHubError,
    InternalError,
    Invalid,
    ModelNotFound,
    Overloaded,
)
from inferhub.gateway.criticality import criticality_of
from inferhub.gateway.dialects import dialects
from inferhub.gateway.identity import Identity
from inferhub.gateway.payload import ClientGone, explain, parse_request, read_object
from inferhub.gateway.places import placing
from inferhub.gateway.problems import problem_of
from inferhub.gateway.sockets.live import Listening
from inferhub.gateway.sockets.socket import Socket, attend
from inferhub.gateway.sockets.switchboard import Caller, PlainDoor
from inferhub.modalities.base import Envelope, Problem, wants_stream
from inferhub.wire.sse import SseParser

_log = logging.getLogger(__name__)
_MOST_AT_ONCE = 16
"""Answers under way on one connection."""
_END = b"[DONE]"

Id = Annotated[str, Meta(min_length=1, max_length=128)]


class Cancel(msgspec.Struct, tag="cancel", kw_only=True, forbid_unknown_fields=True):
    """The answer is not wanted any more. `cancelled` follows."""

    id: Id


class ChunkEvent(msgspec.Struct, tag="chunk", kw_only=True):
    """One piece of a streamed answer, as an event of `POST /v1/chat/completions` would have it."""

    id: str
    chunk: msgspec.Raw


class AnswerEvent(msgspec.Struct, tag="answer", kw_only=True):
    """All of an answer that was not to be streamed."""

    id: str
    answer: msgspec.Raw


class TokenUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class DoneEvent(msgspec.Struct, tag="done", kw_only=True):
    """The end of an answer, streamed or not. The `id` may be used again."""

    id: str
    model: str
    """The one that answered."""
    usage: TokenUsage


class CancelledEvent(msgspec.Struct, tag="cancelled", kw_only=True):
    """The answer has ended early, because its client wished it."""

    id: str


class ErrorEvent(msgspec.Struct, tag="error", kw_only=True):
    """What could not be done. With the `id` of a request, its answer has ended."""

    error: Problem
    id: str | None = None


Event = ChunkEvent | AnswerEvent | DoneEvent | CancelledEvent | ErrorEvent


class LlmEndpoint:
    subprotocol = "inferhub"

    def __init__(self, given: Listening) -> None:
        self._given = given

    def identity(self, plain: Identity) -> PlainDoor:
        return PlainDoor(plain)

    def error_event(self, error: InferHubError) -> bytes:
        return _encode(ErrorEvent(error=problem_of(error)))

    async def serve(self, socket: Socket, caller: Caller) -> None:
        await attend(socket, _Session(self._given, socket, caller))


class _Session:
    """One connection and its answers."""

    def __init__(self, given: Listening, socket: Socket, caller: Caller) -> None:
        self._given = given
        self._socket = socket
        self._caller = caller
        self._answers: dict[str, asyncio.Task[None]] = {}
        self._dialect = dialects()["chat"]

    async def take(self, message: str | bytes) -> None:
        request_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise Invalid("A binary message came; requests are JSON, in text messages.", code="not_text")
            tree = read_object(message.encode(errors="replace"), self._given.limits.max_json_depth)
            request_id = _id_of(tree)
            if tree.get("type") == "cancel":
                return await self._cancel(tree)
            self._begin(tree, request_id)
        except InferHubError as error:
            # The answer under way with the same id goes on: the error is about the message.
            shown = None if isinstance(error, Conflict) else request_id
            await self._send(ErrorEvent(error=problem_of(error), id=shown))
        return None

    async def finish(self) -> None:
        while self._answers:
            await asyncio.wait(list(self._answers.values()))

    async def stop(self) -> None:
        tasks = list(self._answers.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _cancel(self, tree: dict[str, Any]) -> None:
        try:
            wanted = msgspec.convert(tree, Cancel)
        except msgspec.ValidationError as error:
            raise explain(error, tree) from error
        task = self._answers.get(wanted.id)
        if task is None:
            raise Invalid(f"Nothing with the id {wanted.id!r} is under way.", param="id", code="not_started")
        task.cancel()
        await asyncio.wait([task])
        await self._send(CancelledEvent(id=wanted.id))

    def _begin(self, tree: dict[str, Any], given_id: str | None) -> None:
        """Raises `InferHubError` for what is refused before it is a call."""
        answer_id = given_id or new_id("msg")
        if answer_id in self._answers:
            raise Conflict(f"The id {answer_id!r} belongs to an answer that is under way.", param="id")
        if len(self._answers) >= _MOST_AT_ONCE:
            raise Overloaded(
                f"{_MOST_AT_ONCE} answers are under way on this connection, the most allowed.",
                retry_after_s=1.0,
                reason="connection_full",
            )
        if tree.pop("type", "chat") != "chat":
            raise Invalid("'type' is 'chat' or 'cancel'.", param="type")
        tree.pop("id", None)
        call, request = self._call(tree)
        handler = placing(self._given.handler, self._dialect, call.body)
        task = asyncio.ensure_future(self._answer(answer_id, call, request, handler))
        self._answers[answer_id] = task
        self._socket.is_waited_for = True
        task.add_done_callback(lambda _: self._over(answer_id))

    def _over(self, answer_id: str) -> None:
        del self._answers[answer_id]
        self._socket.is_waited_for = bool(self._answers)

    def _call(self, tree: dict[str, Any]) -> tuple[Call, Any]:
        limits, caller = self._given.limits, self._caller
        body = msgspec.json.encode(tree)
        request, unknown = parse_request(self._dialect, body, limits.max_json_depth)
        modality = self._dialect.modality
        model = request.model or self._given.default_model(
            modality.name, sorted(modality.requires(request)), caller.principal.may_call
        )
        if not model:
            raise ModelNotFound("No model for chat is there for this key.", param="model")
        call = Call(
            id=new_id("req"),
            modality=modality.name,
            model=model,
            request=request,
            body=body,
            principal=caller.principal,
            deadline_s=time.monotonic() + limits.request_timeout_s,
            stream=wants_stream(request),
            traceparent=caller.traceparent,
            unknown_params=unknown,
            session=request.user or "",
            criticality=criticality_of({}, request, caller.principal),
        )
        return call, request

    async def _answer(self, answer_id: str, call: Call, request: Any, handler: Handler) -> None:
        writer = _Writer(answer_id, call, request, self._send)
        try:
            await handler(call, writer.take)
            await writer.end()
        except ClientGone:
            return  # whoever reads the socket learns it, too
        except InferHubError as error:
            await self._fail(answer_id, error)
        except Exception:
            _log.exception("an answer failed unexpectedly", extra={"request_id": call.id})
            await self._fail(answer_id, InternalError())

    async def _fail(self, answer_id: str, error: InferHubError) -> None:
        try:
            await self._send(ErrorEvent(error=problem_of(error), id=answer_id))
        except ClientGone:
            return

    async def _send(self, event: Event) -> None:
        await self._socket.send(_encode(event))


class _Writer:
    """One answer, from chunks to events."""

    def __init__(self, answer_id: str, call: Call, request: Any, send: Any) -> None:
        dialect = dialects()["chat"]
        self._id = answer_id
        self._call = call
        self._request = request
        self._send = send
        self._envelope = Envelope(f"{dialect.id_prefix}{call.id.removeprefix('req_')}", unix_s(), call.model)
        self._dialect = dialect
        assert dialect.writer is not None  # noqa: S101 - chat streams
        self._sse = dialect.writer(request, self._envelope)
        self._parser = SseParser()
        self._deltas: list[Any] = []
        self._finished: Finished | None = None
        self._model = call.model

    async def take(self, chunk: Chunk) -> None:
        if isinstance(chunk, Finished):
            self._finished = chunk
        elif not isinstance(chunk, Delta):
            self._model = chunk.model
        elif not self._call.stream:
            self._deltas.append(chunk.payload)
        elif chunk.raw is None:
            await self._events(self._sse.delta(chunk.payload))
        else:
            self._sse.passed(chunk.raw)
            await self._events(chunk.raw)

    async def end(self) -> None:
        end = self._finished
        if end is None:
            raise InternalError("The pipeline ended without an answer.")
        if self._call.stream:
            await self._events(self._sse.end(end.usage) if end.raw is None else end.raw)
        else:
            whole = end.raw or self._dialect.fold(self._request, self._envelope, self._deltas, end.usage)
            await self._send(AnswerEvent(id=self._id, answer=msgspec.Raw(whole)))
        usage = TokenUsage(
            prompt_tokens=end.usage.input_tokens,
            completion_tokens=end.usage.output_tokens,
            total_tokens=end.usage.total_tokens,
        )
        await self._send(DoneEvent(id=self._id, model=self._model, usage=usage))

    async def _events(self, written: bytes) -> None:
        for data in self._parser.feed(written):
            if data != _END:
                await self._send(ChunkEvent(id=self._id, chunk=msgspec.Raw(data)))


_encode = msgspec.json.Encoder().encode


def _id_of(tree: dict[str, Any]) -> str | None:
    """Raises `Invalid`."""
    given = tree.get("id")
    if given is None:
        return None
    try:
        return msgspec.convert(given, Id)
    except msgspec.ValidationError as error:
        raise Invalid("'id' is a text of 1 to 128 characters.", param="id") from error
