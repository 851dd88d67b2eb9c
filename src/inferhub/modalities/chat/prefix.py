"""What a model reads of a chat, in the order in which chat templates write it.

Only beginnings are compared, so it need not be any template's exact text: equal chats give equal pieces, and
others part where they differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from inferhub.modalities.chat.request import ChatRequest, Message

_encode = msgspec.json.Encoder().encode
_END = b"\x1e"
"""Between pieces: what one message ends with must not pass for what the next one begins with."""


def prefix(request: ChatRequest) -> Iterator[bytes]:
    """Tools come first, because templates put them in front of, or into, the system prompt."""
    for form in (request.tools, request.functions):
        if form:
            yield _encode(form) + _END
    for message in request.messages:
        yield from _message(message)


def _message(message: Message) -> Iterator[bytes]:
    yield message.role.encode() + b"\x1f"
    content = message.content
    if isinstance(content, str):
        yield content.encode("utf-8", "surrogatepass")
    elif content:
        yield _encode(content)
    if message.tool_calls:
        yield _encode(message.tool_calls)
    for said in (message.name, message.tool_call_id, message.refusal, message.reasoning_content):
        if said:
            yield b"\x1f" + said.encode("utf-8", "surrogatepass")
    yield _END
