"""About how many tokens a Messages prompt has, told to clients before the model has counted.

Unlike what admission reserves, which errs upwards, this is the likeliest number: clients plan with it.
"""

from __future__ import annotations

import msgspec

from inferhub.wire.anthropic_messages.request import (
    Base64Source,
    Block,
    ContentSource,
    CountTokensRequest,
    Document,
    Image,
    PlainSource,
    RedactedThinking,
    SearchResult,
    Text,
    ThinkingBlock,
    ToolResult,
    ToolUse,
    blocks,
)

_BYTES_PER_TOKEN = 4
_TURN_TOKENS = 4
# Anthropic counts a picture by its area; this is one of 1000 by 1000.
_IMAGE_TOKENS = 1300
_encode = msgspec.json.encode


def prompt_tokens(asked: CountTokensRequest) -> int:
    """At least 1."""
    total = _TURN_TOKENS * len(asked.messages)
    if isinstance(asked.system, str):
        total += _text(asked.system)
    else:
        total += sum(_text(block.text) for block in asked.system or ())
    for message in asked.messages:
        total += sum(map(_block, blocks(message.content)))
    for tool in asked.tools or ():
        total += _text(tool.name) + _text(tool.description or "")
        total += len(_encode(tool.input_schema)) // _BYTES_PER_TOKEN
    return max(total, 1)


def _text(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // _BYTES_PER_TOKEN)


def _block(block: Block) -> int:
    match block:
        case Text():
            return _text(block.text)
        case Image():
            return _IMAGE_TOKENS
        case Document():
            return _document(block)
        case SearchResult():
            return _text(block.title) + _text(block.source) + sum(_text(b.text) for b in block.content)
        case ThinkingBlock():
            return _text(block.thinking)
        case RedactedThinking():
            return _text(block.data)
        case ToolUse():
            return _text(block.name) + len(_encode(block.input)) // _BYTES_PER_TOKEN
        case ToolResult():
            inner = block.content
            return _text(inner) if isinstance(inner, str) else sum(map(_block, inner or ()))
    return 0


def _document(block: Document) -> int:
    source = block.source
    tokens = _text(block.title or "") + _text(block.context or "")
    if isinstance(source, PlainSource):
        return tokens + _text(source.data)
    if isinstance(source, ContentSource):
        inner = source.content
        return tokens + (_text(inner) if isinstance(inner, str) else sum(map(_block, inner)))
    # Base64 is a third longer than what it holds, and a PDF's text is a fraction of its bytes.
    return tokens + (len(source.data) // 16 if isinstance(source, Base64Source) else _IMAGE_TOKENS)
