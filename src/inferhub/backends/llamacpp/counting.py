"""How many tokens a prompt has, by the engine's own template and tokenizer, before anything is computed.

The engine says so in its first event, and is stopped there. Called by `backend`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from inferhub.backends.llamacpp.engine import Engine, Request, failure_of
from inferhub.backends.llamacpp.slots import Channel, Ended, Slots
from inferhub.core.errors import UpstreamFailed


class _Progress(msgspec.Struct):
    total: int


class _Failure(msgspec.Struct):
    n_prompt_tokens: int | None = None


class _Event(msgspec.Struct):
    prompt_progress: _Progress | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


async def count(engine: Engine, slots: Slots, request: Request) -> int:
    """Tokens of the request's prompt; it may be longer than the context. Needs a slot for a moment."""
    channel = Channel()
    try:
        slots.start(
            channel, [0], lambda _, on_event: engine.serve(request, lambda data: on_event(data) or True)
        )
        for item in await channel.take():
            if not isinstance(item, Ended):
                return _read(item.data, request)
            if item.error is not None:
                raise item.error
    finally:
        channel.close()
    raise UpstreamFailed("The engine did not say how long the prompt is.")


def silent(request: Request) -> Request:
    """The same prompt without what only the answer needs, which would cost a grammar."""
    body = msgspec.json.decode(request.body, type=dict[str, Any])
    body.pop("response_format", None)
    body["max_tokens"] = 1
    return replace(request, body=msgspec.json.encode(body))


def _read(data: bytes, request: Request) -> int:
    try:
        event = _decode(data)
        if event.error is not None:
            tokens = msgspec.convert(event.error, _Failure).n_prompt_tokens
            if tokens is None:
                raise failure_of(event.error, request)
            return tokens
    except msgspec.MsgspecError as error:
        raise UpstreamFailed("The engine sent an event that cannot be read.") from error
    if event.prompt_progress is None:
        raise UpstreamFailed("The engine did not say how long the prompt is.")
    return event.prompt_progress.total
