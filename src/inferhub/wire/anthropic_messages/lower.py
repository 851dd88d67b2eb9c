"""From a Messages request to a chat request: `translate`, called by the gateway's dialects. Pure.

It builds the JSON of the chat request and reads the struct from that, so that both always say the same.
What chat has no words for is ignored and named where leaving it out does no harm; elsewhere it is a need,
which only a backend that sends Anthropic the client's own bytes can meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.chat import ChatRequest
from inferhub.wire.anthropic_messages.request import (
    COUNT_DIALECT,
    DIALECT,
    Base64Source,
    Block,
    ContentSource,
    CountTokensRequest,
    Document,
    FileSource,
    Image,
    InputMessage,
    MessagesRequest,
    PlainSource,
    RedactedThinking,
    SearchResult,
    ServerBlock,
    Text,
    ThinkingBlock,
    ToolResult,
    ToolUse,
    UrlSource,
    blocks,
)

Tree = dict[str, Any]

THOUGHT_FORMAT = "anthropic-claude-v1"
"""Of thoughts that only Anthropic can read again."""

# Chat has one word fewer; its strongest is the nearest.
_EFFORTS = {"max": "xhigh"}
_TIERS = {"auto": "auto", "standard_only": "default"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

_encode = msgspec.json.encode


class Lowered(NamedTuple):
    request: ChatRequest
    body: bytes
    ignored: tuple[str, ...]
    """Parameters of the original that were left out."""
    needs: dict[str, str]
    """The feature of a backend that speaks this dialect → what chat cannot say, if anything."""


@dataclass(slots=True)
class _Lost:
    """What the translation leaves out."""

    ignored: set[str] = field(default_factory=set)
    needed: list[str] = field(default_factory=list)
    """Paths of what must not be left out."""


def lower(asked: CountTokensRequest) -> Lowered:
    """Raises `Invalid` or `Unsupported` with the parameter as Anthropic calls it."""
    lost = _Lost()
    _note_servers(asked, lost)
    tree: Tree = {"model": asked.model, "messages": list(_messages(asked, lost))}
    tools = [_tool(tool) for tool in asked.tools or () if tool.is_custom]
    if tools:
        tree["tools"] = tools
    _choose(asked, tree)
    _think(asked, tree, lost)
    if isinstance(asked, MessagesRequest):
        _answer(asked, tree)
    if asked.cache_control is not None and tree["messages"]:
        _mark_last(tree["messages"], msgspec.to_builtins(asked.cache_control))
    try:
        request = msgspec.convert(tree, ChatRequest)
    except msgspec.ValidationError as error:
        raise _beyond_chat(error) from error
    dialect = DIALECT if isinstance(asked, MessagesRequest) else COUNT_DIALECT
    needs = {dialect: lost.needed[0]} if lost.needed else {}
    return Lowered(request, _encode(tree), tuple(sorted(lost.ignored)), needs)


def _beyond_chat(error: msgspec.ValidationError) -> Invalid:
    """A list that is too long, or a name, for chat: the few limits that Anthropic sets higher."""
    what, _, place = str(error).partition(" - at `$.")
    param = place.rstrip("`")
    param = "stop_sequences" if param == "stop" else param.replace("[", ".").replace("]", "")
    return Invalid(f"{param}: {what}.", param=param.replace(".function.name", ".name"))


def _note_servers(asked: CountTokensRequest, lost: _Lost) -> None:
    """What only Anthropic's own servers can run."""
    tools = enumerate(asked.tools or ())
    # The type is a step of the path, as in Anthropic's own messages.
    lost.needed += [f"tools.{place}.{(tool.type or '')[:64]}" for place, tool in tools if not tool.is_custom]
    if asked.mcp_servers:
        lost.needed.append("mcp_servers")
    if isinstance(asked, MessagesRequest) and asked.container is not None:
        lost.needed.append("container")


# --- messages ---------------------------------------------------------------------------------


def _messages(asked: CountTokensRequest, lost: _Lost) -> Iterator[Tree]:
    if asked.system:
        yield {"role": "system", "content": _system(asked.system)}
    for turn, message in enumerate(asked.messages):
        where = f"messages.{turn}.content"
        if message.role == "assistant":
            yield _said(message, where, lost)
        else:
            yield from _given(message, where, lost)


