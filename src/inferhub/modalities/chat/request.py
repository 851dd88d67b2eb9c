"""The chat request as OpenAI documents it, and what types alone cannot say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.modalities.chat.deltas import ReasoningDetail
from inferhub.modalities.schemas import check_json_schema
from inferhub.modalities.tokens import MAX_COUNT, Seed, StreamOptions


class CacheControl(msgspec.Struct):
    """Where a prompt cache may end. Anthropic's name, which OpenAI-style gateways have taken over."""

    type: Literal["ephemeral"] = "ephemeral"
    ttl: Literal["5m", "1h"] | None = None


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None


class ImageUrl(msgspec.Struct):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl
    cache_control: CacheControl | None = None


class InputAudio(msgspec.Struct):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class FileRef(msgspec.Struct):
    file_data: str | None = None
    """A `data:` URL."""
    file_id: str | None = None
    filename: str | None = None


class FilePart(msgspec.Struct, tag_field="type", tag="file"):
    file: FileRef
    cache_control: CacheControl | None = None


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    extra_content: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    """What a vendor wants back with the call, such as Google's `{"google": {"thought_signature": …}}`."""


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    """The model's own thoughts as it gave them; vendors that sign them want them back unchanged."""
    cache_control: CacheControl | None = None
    is_error: bool | None = None
    """Of a tool's answer: the tool failed."""


# The types bind what comes from other dialects too, whose vendors take more; `check` has OpenAI's own limits.
_Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,128}$")]
_MAX_STOPS = 4
_MAX_TOOLS = 128
_MAX_NAME_CHARS = 64


class FunctionSpec(msgspec.Struct):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: Literal["function"]
    function: FunctionSpec
    cache_control: CacheControl | None = None


class NamedFunction(msgspec.Struct):
    name: str


class NamedTool(msgspec.Struct, tag_field="type", tag="function"):
    function: NamedFunction


