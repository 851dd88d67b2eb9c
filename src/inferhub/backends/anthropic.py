"""Anthropic's Messages API: chat and token counts of one model.

A client that speaks Messages itself gets the upstream's own bytes; every other call is lifted to a Messages
request and its answer read into chat deltas (`wire/anthropic_messages`). Keys come from the operator alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.remote import RemoteOptions, endpoint_base, has_keys, piecewise
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid
from inferhub.core.models import Capability, ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.token_count import TokenCount
from inferhub.wire.anthropic_messages.errors import read_error
from inferhub.wire.anthropic_messages.lift import Rules, lift, lift_prompt
from inferhub.wire.anthropic_messages.reader import MessagesReader, read_count
from inferhub.wire.anthropic_messages.request import COUNT_DIALECT, DIALECT
from inferhub.wire.foreign import NOT_JSON
from inferhub.wire.sse import SseEvent, SseParser

_Beta = Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]
_CHAT = frozenset(
    {
        *("stream", "tools", "tool_choice_named", "json_schema", "reasoning_effort", "thinking", "top_k"),
        *("remote_urls", "vision", "file_input"),
    }
)
_COUNT = frozenset({"tools", "remote_urls", "vision", "file_input"})
_MAX_HELD_BYTES = 16 * 1024
# A client must not choose where the operator's key is sent.
_DROPPED_FIELDS = ("api_base", "base_url", "api_key", "extra_headers", "betas")

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class AnthropicOptions(RemoteOptions, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What can be said of the model besides."""

    base_url: str = "https://api.anthropic.com"
    anthropic_version: Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] = "2023-06-01"
    betas: tuple[_Beta, ...] = ()
    """Sent as `anthropic-beta`. What clients send under that name is not passed on."""
    max_tokens: Annotated[int, Meta(ge=1)] = 16384
    """The longest answer where a client sets no limit; Anthropic wants one in every request."""
    reasoning: Literal["effort", "budget"] = "effort"
    """How a `reasoning_effort` is said; `budget` for models before Claude Opus 4.6."""
    prefill: bool = False
    """Whether the model goes on with a given text; models since Claude Opus 4.6 refuse to."""


