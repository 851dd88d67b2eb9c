"""The body of Anthropic's Messages API as clients send it, and what types alone cannot say about it.

`lower` translates it. Fields that no translation needs are not modelled; they travel in the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.modalities.schemas import check_json_schema

DIALECT = "anthropic_messages"
COUNT_DIALECT = "anthropic_count_tokens"
"""The names under which the gateway has the two addresses, and backends know the bytes of their clients."""


class Ephemeral(msgspec.Struct):
    type: Literal["ephemeral"] = "ephemeral"
    ttl: Literal["5m", "1h"] | None = None


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    url: str


class FileSource(msgspec.Struct, tag_field="type", tag="file"):
    file_id: str


class PlainSource(msgspec.Struct, tag_field="type", tag="text"):
    data: str
    media_type: Literal["text/plain"] = "text/plain"


class ContentSource(msgspec.Struct, tag_field="type", tag="content"):
    content: str | list[Text | Image]


class _Block(msgspec.Struct, tag_field="type", kw_only=True):
    cache_control: Ephemeral | None = None


class Text(_Block, tag="text"):
    text: str


class Image(_Block, tag="image"):
    source: Base64Source | UrlSource | FileSource


class Document(_Block, tag="document"):
    source: Base64Source | PlainSource | ContentSource | UrlSource | FileSource
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class SearchResult(_Block, tag="search_result"):
    source: str
    title: str
    content: list[Text]
    citations: dict[str, Any] | None = None


class ThinkingBlock(_Block, tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinking(_Block, tag="redacted_thinking"):
    data: str


class ToolUse(_Block, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(_Block, tag="tool_result"):
    tool_use_id: str
    content: str | list[Text | Image | Document | SearchResult | ToolReference] | None = None
    is_error: bool | None = None


class ServerBlock(_Block):
    """What Anthropic's own tools leave in a conversation; nobody else can read it."""


class ServerToolUse(ServerBlock, tag="server_tool_use"):
    pass


class WebSearchResult(ServerBlock, tag="web_search_tool_result"):
    pass


class WebFetchResult(ServerBlock, tag="web_fetch_tool_result"):
    pass


class CodeResult(ServerBlock, tag="code_execution_tool_result"):
    pass


class BashResult(ServerBlock, tag="bash_code_execution_tool_result"):
    pass


class EditorResult(ServerBlock, tag="text_editor_code_execution_tool_result"):
    pass


class ToolSearchResult(ServerBlock, tag="tool_search_tool_result"):
    pass


class McpToolUse(ServerBlock, tag="mcp_tool_use"):
    pass


class McpToolResult(ServerBlock, tag="mcp_tool_result"):
    pass


class ToolReference(ServerBlock, tag="tool_reference"):
    pass


class ContainerUpload(ServerBlock, tag="container_upload"):
    pass


_Server = (
    ServerToolUse
    | WebSearchResult
    | WebFetchResult
    | CodeResult
    | BashResult
    | EditorResult
    | ToolSearchResult
    | McpToolUse
    | McpToolResult
    | ToolReference
    | ContainerUpload
)
Block = (
    Text | Image | Document | SearchResult | ThinkingBlock | RedactedThinking | ToolUse | ToolResult | _Server
)


class InputMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolParam(msgspec.Struct):
    """A tool of the client; one with another `type` than `custom` is Anthropic's own."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Ephemeral | None = None

    @property
    def is_custom(self) -> bool:
        return self.type in (None, "custom")


class ToolChoiceParam(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


_Share = Annotated[float, Meta(ge=0, le=1)]


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/messages/count_tokens`: everything that is part of the prompt."""

    model: str
    messages: list[InputMessage]
    system: str | list[Text] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older name of `output_config.format`."""
    cache_control: Ephemeral | None = None
    mcp_servers: list[Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool | None = None
    temperature: _Share | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Any = None

    @property
    def max_output_tokens(self) -> int:
        return self.max_tokens


def blocks(content: str | list[Block]) -> Iterator[Block]:
    """The content's blocks; a string is one block of text."""
    if isinstance(content, str):
        yield Text(text=content)
    else:
        yield from content


def check(request: CountTokensRequest) -> None:
    """Raises `Invalid` with the path as Anthropic writes it, for example `messages.0.content.1`."""
    if not request.messages:
        raise Invalid("messages: at least one message is required.", param="messages", code="empty_array")
    _check_turns(request.messages)
    _check_tools(request)
    for place, form in (
        ("output_config.format", request.output_config.format if request.output_config else None),
        ("output_format", request.output_format),
    ):
        if form is not None:
            check_json_schema(form.schema, f"{place}.schema")


def _check_turns(messages: list[InputMessage]) -> None:
    """Every block belongs to its role, and every tool's result to a call made before it."""
    called: set[str] = set()
    for turn, message in enumerate(messages):
        for place, block in enumerate(blocks(message.content)):
            where = f"messages.{turn}.content.{place}"
            kind = str(block.__struct_config__.tag)
            if message.role not in _ROLES.get(type(block), ("user", "assistant")):
                raise Invalid(
                    f"{where}: a block of type {kind!r} may not be in a message of role {message.role!r}.",
                    param=where,
                )
            if isinstance(block, ToolUse):
                called.add(block.id)
            elif isinstance(block, ToolResult) and block.tool_use_id not in called:
                raise Invalid(
                    f"{where}.tool_use_id: {block.tool_use_id!r} is no earlier tool_use; "
                    f"there {'are ' + str(sorted(called)) if called else 'is none'}.",
                    param=f"{where}.tool_use_id",
                )


_ROLES: dict[type, tuple[str, ...]] = {
    Text: ("user", "assistant", "system"),
    ToolUse: ("assistant",),
    ThinkingBlock: ("assistant",),
    RedactedThinking: ("assistant",),
    ToolResult: ("user",),
    Image: ("user",),
    Document: ("user",),
    SearchResult: ("user",),
}


def _check_tools(request: CountTokensRequest) -> None:
    names: set[str] = set()
    for place, tool in enumerate(request.tools or ()):
        where = f"tools.{place}"
        if not tool.is_custom:
            names.add(tool.name)
            continue
        if not tool.name or tool.input_schema is None:
            missing = f"{where}.input_schema" if tool.name else f"{where}.name"
            raise Invalid(f"{missing}: is required.", param=missing, code="missing_required_parameter")
        if tool.name in names:
            raise Invalid(f"{where}.name: {tool.name!r} is there twice.", param=f"{where}.name")
        names.add(tool.name)
        check_json_schema(tool.input_schema, f"{where}.input_schema")
    choice = request.tool_choice
    if choice is None:
        return
    if choice.type in ("any", "tool") and not names:
        raise Invalid("tool_choice: needs tools.", param="tool_choice")
    if choice.type == "tool" and choice.name not in names:
        raise Invalid(
            f"tool_choice.name: {choice.name!r} is not among the tools {sorted(names)}.",
            param="tool_choice.name",
        )