class AllowedToolSet(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class AllowedTools(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedToolSet


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class SchemaSpec(msgspec.Struct):
    name: _Name
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: SchemaSpec


ResponseFormat = TextFormat | JsonFormat | SchemaFormat


class Thinking(msgspec.Struct):
    """A budget for thought in tokens, as Anthropic and Google have it; finer than `reasoning_effort`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None = None
    display: Literal["summarized", "omitted"] | None = None


_Tokens = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class ChatRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    seed: Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    verbosity: Literal["low", "medium", "high"] | None = None
    store: bool | None = None
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    thinking: Thinking | None = None
    top_k: _Tokens | None = None

    @property
    def max_output_tokens(self) -> int | None:
        """The newer name wins where a client sends both."""
        return self.max_completion_tokens or self.max_tokens


def check(request: ChatRequest) -> None:
    if not request.messages:
        raise Invalid("'messages' is empty; send at least one message.", param="messages", code="empty_array")
    if request.stream_options is not None and not request.stream:
        raise Invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise Invalid("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    _check_messages(request.messages)
    _check_files(request.messages)
    _check_tools(request)
    if isinstance(request.stop, list):
        _check_limit("stop", len(request.stop), _MAX_STOPS, "strings")
    if isinstance(request.response_format, SchemaFormat):
        spec = request.response_format.json_schema
        _check_limit("response_format.json_schema.name", len(spec.name), _MAX_NAME_CHARS, "characters")
        check_json_schema(spec.schema or {}, "response_format.json_schema.schema")


def _check_limit(param: str, count: int, limit: int, unit: str) -> None:
    if count > limit:
        raise Invalid(f"'{param}' has {count} {unit}; at most {limit} are allowed.", param=param)


def _check_messages(messages: Sequence[Message]) -> None:
    """Every message says something, and every tool answer belongs to a call made before it."""
    open_calls: set[str] = set()
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if message.role == "assistant":
            open_calls.update(call.id for call in message.tool_calls or ())
            if message.content is None and not message.tool_calls and message.refusal is None:
                raise Invalid(
                    f"'{where}' has neither 'content' nor 'tool_calls'.",
                    param=f"{where}.content",
                    code="missing_required_parameter",
                )
            continue
        if message.content is None:
            raise Invalid(
                f"'{where}.content' is required for role '{message.role}'.",
                param=f"{where}.content",
                code="missing_required_parameter",
            )
        if message.role == "tool" and message.tool_call_id not in open_calls:
            raise Invalid(
                f"'{where}.tool_call_id' is {message.tool_call_id!r}; "
                f"earlier assistant messages called {sorted(open_calls) or 'no tool'}.",
                param=f"{where}.tool_call_id",
            )


def _check_files(messages: Sequence[Message]) -> None:
    for position, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, FilePart) and not (part.file.file_data or part.file.file_id):
                where = f"messages[{position}].content[{place}].file"
                raise Invalid(
                    f"'{where}' has neither 'file_data' nor 'file_id'.",
                    param=where,
                    code="missing_required_parameter",
                )


def _check_tools(request: ChatRequest) -> None:
    if request.tools == []:
        raise Invalid(
            "'tools' is empty; name at least one, or leave it out.", param="tools", code="empty_array"
        )
    names = [tool.function.name for tool in request.tools or ()]
    _check_limit("tools", len(names), _MAX_TOOLS, "tools")
    for position, name in enumerate(names):
        _check_limit(f"tools[{position}].function.name", len(name), _MAX_NAME_CHARS, "characters")
        if name in names[:position]:
            raise Invalid(f"Two of 'tools' are called {name!r}.", param=f"tools[{position}].function.name")
    if request.tool_choice not in (None, "none", "auto") and not names:
        raise Invalid("'tool_choice' needs 'tools'.", param="tool_choice")
    for name, param in _chosen(request.tool_choice):
        if name not in names:
            raise Invalid(f"'tool_choice' names {name!r}; 'tools' has {names}.", param=param)
    for position, tool in enumerate(request.tools or ()):
        check_json_schema(tool.function.parameters or {}, f"tools[{position}].function.parameters")


def _chosen(choice: ToolChoice | None) -> Iterator[tuple[str, str]]:
    """Each tool that the choice names, and the parameter that names it."""
    match choice:
        case NamedTool(function=function):
            yield function.name, "tool_choice.function.name"
        case AllowedTools(allowed_tools=allowed):
            for position, tool in enumerate(allowed.tools):
                named = tool.get("function")
                name = named.get("name") if isinstance(named, dict) else None
                yield str(name), f"tool_choice.allowed_tools.tools[{position}]"


def requires(request: ChatRequest) -> Mapping[str, str]:
    asked: dict[str, bool] = {
        "stream": bool(request.stream),
        "tools": bool(request.tools),
        "tool_choice_named": isinstance(request.tool_choice, NamedTool | AllowedTools),
        "json_object": isinstance(request.response_format, JsonFormat),
        "json_schema": isinstance(request.response_format, SchemaFormat),
        "logprobs": bool(request.logprobs),
        "n": (request.n or 1) > 1,
        "seed": request.seed is not None,
        "logit_bias": bool(request.logit_bias),
        "reasoning_effort": request.reasoning_effort not in (None, "none"),
        "thinking": request.thinking is not None and request.thinking.type != "disabled",
        "top_k": request.top_k is not None,
        "audio_output": "audio" in (request.modalities or ()) or request.audio is not None,
        "prediction": request.prediction is not None,
        "web_search_options": request.web_search_options is not None,
        "functions": request.functions is not None or request.function_call is not None,
        "verbosity": request.verbosity not in (None, "medium"),
        "store": bool(request.store),
        # What InferHub itself does something about is asked of no model.
        "service_tier": request.service_tier not in (None, "auto", "default", "flex", "priority"),
    }
    needed = {feature: _PARAM.get(feature, feature) for feature, is_asked in asked.items() if is_asked}
    for position, message in enumerate(request.messages):
        for part in message.content if isinstance(message.content, list) else ():
            feature = _PART_FEATURE.get(type(part))
            if feature:
                needed.setdefault(feature, f"messages[{position}].content")
    return needed


_PARAM = {
    "tool_choice_named": "tool_choice",
    "json_object": "response_format",
    "json_schema": "response_format",
    "audio_output": "modalities",
}
_PART_FEATURE: Mapping[type, str] = {ImagePart: "vision", AudioPart: "audio_input", FilePart: "file_input"}