class Anthropic(Backend):
    """One model of the Messages API."""

    Options = AnthropicOptions
    remote = True
    default_slots = 256
    may_offer = frozenset({"chat", "token_count"})

    capabilities: tuple[Capability, ...] = ()

    @classmethod
    def default_options(cls, spec: ModelSpec) -> Mapping[str, str]:
        return {} if has_keys(spec) else {"api_key": "${ANTHROPIC_API_KEY}"}

    async def load(self) -> None:
        """Opens the session; asks the upstream nothing, which may be down or charge for it."""
        from yarl import URL

        from inferhub.backends.sender import Sender

        options = msgspec.convert(
            check_options(type(self), self.spec), AnthropicOptions, from_attributes=True
        )
        headers = {"anthropic-version": options.anthropic_version}
        if options.betas:
            headers["anthropic-beta"] = ",".join(options.betas)
        model = options.upstream_model or self.spec.public_name
        self._options = options
        self._rules = Rules(model, options.max_tokens, options.reasoning)
        self._model = msgspec.Raw(_encode(model))
        base = endpoint_base(options.base_url)
        self._messages, self._count_tokens = URL(f"{base}/messages"), URL(f"{base}/messages/count_tokens")
        self._sender = Sender(
            options, name=self.spec.name, key_header="x-api-key", headers=headers, read_error=read_error
        )
        self.device = "remote"
        # The names of the dialects: of a client's own bytes nothing is lost, so nobody may say so.
        chat = _CHAT | {DIALECT, "prefill"} if options.prefill else _CHAT | {DIALECT}
        self.capabilities = (Capability("chat", chat), Capability("token_count", _COUNT | {COUNT_DIALECT}))

    async def unload(self) -> None:
        await self._sender.close()

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        if call.modality == "token_count":
            return self._count(call)
        return self._stream(call) if call.stream else self._whole(call)

    # --- the three kinds of calls -----------------------------------------------------------------

    async def _stream(self, call: Call) -> AsyncIterator[Delta | Finished]:
        feed = _Feed(MessagesReader(self._sender.secrets), is_native=_is_native(call), given=call.resume)
        body, timeout_s = self._body(call), self._options.headers_timeout_s
        async with self._sender.open(call, self._messages, body, timeout_s) as answer:
            while not feed.is_done and (piece := await answer.read_piece()):
                for delta in feed.take(piece):
                    yield delta
            yield feed.end()
            await answer.drain()

    async def _whole(self, call: Call) -> AsyncIterator[Delta | Finished]:
        reader = MessagesReader(self._sender.secrets)
        body = await self._sender.ask(call, self._messages, self._body(call), self._options.answer_timeout_s)
        overlap = _Overlap(call.resume)
        for payload in reader.read_whole(body):
            payload.content = overlap.cut(payload.content)
            yield Delta(payload)
        yield Finished(reader.end(), raw=body if _is_native(call) else None)

    async def _count(self, call: Call) -> AsyncIterator[Delta | Finished]:
        timeout_s = self._options.headers_timeout_s
        body = await self._sender.ask(call, self._count_tokens, self._body(call), timeout_s)
        yield Delta(TokenCount(read_count(body)))
        yield Finished(Usage())

    # --- requests -----------------------------------------------------------------------------------

    def _body(self, call: Call) -> bytes:
        if call.native is not None and _is_native(call):
            return self._native_body(call.native.body, is_count=call.modality == "token_count")
        if call.modality == "token_count":
            return _encode(lift_prompt(call.request, self._rules))
        return _encode(lift(call.request, self._rules, call.resume))

    def _native_body(self, body: bytes, *, is_count: bool) -> bytes:
        """The client's fields, each value still the bytes that it sent."""
        try:
            fields = _decode_fields(body)
        except NOT_JSON as error:
            raise Invalid("The body is not a JSON object.") from error
        for name in _DROPPED_FIELDS:
            fields.pop(name, None)
        if is_count:
            fields.pop("stream", None)
        fields["model"] = self._model
        return _encode(fields)


def _is_native(call: Call) -> bool:
    """Whether the client speaks this dialect, and has nothing of the answer yet."""
    return call.native is not None and not call.resume and call.native.dialect in (DIALECT, COUNT_DIALECT)


class _Feed:
    """One stream: pieces of the network in, deltas out."""

    def __init__(self, reader: MessagesReader, *, is_native: bool, given: str) -> None:
        self._reader = reader
        self._parser = SseParser()
        self._is_native = is_native
        self._overlap = _Overlap(given)
        self._held = b""
        """Events without content, for whom the next delta is waited."""

    @property
    def is_done(self) -> bool:
        return self._reader.is_done

    def take(self, piece: bytes) -> Iterator[Delta]:
        return piecewise(self._deltas(self._parser.feed_events(piece)))

    def _deltas(self, events: Sequence[SseEvent]) -> Iterator[Delta]:
        for event in events:
            if self._reader.is_done:
                return
            payloads = self._reader.read(event.data)
            if self._is_native:
                self._held += event.raw
                # What a tool of Anthropic's does is shown while it does it.
                if not payloads and (self._reader.runs_tool or len(self._held) > _MAX_HELD_BYTES):
                    payloads = [ChatDelta()]
            for payload in payloads:
                payload.content = self._overlap.cut(payload.content)
                raw, self._held = self._held, b""
                yield Delta(payload, raw if self._is_native else None)

    def end(self) -> Finished:
        """Raises `UpstreamFailed` for an answer that is not whole."""
        return Finished(self._reader.end(), raw=self._held if self._is_native else None)


class _Overlap:
    """Anthropic takes no text that ends with white space to go on with, so it is given without. What the
    model then says of that space again is cut off: the client has it."""

    def __init__(self, given: str) -> None:
        self._space = given[len(given.rstrip()) :]

    def cut(self, text: str | None) -> str | None:
        if not self._space or not text:
            return text
        size = 0
        for ours, theirs in zip(self._space, text, strict=False):
            if ours != theirs:
                self._space = ""
                return text[size:]
            size += 1
        self._space = self._space[size:]
        return text[size:] or None


BACKEND = Anthropic
