"""The turns of a chat conversation as Anthropic's: two roles that alternate, and content in blocks. Pure.

Instructions go before the conversation, wherever they were in it; consecutive messages of one role become
one turn; a tool's answers belong to the user's turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.chat import (
    AudioPart,
    CacheControl,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningDetail,
    TextPart,
    ToolCall,
)
from inferhub.wire.foreign import NOT_JSON

Tree = dict[str, Any]

_IMAGES = {"image/jpeg", "image/png", "image/gif", "image/webp"}


class Turns(NamedTuple):
    system: list[Tree]
    messages: list[Tree]


def lift_turns(messages: Sequence[Message]) -> Turns:
    """Raises `Unsupported` or `Invalid` naming the part."""
    system: list[Tree] = []
    turns: list[Tree] = []
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if message.role in ("system", "developer"):
            system += _blocks(message, where)
        elif message.role == "assistant":
            _add(turns, "assistant", list(_said(message, where)))
        elif message.role == "tool":
            _add(turns, "user", [_result(message, where)])
        else:
            _add(turns, "user", _blocks(message, where))
    return Turns(system, turns)


def marked(tree: Tree, mark: CacheControl | None) -> Tree:
    if mark is not None:
        tree["cache_control"] = {"type": mark.type, **({"ttl": mark.ttl} if mark.ttl else {})}
    return tree


def _add(turns: list[Tree], role: str, blocks: list[Tree]) -> None:
    """To the turn before where it is of the same role. What the tools answered leads a user's turn."""
    if not blocks:
        return
    if not turns or turns[-1]["role"] != role:
        turns.append({"role": role, "content": blocks})
        return
    content = turns[-1]["content"]
    if blocks[0]["type"] == "tool_result":
        lead = sum(block["type"] == "tool_result" for block in content)
        content[lead:lead] = blocks
    else:
        content += blocks


def _blocks(message: Message, where: str) -> list[Tree]:
    """The content; Anthropic refuses empty texts, so they are left out."""
    content = message.content or ""
    if isinstance(content, str):
        blocks = [{"type": "text", "text": content}] if content else []
    else:
        blocks = [
            block for place, part in enumerate(content) for block in _part(part, f"{where}.content[{place}]")
        ]
    if blocks and message.cache_control is not None:
        marked(blocks[-1], message.cache_control)
    return blocks


def _result(message: Message, where: str) -> Tree:
    result: Tree = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    content = message.content
    if isinstance(content, str) and content:
        result["content"] = content
    elif content:
        unmarked = msgspec.structs.replace(message, cache_control=None)
        result["content"] = _blocks(unmarked, where)
    if message.is_error is not None:
        result["is_error"] = message.is_error
    return marked(result, message.cache_control)


def _said(message: Message, where: str) -> Iterator[Tree]:
    """Thoughts come first, as they came; then the text, then the calls."""
    for detail in message.reasoning_details or ():
        yield from _thought(detail)
    calls = message.tool_calls or []
    unmarked = msgspec.structs.replace(message, cache_control=None) if calls else message
    yield from _blocks(unmarked, where)
    if message.refusal:
        yield {"type": "text", "text": message.refusal}
    for place, call in enumerate(calls):
        block = _call(call, f"{where}.tool_calls[{place}]")
        is_last = place == len(calls) - 1
        yield marked(block, message.cache_control) if is_last else block


def _thought(detail: ReasoningDetail) -> Iterator[Tree]:
    """Only its own thoughts: Anthropic refuses what it has not signed."""
    if detail.format is not None and not detail.format.startswith("anthropic"):
        return
    if detail.type == "reasoning.encrypted" and detail.data and detail.format:
        yield {"type": "redacted_thinking", "data": detail.data}
    elif detail.type == "reasoning.text" and detail.signature:
        yield {"type": "thinking", "thinking": detail.text or "", "signature": detail.signature}


def _call(call: ToolCall, where: str) -> Tree:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except NOT_JSON as error:
        raise Invalid(
            f"'{where}.function.arguments' is not JSON.", param=f"{where}.function.arguments"
        ) from error
    if not isinstance(arguments, dict):
        raise Invalid(
            f"'{where}.function.arguments' must be a JSON object.", param=f"{where}.function.arguments"
        )
    return {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments}


# --- parts ------------------------------------------------------------------------------------


def _part(part: Part, where: str) -> Iterator[Tree]:
    match part:
        case TextPart():
            if part.text:
                yield marked({"type": "text", "text": part.text}, part.cache_control)
        case ImagePart():
            source = _image_source(part.image_url.url, f"{where}.image_url.url")
            yield marked({"type": "image", "source": source}, part.cache_control)
        case FilePart():
            yield marked(_document(part, where), part.cache_control)
        case AudioPart():
            raise Unsupported(f"'{where}': this model takes no audio.", param=where)
        case _:
            if part.refusal:
                yield {"type": "text", "text": part.refusal}


def _image_source(url: str, where: str) -> Tree:
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    media, data = _data_url(url, where)
    if media not in _IMAGES:
        allowed = ", ".join(sorted(_IMAGES))
        raise Unsupported(f"'{where}' is {media[:40]!r}; this model takes {allowed}.", param=where)
    return {"type": "base64", "media_type": media, "data": data}


def _document(part: FilePart, where: str) -> Tree:
    file = part.file
    if file.file_id is not None:
        document: Tree = {"type": "document", "source": {"type": "file", "file_id": file.file_id}}
    else:
        where = f"{where}.file.file_data"
        if file.file_data is None:
            raise Invalid(f"'{where}' is required.", param=where, code="missing_required_parameter")
        document = _document_from(file.file_data, where)
    if file.filename and document["type"] == "document":
        document["title"] = file.filename
    return document


def _document_from(url: str, where: str) -> Tree:
    if url.startswith("https://"):
        return {"type": "document", "source": {"type": "url", "url": url}}
    media, data = _data_url(url, where)
    if media in _IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}
    if media == "application/pdf":
        return {"type": "document", "source": {"type": "base64", "media_type": media, "data": data}}
    if media == "text/plain":
        try:
            text = msgspec.convert(data, bytes).decode()
        except (msgspec.ValidationError, UnicodeDecodeError) as error:
            raise Invalid(f"'{where}' is not UTF-8 text in base64.", param=where) from error
        return {"type": "document", "source": {"type": "text", "media_type": media, "data": text}}
    raise Unsupported(f"'{where}' is {media[:40]!r}; this model takes PDF and plain text.", param=where)


def _data_url(url: str, where: str) -> tuple[str, str]:
    """(media type, base64). Raises `Invalid`."""
    head, comma, data = url.partition(",")
    scheme, _, rest = head.partition(":")
    media, *options = rest.split(";")
    if scheme.lower() != "data" or not comma or "base64" not in (o.strip().lower() for o in options):
        raise Invalid(f"'{where}' must be an https:// address or 'data:<type>;base64,…'.", param=where)
    return media.strip().lower(), unquote_to_bytes(data).decode("ascii", "replace") if "%" in data else data
