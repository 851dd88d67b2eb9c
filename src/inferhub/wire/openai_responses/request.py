"""The body of `POST /v1/responses` as OpenAI documents it, and what types alone cannot say about it.

Decoded at the door. Input items and tools stay as they were written here; `items` and `lower` read them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid, Unsupported

SUMMARIES = Literal["auto", "concise", "detailed"]
_Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]

Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class PlainFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class AnyJsonFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    name: _Name
    schema: dict[str, Any]
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    format: PlainFormat | AnyJsonFormat | JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: SUMMARIES | None = None
    generate_summary: SUMMARIES | None = None
    """The older name of `summary`."""

    @property
    def wanted_summary(self) -> str | None:
        return self.summary or self.generate_summary


class ResponsesStreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class FunctionTool(msgspec.Struct):
    """The one kind of tool that every backend knows."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AllowedToolsChoice(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/responses`."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None

    @property
    def is_kept(self) -> bool:
        """OpenAI keeps an answer unless it is told not to."""
        return self.store is not False


def check(request: ResponsesRequest) -> None:
    """Raises `Invalid`, or `Unsupported` with the way around."""
    if request.background:
        raise Unsupported(
            "'background' is not offered here; leave it out and use 'stream' to follow a long answer.",
            param="background",
        )
    if request.conversation is not None:
        raise Unsupported(
            "'conversation' is not offered here; continue with 'previous_response_id', or send the items.",
            param="conversation",
        )
    if request.prompt is not None:
        raise Unsupported(
            "'prompt' names a template that a vendor keeps; send its text as 'instructions' and 'input'.",
            param="prompt",
        )
    if request.input is None:
        raise Invalid("'input' is required.", param="input", code="missing_required_parameter")
    if request.input == []:
        raise Invalid("'input' is empty; send at least one item.", param="input", code="empty_array")
    if request.stream_options is not None and not request.stream:
        raise Invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
