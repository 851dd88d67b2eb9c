"""Any server that speaks OpenAI's HTTP API: a vendor, vLLM, llama-server, another InferHub.

The client's own JSON travels on; only `model` and the stream options are ours. Credentials come from
the operator's spec alone: nothing a client sends decides where a call goes or with which key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.completion import prompts
from inferhub.modalities.embedding import inputs
from inferhub.wire.openai_chat import ChatReader, parse_chat_chunk
from inferhub.wire.openai_completion import CompletionReader, parse_completion_chunk
from inferhub.wire.openai_embedding import read_embeddings
from inferhub.wire.openai_errors import read_error, read_stream_error
from inferhub.wire.sse import SseParser

if TYPE_CHECKING:
    from inferhub.backends.http import Answer

_Seconds = Annotated[float, Meta(gt=0, le=3600)]
# The connection's own business, never an operator's.
_RESERVED_HEADERS = {"connection", "content-length", "content-type", "host", "transfer-encoding"}
# A client must not choose where the operator's key is sent.
_DROPPED_FIELDS = ("api_base", "base_url", "api_key", "extra_headers")
# Their answers have parts that our deltas cannot carry; better refused than silently lost.
_NOT_OFFERED = {"audio_output", "functions", "web_search_options"}


class OpenAICompatibleOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where the upstream is and how to speak to it."""

    base_url: str
    """`http://host[:port]` or `https://…`. Without a path, `/v1` is added; a path is used as it stands."""
    upstream_model: str | None = None
    """What the upstream calls the model; default: the model's own name."""
    api_key: str | None = None
    """Sent as a bearer token."""
    headers: dict[str, str] = {}
    """Sent with every request; for upstreams that take their key elsewhere."""
    connect_timeout_s: _Seconds = 5
    headers_timeout_s: _Seconds = 60
    """Until the head of a stream or of embeddings."""
    answer_timeout_s: _Seconds = 600
    """Until the head of a whole answer, which an upstream sends only when it has finished thinking."""
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 512
    modalities: Annotated[tuple[Literal["chat", "completion", "embedding"], ...], Meta(min_length=1)] = (
        "chat",
        "completion",
        "embedding",
    )

    def __post_init__(self) -> None:
        _check_base_url(self.base_url)
        for name, value in self.headers.items():
            if name.lower() in _RESERVED_HEADERS or not _is_header_name(name):
                raise ValueError(f"'headers' may not set {name!r}")
            if not _is_header_value(value):
                raise ValueError(f"the value of header {name!r} has characters that headers cannot carry")
        if self.api_key is not None and not (self.api_key and _is_header_value(self.api_key)):
            raise ValueError("'api_key' is empty or has characters that a header cannot carry")

    def __repr__(self) -> str:
        """Without what may be secret, for logs and tracebacks."""
        return f"{type(self).__name__}(base_url={self.base_url!r}, upstream_model={self.upstream_model!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("base_url", self.base_url), ("upstream_model", self.upstream_model)]


