"""Calls, chunks and errors to protobuf and back, for `grpc` and for the strict mode of `local`. Pure: no I/O.

What a client or a modality says is open-ended and travels as JSON bytes; the types to read it with
are handed in, because this room does not know the modalities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from inferhub.core import errors
from inferhub.core.call import Call, Chunk, Criticality, Delta, Finished, Frame, Media, Native, Started
from inferhub.core.errors import InferHubError, Invalid, ServingError, UpstreamFailed
from inferhub.core.tenancy import Principal, Role
from inferhub.core.usage import Usage
from inferhub.transport._pb import worker_pb2 as pb

MAX_ERROR_TEXT = 16_384
"""Characters of an error's message that travel; an upstream's page of HTML helps nobody."""

_encode_json = msgspec.json.Encoder().encode


class Shapes(Protocol):
    """The part of a `Modality` that the codec needs."""

    @property
    def request(self) -> type[msgspec.Struct]: ...

    @property
    def delta(self) -> type[msgspec.Struct]: ...


class Codec:
    """Encodes and decodes what depends on a modality; the rest is plain functions below."""

    def __init__(self, modalities: Mapping[str, Shapes]) -> None:
        self._modalities = modalities
        # Made when first needed: a child process serves one modality or two.
        self._decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}

    def encode_call(self, call: Call) -> pb.InferRequest:
        return pb.InferRequest(
            call_id=call.id,
            modality=call.modality,
            model=call.model,
            body=call.body,
            principal=_principal_message(call.principal),
            remaining_s=call.deadline_s - time.monotonic(),
            stream=call.stream,
            key=call.key,
            native=pb.Native(dialect=call.native.dialect, body=call.native.body) if call.native else None,
            resume=call.resume,
            media=[pb.Media(field=m.field, data=m.data, kind=m.kind, name=m.name) for m in call.media],
            criticality=call.criticality,
            cost=call.cost,
            prefixes=call.prefixes,
        )

    def decode_call(self, message: pb.InferRequest, traceparent: str | None) -> Call:
        """Raises `Invalid` for a modality, role or body that this side cannot read."""
        shapes = self._modalities.get(message.modality)
        if shapes is None:
            known = ", ".join(sorted(self._modalities))
            raise Invalid(f"This worker does not know the modality {message.modality!r}; it knows {known}.")
        body, principal = message.body, message.principal
        try:
            request = self._decoder(shapes.request).decode(body)
            role = Role(principal.role)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise Invalid(f"The worker cannot read the call: {error}") from error
        return Call(
            id=message.call_id,
            modality=message.modality,
            model=message.model,
            request=request,
            body=body,
            principal=Principal(principal.key_id, role, principal.tenant_id),
            deadline_s=time.monotonic() + message.remaining_s,
            stream=message.stream,
            traceparent=traceparent,
            key=message.key,
            native=Native(message.native.dialect, message.native.body)
            if message.HasField("native")
            else None,
            resume=message.resume,
            media=tuple(Media(m.field, m.data, m.kind, m.name) for m in message.media),
            criticality=_criticality(message),
            cost=message.cost if 0 <= message.cost < math.inf else 0.0,
            prefixes=tuple(message.prefixes),
        )

    def encode_chunk(self, chunk: Chunk) -> pb.Chunk:
        match chunk:
            case Delta(payload, raw, more):
                return pb.Chunk(delta=_encode_json(payload), raw=raw, more=more)
            case Finished(usage, _, raw, batch):
                # A vendor's impossible figure, such as a negative one, must not become our failure.
                return pb.Chunk(finished=_usage_message(usage.checked()), raw=raw, batch=batch)
            case Started(model, endpoint, attempt):
                return pb.Chunk(started=pb.Started(model=model, endpoint=endpoint, attempt=attempt))

    def decode_chunks(self, modality: str, reply: pb.InferReply) -> Iterator[Chunk]:
        """Raises `UpstreamFailed` for what this side cannot read."""
        decode_delta = self._decoder(self._modalities[modality].delta).decode
        for chunk in reply.chunks:
            raw = chunk.raw if chunk.HasField("raw") else None
            match chunk.WhichOneof("kind"):
                case "delta":
                    try:
                        yield Delta(decode_delta(chunk.delta), raw, chunk.more)
                    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                        raise UpstreamFailed(
                            f"The worker sent a piece of {modality} that cannot be read: {error}"
                        ) from error
                case "finished":
                    yield Finished(_usage(chunk.finished), raw=raw, batch=chunk.batch)
                case "started":
                    started = chunk.started
                    yield Started(started.model, started.endpoint, started.attempt)
                case _:
                    raise UpstreamFailed("The worker sent a kind of chunk that this version does not know.")

    def _decoder(self, shape: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders.get(shape)
        if decoder is None:
            decoder = self._decoders[shape] = msgspec.json.Decoder(shape)
        return decoder


def encode_frame(frame: Frame) -> pb.Frame:
    return pb.Frame(data=frame.data, event=frame.event)


def decode_frame(message: pb.Frame) -> Frame:
    return Frame(message.data, message.event)


# --- errors ------------------------------------------------------------------------------------


# A plug-in's own subclass is not in the table: it travels as its nearest ancestor that every side knows.
_ERRORS = {kind.code: kind for kind in errors.family(InferHubError) if kind.__module__ == errors.__name__}


def encode_error(error: InferHubError) -> pb.Error:
    ancestors = (kind for kind in type(error).__mro__ if issubclass(kind, InferHubError))
    return pb.Error(
        code=next(kind.code for kind in ancestors if _ERRORS.get(kind.code) is kind),
        message=_clean(error.message)[:MAX_ERROR_TEXT],
        param=None if error.param is None else _clean(error.param),
        wire_code=_clean(error.wire_code),
        retry_after_s=error.retry_after_s,
        pending_s=error.pending_s,
        reason=error.reason,
    )


def decode_error(message: pb.Error) -> InferHubError:
    """The error as the class it was; a code of a newer version becomes a `ServingError`."""
    error = _ERRORS.get(message.code, ServingError)(
        message.message,
        param=message.param if message.HasField("param") else None,
        code=message.wire_code,
        retry_after_s=message.retry_after_s if message.HasField("retry_after_s") else None,
    )
    error.pending_s = message.pending_s if message.HasField("pending_s") else None
    # It becomes a header and a label: a word that this version does not know is none.
    error.reason = message.reason if message.reason in errors.REASONS else error.reason
    return error


def _clean(text: str) -> str:
    """Lone surrogates, which engines and file names may bring, are not UTF-8."""
    return text.encode(errors="replace").decode()


def _principal_message(principal: Principal) -> pb.Principal:
    return pb.Principal(key_id=principal.key_id, role=principal.role.value, tenant_id=principal.tenant_id)


def _criticality(message: pb.InferRequest) -> Criticality:
    if not message.HasField("criticality"):
        return Criticality.INTERACTIVE
    return Criticality(min(message.criticality, Criticality.BATCH))


def _usage_message(usage: Usage) -> pb.Usage:
    # Most figures of most calls are 0, which is what an absent field means.
    return pb.Usage(
        **{name: figure for name, figure in zip(_USAGE_FIELDS, _figures(usage), strict=True) if figure}
    )


def _usage(message: pb.Usage) -> Usage:
    usage = Usage(*_figures(message))
    return usage if usage.source in ("reported", "estimated", "unknown") else replace(usage, source="unknown")


# The message has the same names: a unit that is added to both travels.
_USAGE_FIELDS = tuple(field.name for field in fields(Usage))
_figures = attrgetter(*_USAGE_FIELDS)
