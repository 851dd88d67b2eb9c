"""Chat lifted to Gemini's form: a table of what becomes what, each checked by Google's own types."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities import modalities
from inferhub.testing.strict_gemini import violations_of
from inferhub.wire.gemini.contents import UNSIGNED
from inferhub.wire.gemini.request import Target, lift, lift_count
from inferhub.wire.gemini.thinking import Control, control_of

HEADERS = {"content-type": "application/json", "x-goog-api-key": "k"}
SIGNATURE = base64.b64encode(b"signed").decode()
USER = {"role": "user", "content": "Hello"}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": WEATHER}
NAMED = {"type": "function", "function": {"name": "weather"}}


def request_of(**params: Any) -> Any:
    record = modalities()["chat"]
    body = msgspec.json.encode({"model": "m", "messages": [USER], **params})
    request = msgspec.json.decode(body, type=record.request)
    record.check(request)
    return request


def lifted(control: Control = "level", **params: Any) -> Any:
    """As it goes over the wire, and free of violations."""
    name = {"level": "gemini-3-flash", "budget": "gemini-2.5-flash", "none": "gemini-2.0-flash"}[control]
    body = msgspec.json.encode(lift(request_of(**params), Target(f"models/{name}", control)))
    assert violations_of("generateContent", f"/v1beta/models/{name}:generateContent", HEADERS, body) == []
    return msgspec.json.decode(body)


def called(call_id: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "weather", "arguments": arguments},
        **more,
    }


def signed(signature: str = SIGNATURE) -> dict[str, Any]:
    return {"extra_content": {"google": {"thought_signature": signature}}}


# --- conversation ----------------------------------------------------------------------------------


def test_instructions_leave_the_conversation() -> None:
    found = lifted(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            USER,
        ]
    )
    assert found["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert found["contents"] == [{"role": "user", "parts": [{"text": "Hello"}]}]


def test_an_instruction_alone_is_asked_as_a_user() -> None:
    found = lifted(messages=[{"role": "system", "content": "Say hi."}])
    assert found == {"contents": [{"role": "user", "parts": [{"text": "Say hi."}]}]}


def test_neighbours_of_one_role_become_one_turn() -> None:
    found = lifted(messages=[USER, USER, {"role": "assistant", "content": "A"}, USER])
    assert [(c["role"], len(c["parts"])) for c in found["contents"]] == [
        ("user", 2),
        ("model", 1),
        ("user", 1),
    ]


def test_empty_texts_are_not_sent() -> None:
    parts = [{"type": "text", "text": ""}, {"type": "text", "text": "x"}]
    found = lifted(messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": ""}])
    assert found["contents"] == [{"role": "user", "parts": [{"text": "x"}]}]


@pytest.mark.parametrize(
    ("part", "inline"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/PNG;base64,aGk="}},
            {"mimeType": "image/png", "data": "aGk="},
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/svg+xml;charset=utf-8;base64,aGk="}},
            {"mimeType": "image/svg+xml", "data": "aGk="},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}},
            {"mimeType": "audio/mp3", "data": "aGk="},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
            {"mimeType": "application/pdf", "data": "aGk="},
        ),
    ],
)
def test_media_travel_inline(part: dict[str, Any], inline: dict[str, Any]) -> None:
    found = lifted(messages=[{"role": "user", "content": [part]}])
    assert found["contents"][0]["parts"] == [{"inlineData": inline}]


@pytest.mark.parametrize(
    ("part", "kind", "where"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
            Unsupported,
            "image_url.url",
        ),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, Invalid, "image_url.url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, Unsupported, "file.file_id"),
    ],
)
def test_media_that_cannot_travel_are_refused_by_name(
    part: dict[str, Any], kind: type[Exception], where: str
) -> None:
    with pytest.raises(kind) as caught:
        lifted(messages=[{"role": "user", "content": [part]}])
    assert caught.value.param == f"messages[0].content[0].{where}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("details", "resolution"),
    [(["low", "low"], "LOW"), (["low", "high"], "HIGH"), (["low", "auto"], None), ([], None)],
)
def test_detail_of_pictures(details: list[str], resolution: str | None) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": detail}}
        for detail in details
    ]
    found = lifted(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, *parts]}])
    wanted = None if resolution is None else f"MEDIA_RESOLUTION_{resolution}"
    assert found.get("generationConfig", {}).get("mediaResolution") == wanted


# --- tools -----------------------------------------------------------------------------------------


def test_calls_and_results_make_the_round_trip() -> None:
    """Parallel calls answered in the wrong order, with numbers that must not change."""
    found = lifted(
        messages=[
            USER,
            {"role": "assistant", "content": "Let me look.", "tool_calls": [
                called("a", '{"x": 1.0, "n": 12345678901234567890}', **signed()), called("b", "")]},
            {"role": "tool", "tool_call_id": "b", "content": "cold"},
            {"role": "tool", "tool_call_id": "a", "content": '{"t": 1.50}'},
            {"role": "user", "content": "And now?"},
        ],
        tools=[TOOL],
    )  # fmt: skip
    _, said, results, after = found["contents"]
    assert said == {
        "role": "model",
        "parts": [
            {"text": "Let me look."},
            {
                "functionCall": {"id": "a", "name": "weather", "args": {"x": 1.0, "n": 12345678901234567890}},
                "thoughtSignature": SIGNATURE,
            },
            {"functionCall": {"id": "b", "name": "weather", "args": {}}},
        ],
    }
    assert results == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "a", "name": "weather", "response": {"t": 1.5}}},
            {"functionResponse": {"id": "b", "name": "weather", "response": {"output": "cold"}}},
        ],
    }
    assert after == {"role": "user", "parts": [{"text": "And now?"}]}


def test_arguments_keep_the_bytes_of_their_numbers() -> None:
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [called("a", '{"x": 1.0e5}')]},
        {"role": "tool", "tool_call_id": "a", "content": '{"y": 2.50}'},
    ]
    body = msgspec.json.encode(lift(request_of(messages=messages), Target("models/m", "none")))
    assert b'{"x": 1.0e5}' in body
    assert b'{"y": 2.50}' in body


def test_a_failed_tool_says_so() -> None:
    found = lifted(
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [called("a")]},
            {"role": "tool", "tool_call_id": "a", "content": '{"a": 1}', "is_error": True},
        ]
    )
    response = found["contents"][2]["parts"][0]["functionResponse"]["response"]
    assert response == {"error": '{"a": 1}'}


def test_a_picture_that_a_tool_made() -> None:
    content = [
        {"type": "text", "text": "Here"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]
    found = lifted(
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [called("a")]},
            {"role": "tool", "tool_call_id": "a", "content": content},
        ]
    )
    response = found["contents"][2]["parts"][0]["functionResponse"]
    assert response["response"] == {"output": "Here"}
    assert response["parts"] == [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}]


@pytest.mark.parametrize(("control", "stands_in"), [("level", UNSIGNED), ("budget", None)])
def test_calls_of_others_get_googles_stand_in(control: Control, stands_in: str | None) -> None:
    """Only where the model would refuse them, and only the first of calls made together."""
    found = lifted(
        control,
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [called("a"), called("b")]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
        ],
    )
    parts = found["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [stands_in, None]


def test_arguments_that_are_no_object_are_refused() -> None:
    with pytest.raises(Invalid) as caught:
        lifted(messages=[USER, {"role": "assistant", "tool_calls": [called("a", "[1]")]}])
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


def test_thoughts_come_back_only_to_who_signed_them() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm.", "signature": SIGNATURE, "format": "google-gemini-v1"},
        {"type": "reasoning.encrypted", "data": SIGNATURE, "format": "google-gemini-v1"},
        {"type": "reasoning.text", "text": "No.", "signature": "foreign", "format": "anthropic-claude-v1"},
        {"type": "reasoning.encrypted", "data": "foreign"},
    ]
    found = lifted(messages=[USER, {"role": "assistant", "content": "Yes.", "reasoning_details": details}])
    assert found["contents"][1]["parts"] == [
        {"text": "Hm.", "thought": True, "thoughtSignature": SIGNATURE},
        {"text": "Yes.", "thoughtSignature": SIGNATURE},
    ]


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        (None, None),
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (NAMED, {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            {"mode": "ANY", "allowedFunctionNames": ["weather"]},
        ),
    ],
)
def test_tool_choice(choice: Any, calling: Any) -> None:
    found = lifted(tools=[TOOL], tool_choice=choice)
    declaration = {"name": "weather", "parametersJsonSchema": WEATHER["parameters"]}
    assert found["tools"] == [{"functionDeclarations": [declaration]}]
    assert found.get("toolConfig", {}).get("functionCallingConfig") == calling


def test_a_strict_tool_is_validated() -> None:
    found = lifted(tools=[{"type": "function", "function": {**WEATHER, "strict": True}}])
    assert found["toolConfig"]["functionCallingConfig"] == {"mode": "VALIDATED"}


def test_a_function_without_parameters_declares_none() -> None:
    found = lifted(tools=[{"type": "function", "function": {"name": "now", "description": "The time"}}])
    assert found["tools"][0]["functionDeclarations"] == [{"name": "now", "description": "The time"}]


# --- how to answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "config"),
    [
        ({"max_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"maxOutputTokens": 6}),
        ({"temperature": 0.5, "top_p": 0.25, "top_k": 3}, {"temperature": 0.5, "topP": 0.25, "topK": 3}),
        ({"temperature": 0, "seed": 0}, {"temperature": 0, "seed": 0}),
        (
            {"presence_penalty": 1, "frequency_penalty": -1},
            {"presencePenalty": 1, "frequencyPenalty": -1},
        ),
        ({"stop": "END"}, {"stopSequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stopSequences": ["a", "b"]}),
        ({"n": 3}, {"candidateCount": 3}),
        ({"n": 1}, None),
        ({"logprobs": True}, {"responseLogprobs": True}),
        ({"logprobs": True, "top_logprobs": 2}, {"responseLogprobs": True, "logprobs": 2}),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
    ],
)  # fmt: skip
def test_parameters(params: dict[str, Any], config: Any) -> None:
    assert lifted(**params).get("generationConfig") == config


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"n": 9}, "n"),
        ({"seed": 2**31}, "seed"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"thinking": {"type": "disabled"}}, "thinking"),
        (
            {"messages": [{"role": "system", "content": [{"type": "refusal", "refusal": "no"}]}, USER]},
            "messages[0].content[0]",
        ),
    ],
)
def test_what_gemini_cannot_do_is_refused_by_name(params: dict[str, Any], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lifted(**params)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("control", "params", "config"),
    [
        ("level", {}, None),
        ("level", {"reasoning_effort": "minimal"}, {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
        ("level", {"reasoning_effort": "high"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("level", {"thinking": {"type": "adaptive"}}, {"includeThoughts": True}),
        (
            "level",
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "reasoning_effort": "low"},
            {"includeThoughts": True, "thinkingBudget": 2048},
        ),
        ("budget", {"reasoning_effort": "low"}, {"includeThoughts": True, "thinkingBudget": 1024}),
        ("budget", {"reasoning_effort": "high"}, {"includeThoughts": True, "thinkingBudget": 24576}),
        ("budget", {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("budget", {"thinking": {"type": "disabled"}}, {"thinkingBudget": 0}),
        (
            "budget",
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            {"includeThoughts": False, "thinkingBudget": -1},
        ),
        ("none", {"reasoning_effort": "none"}, None),
    ],
)
def test_thinking(control: Control, params: dict[str, Any], config: Any) -> None:
    assert lifted(control, **params).get("generationConfig", {}).get("thinkingConfig") == config


def test_the_pro_models_know_no_minimum() -> None:
    request = request_of(reasoning_effort="minimal")
    found = lift(request, Target("models/gemini-3-pro-preview", "level"))
    assert found["generationConfig"]["thinkingConfig"]["thinkingLevel"] == "LOW"


@pytest.mark.parametrize(
    ("model", "control"),
    [
        ("models/gemini-2.5-pro", "budget"),
        ("gemini-2.5-flash-lite-preview-09-2025", "budget"),
        ("gemini-3-pro-preview", "level"),
        ("gemini-3.8-flash", "level"),
        ("gemini-4-argon", "level"),
        ("gemini-flash-latest", "level"),
        ("gemini-2.0-flash", "none"),
        ("gemini-1.5-pro", "none"),
        ("gemma-3-27b-it", "none"),
        ("tunedModels/mine-123", "none"),
        ("gemini-embedding-001", "none"),
    ],
)
def test_how_a_model_is_told_to_think_follows_from_its_name(model: str, control: Control) -> None:
    assert control_of(model) == control


def test_safety_settings_are_the_operators() -> None:
    target = Target("models/m", "none", {"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"})
    assert lift(request_of(), target)["safetySettings"] == [
        {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}
    ]


def test_a_count_has_everything_that_is_counted_and_nothing_else() -> None:
    request = request_of(
        messages=[{"role": "system", "content": "S"}, USER], tools=[TOOL], temperature=1, max_tokens=3
    )
    body = msgspec.json.encode(lift_count(request, Target("models/m", "none")))
    assert violations_of("countTokens", "/v1beta/models/m:countTokens", HEADERS, body) == []
    counted = msgspec.json.decode(body)["generateContentRequest"]
    assert set(counted) == {"model", "contents", "systemInstruction", "tools"}