class _Reader(Protocol):
    def read(self, chunk: Any) -> list[Any]: ...

    def end(self) -> Usage: ...


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one streaming modality is spoken."""

    path: str
    parse: Callable[[bytes], Any]
    reader: Callable[[int], _Reader]
    choices: Callable[[Any], int]


_DIALECTS = {
    "chat": _Dialect("chat/completions", parse_chat_chunk, ChatReader, lambda request: request.n or 1),
    "completion": _Dialect(
        "completions",
        parse_completion_chunk,
        CompletionReader,
        lambda request: len(prompts(request)) * (request.n or 1),
    ),
}

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_DONE = b"[DONE]"
_TRUE = msgspec.Raw(b"true")
_BASE64 = msgspec.Raw(b'"base64"')
# Always asked for, so that a call is counted whether or not its client wants to see the count.
_COUNT_USAGE = msgspec.Raw(b'{"include_usage":true}')


class OpenAICompatible(Backend):
    """One model of one upstream."""

    Options = OpenAICompatibleOptions
    remote = True
    default_slots = 256

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        """Opens the session; asks the upstream nothing, which may be down or charge for it."""
        from yarl import URL

        from inferhub.backends.http import HttpUpstream, Refusal

        options = msgspec.convert(
            check_options(type(self), self.spec), OpenAICompatibleOptions, from_attributes=True
        )
        headers = {**options.headers, "content-type": "application/json"}
        if options.api_key:
            headers["authorization"] = f"Bearer {options.api_key}"
        self._options = options
        self._secrets = (*([options.api_key] if options.api_key else []), *options.headers.values())
        self._model = msgspec.Raw(_encode(options.upstream_model or self.spec.name))
        base = endpoint_base(options.base_url)
        self._urls = {
            name: URL(f"{base}/{path}")
            for name, path in (
                *((name, dialect.path) for name, dialect in _DIALECTS.items()),
                ("embedding", "embeddings"),
            )
        }
        self._refusal = Refusal
        self._http = HttpUpstream(
            headers=headers,
            connect_timeout_s=options.connect_timeout_s,
            max_connections=options.max_connections,
        )
        self.device = "remote"
        self.capabilities = tuple(
            # `extra_params`: what we do not know is passed on, so nobody may tell the client it was ignored.
            Capability(name, frozenset({*modalities()[name].features, "extra_params"}) - _NOT_OFFERED)
            for name in dict.fromkeys(options.modalities)
        )

    async def unload(self) -> None:
        await self._http.close()

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        if call.modality == "embedding":
            return self._embed(call)
        dialect = _DIALECTS[call.modality]
        return self._stream(call, dialect) if call.stream else self._whole(call, dialect)

    async def _stream(self, call: Call, dialect: _Dialect) -> AsyncIterator[Delta | Finished]:
        fields = self._fields(call)
        fields["stream"], fields["stream_options"] = _TRUE, _COUNT_USAGE
        reader = dialect.reader(dialect.choices(call.request))
        parser = SseParser()
        answer = await self._post(call, fields, self._options.headers_timeout_s)
        is_done = False
        try:
            while not is_done and (piece := await answer.read_piece()):
                for data in parser.feed(piece):
                    if data == _DONE:
                        is_done = True
                        break
                    for payload in self._read(data, dialect, reader):
                        yield Delta(payload)
            # Without [DONE] the end is clean only if every choice was finished; `end` knows.
            yield Finished(reader.end())
            if is_done:
                await answer.drain()
        finally:
            answer.close()

    async def _whole(self, call: Call, dialect: _Dialect) -> AsyncIterator[Delta | Finished]:
        reader = dialect.reader(dialect.choices(call.request))
        answer = await self._post(call, self._fields(call), self._options.answer_timeout_s)
        try:
            body = await answer.read_whole()
        finally:
            answer.close()
        for payload in self._read(body, dialect, reader):
            yield Delta(payload)
        yield Finished(reader.end())

    async def _embed(self, call: Call) -> AsyncIterator[Delta | Finished]:
        fields = self._fields(call)
        # A quarter of the bytes of decimal numbers, and exact; a client's wish is met when we answer.
        fields["encoding_format"] = _BASE64
        answer = await self._post(call, fields, self._options.headers_timeout_s)
        try:
            body = await answer.read_whole()
        finally:
            answer.close()
        deltas, usage = read_embeddings(body, len(inputs(call.request)))
        for delta in deltas:
            yield Delta(delta)
        yield Finished(usage)

    def _read(self, data: bytes, dialect: _Dialect, reader: _Reader) -> list[Any]:
        chunk = dialect.parse(data)
        if chunk.error:
            raise read_stream_error(chunk.error, self._secrets)
        return reader.read(chunk)

    def _fields(self, call: Call) -> dict[str, msgspec.Raw]:
        """The client's fields, each value still the bytes that it sent."""
        try:
            fields = _decode_fields(call.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid("The body is not a JSON object.") from error
        for name in (*_DROPPED_FIELDS, "stream", "stream_options"):
            fields.pop(name, None)
        fields["model"] = self._model
        return fields

    async def _post(self, call: Call, fields: dict[str, msgspec.Raw], head_timeout_s: float) -> Answer:
        headers = {"idempotency-key": call.key}
        if call.traceparent:
            headers["traceparent"] = call.traceparent
        try:
            return await self._http.post(self._urls[call.modality], _encode(fields), headers, head_timeout_s)
        except self._refusal as refusal:
            raise read_error(refusal.status, refusal.headers, refusal.body, self._secrets) from refusal


def endpoint_base(base_url: str) -> str:
    """What paths such as `/chat/completions` are appended to."""
    base = base_url.rstrip("/")
    return base if urlsplit(base).path else f"{base}/v1"


def _check_base_url(base_url: str) -> None:
    """Never echoes the address: an operator may have put a password into it."""
    try:
        url = urlsplit(base_url)
        is_sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or not base_url.isprintable() or " " in base_url or "\\" in base_url:
        raise ValueError("'base_url' must be an http:// or https:// address")
    if url.username is not None or url.password is not None:
        raise ValueError("'base_url' must not hold credentials; use 'api_key' or 'headers'")
    if url.query or url.fragment:
        raise ValueError("'base_url' must end with its path, without '?' and '#'")


def _is_header_name(name: str) -> bool:
    return bool(name) and name.isascii() and all(c.isalnum() or c in "-_" for c in name)


def _is_header_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


BACKEND = OpenAICompatible