def _system(system: str | list[Text]) -> str | list[Tree]:
    return system if isinstance(system, str) else [_text(block) for block in system]


def _given(message: InputMessage, where: str, lost: _Lost) -> Iterator[Tree]:
    """A user's turn: what the tools answered comes first, as Anthropic wants it, then what the user says."""
    rest: list[Tree] = []
    for place, block in enumerate(blocks(message.content)):
        if isinstance(block, ToolResult):
            yield _tool_message(block, f"{where}.{place}", lost)
        else:
            rest += _parts(block, f"{where}.{place}", lost)
    if rest:
        is_plain = isinstance(message.content, str)
        yield {"role": message.role, "content": message.content if is_plain else rest}


def _tool_message(block: ToolResult, where: str, lost: _Lost) -> Tree:
    content: str | list[Tree] = ""
    if isinstance(block.content, str):
        content = block.content
    elif block.content:
        content = [
            part
            for place, inner in enumerate(block.content)
            for part in _parts(inner, f"{where}.content.{place}", lost)
        ]
    message: Tree = {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    if block.is_error is not None:
        message["is_error"] = block.is_error
    return _marked(message, block)


def _said(message: InputMessage, where: str, lost: _Lost) -> Tree:
    """The model's turn: text, thoughts and calls, each in the order in which it came."""
    texts: list[Tree] = []
    calls: list[Tree] = []
    details: list[Tree] = []
    said: Tree = {"role": "assistant"}
    for place, block in enumerate(blocks(message.content)):
        match block:
            case Text():
                texts.append(_text(block))
            case ThinkingBlock() | RedactedThinking():
                details.append(_thought(block, len(details)))
            case ToolUse():
                function = {"name": block.name, "arguments": _encode(block.input).decode()}
                calls.append({"id": block.id, "type": "function", "function": function})
                _marked(said, block)
            case ServerBlock():
                lost.needed.append(f"{where}.{place}")
            case _:
                raise _foreign(block, f"{where}.{place}")
    said["content"] = _joined(texts, may_be_none=bool(calls))
    if details:
        said["reasoning_details"] = details
        thoughts = "".join(detail.get("text", "") for detail in details)
        if thoughts:
            said["reasoning_content"] = thoughts
    if calls:
        said["tool_calls"] = calls
    return said


def _joined(texts: Sequence[Tree], *, may_be_none: bool) -> str | list[Tree] | None:
    """One plain text is a string: many servers read nothing else in an assistant's message."""
    if not texts:
        return None if may_be_none else ""
    if len(texts) == 1 and "cache_control" not in texts[0]:
        return str(texts[0]["text"])
    return list(texts)


def _thought(block: ThinkingBlock | RedactedThinking, index: int) -> Tree:
    if isinstance(block, RedactedThinking):
        return {
            "type": "reasoning.encrypted",
            "data": block.data,
            "format": THOUGHT_FORMAT,
            "index": index,
        }
    thought: Tree = {"type": "reasoning.text", "text": block.thinking, "index": index}
    if block.signature:
        thought |= {"signature": block.signature, "format": THOUGHT_FORMAT}
    return thought


# --- parts ------------------------------------------------------------------------------------


def _parts(block: Block, where: str, lost: _Lost) -> Iterator[Tree]:
    match block:
        case Text():
            yield _text(block)
        case Image():
            if isinstance(block.source, FileSource):
                lost.needed.append(f"{where}.source")
            else:
                yield _image(block, block.source)
        case Document():
            if (block.citations or {}).get("enabled"):
                lost.ignored.add("citations")
            yield from _document(block, where, lost)
        case SearchResult():
            if (block.citations or {}).get("enabled"):
                lost.ignored.add("citations")
            texts = [block.title, block.source, *(inner.text for inner in block.content)]
            yield _marked({"type": "text", "text": "\n".join(texts)}, block)
        case ServerBlock():
            lost.needed.append(where)
        case _:
            raise _foreign(block, where)


def _text(block: Text) -> Tree:
    return _marked({"type": "text", "text": block.text}, block)


def _image(block: Image, source: Base64Source | UrlSource) -> Tree:
    url = source.url if isinstance(source, UrlSource) else _data_url(source)
    return _marked({"type": "image_url", "image_url": {"url": url}}, block)


def _document(block: Document, where: str, lost: _Lost) -> Iterator[Tree]:
    source = block.source
    if isinstance(source, PlainSource):
        texts = [text for text in (block.title, block.context, source.data) if text]
        yield _marked({"type": "text", "text": "\n".join(texts)}, block)
        return
    heading = (
        [block.context] if isinstance(source, Base64Source | FileSource) else [block.title, block.context]
    )
    yield from ({"type": "text", "text": text} for text in heading if text)
    if isinstance(source, ContentSource):
        inner = [Text(text=source.content)] if isinstance(source.content, str) else source.content
        for place, piece in enumerate(inner):
            yield from _parts(piece, f"{where}.source.content.{place}", lost)
        return
    file: Tree = {"filename": block.title} if block.title else {}
    if isinstance(source, FileSource):
        file["file_id"] = source.file_id
    else:
        file["file_data"] = _data_url(source) if isinstance(source, Base64Source) else source.url
    yield _marked({"type": "file", "file": file}, block)


def _data_url(source: Base64Source) -> str:
    return f"data:{source.media_type};base64,{source.data}"


def _marked(tree: Tree, block: Any) -> Tree:
    """With the block's mark for the prompt cache."""
    if block.cache_control is not None:
        mark = {"type": block.cache_control.type}
        if block.cache_control.ttl:
            mark["ttl"] = block.cache_control.ttl
        tree["cache_control"] = mark
    return tree


def _mark_last(messages: list[Tree], mark: Any) -> None:
    """A mark for the whole request means its last block."""
    messages[-1].setdefault("cache_control", {k: v for k, v in mark.items() if v is not None})


def _foreign(block: Block, where: str) -> Unsupported:
    kind = str(block.__struct_config__.tag)
    return Unsupported(f"{where}: a block of type {kind!r} cannot be used here.", param=where)


# --- the rest of the request ------------------------------------------------------------------


def _tool(tool: Any) -> Tree:
    function: Tree = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return _marked({"type": "function", "function": function}, tool)


def _choose(asked: CountTokensRequest, tree: Tree) -> None:
    choice = asked.tool_choice
    names = [tool["function"]["name"] for tool in tree.get("tools", ())]
    if choice is None or (choice.type == "tool" and choice.name not in names):
        # One of Anthropic's own tools, whose call is not for chat to choose.
        return
    if choice.type == "any" and not names:
        return
    if choice.type == "tool":
        tree["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        tree["tool_choice"] = _CHOICES[choice.type]
    if choice.disable_parallel_tool_use is not None:
        tree["parallel_tool_calls"] = not choice.disable_parallel_tool_use


def _think(asked: CountTokensRequest, tree: Tree, lost: _Lost) -> None:
    thinking, config = asked.thinking, asked.output_config
    if thinking is not None:
        if thinking.type == "between_tools":
            lost.needed.append("thinking.type")
        elif thinking.type != "adaptive" or thinking.display:
            named = (("type", thinking.type), ("budget_tokens", thinking.budget_tokens))
            tree["thinking"] = {k: v for k, v in (*named, ("display", thinking.display)) if v is not None}
    if config is not None and config.effort is not None:
        tree["reasoning_effort"] = _EFFORTS.get(config.effort, config.effort)
    form = (config.format if config is not None else None) or asked.output_format
    if form is not None:
        schema = {"name": "answer", "strict": True, "schema": form.schema}
        tree["response_format"] = {"type": "json_schema", "json_schema": schema}


def _answer(asked: MessagesRequest, tree: Tree) -> None:
    tree["max_tokens"] = asked.max_tokens
    named = {
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k or None,
        "stop": asked.stop_sequences or None,
        "user": asked.metadata.user_id if asked.metadata else None,
        "service_tier": _TIERS[asked.service_tier] if asked.service_tier else None,
    }
    tree |= {name: value for name, value in named.items() if value is not None}
