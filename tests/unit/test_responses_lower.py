"""A Responses request as chat: what items become, what is refused and where, what only a vendor can do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.chat import MODALITY, ChatRequest, ReasoningDetail
from inferhub.wire.openai_responses.lower import Lowered, lower
from inferhub.wire.openai_responses.numbering import numbered
from inferhub.wire.openai_responses.request import ResponsesRequest, check
from inferhub.wire.openai_responses.thoughts import pack, unpack

TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}
USER = {"role": "user", "content": "go"}


def asked(given: Any = "hi", **fields: Any) -> ResponsesRequest:
    request = msgspec.convert({"model": "m", "input": given, **fields}, ResponsesRequest)
    check(request)
    return request


def lowered(given: Any = "hi", **fields: Any) -> Lowered:
    found = lower(asked(given, **fields))
    # The body that a backend sends on is the request that the pipeline knows.
    assert msgspec.json.decode(found.body, type=ChatRequest) == found.request
    MODALITY.check(found.request)
    return found


def messages(given: Any, **fields: Any) -> list[dict[str, Any]]:
    tree: dict[str, Any] = msgspec.json.decode(lowered(given, **fields).body)
    found: list[dict[str, Any]] = tree["messages"]
    return found


def call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id: str, said: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def test_a_text_and_instructions_are_two_messages() -> None:
    assert messages("hi", instructions="Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
    ],
)  # fmt: skip
def test_every_form_of_a_message_is_the_same_message(item: dict[str, Any]) -> None:
    assert messages([item]) == [{"role": "user", "content": "a"}]


def test_parts_keep_their_order_and_their_meaning() -> None:
    [message] = messages(
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "high"},
                    {
                        "type": "input_file",
                        "file_data": "data:application/pdf;base64,AA==",
                        "filename": "a.pdf",
                    },
                    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                ],
            }
        ]
    )
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "high"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]


def test_a_file_may_be_an_address() -> None:
    part = {"type": "input_file", "file_url": "https://x.example/a.pdf"}
    [message] = messages([{"role": "user", "content": [part]}])
    assert message["content"] == [{"type": "file", "file": {"file_data": "https://x.example/a.pdf"}}]


def test_calls_join_the_message_before_them_and_outputs_become_tool_messages() -> None:
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]}
    found = messages(
        [
            USER,
            said,
            call("a"),
            call("b", "g"),
            output("b"),
            output("a", [{"type": "input_text", "text": "x"}]),
        ]
    )
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "tool"]
    assert found[1]["content"] == "Wait."
    assert [c["id"] for c in found[1]["tool_calls"]] == ["a", "b"]
    assert [m["tool_call_id"] for m in found[2:]] == ["b", "a"]
    assert found[3]["content"] == [{"type": "text", "text": "x"}]


def test_a_second_round_of_calls_is_a_second_message() -> None:
    found = messages([USER, call("a"), output("a"), call("b"), output("b")])
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant", "tool"]
    assert found[1]["content"] is None


def test_thoughts_go_with_what_they_led_to() -> None:
    details = [ReasoningDetail("reasoning.text", text="Hm.", signature="s", format="anthropic-claude-v1")]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    found = messages([USER, {**thought, "encrypted_content": pack(details)}, call("a"), output("a"), USER])
    assert found[1]["reasoning_content"] == "Hm."
    assert found[1]["reasoning_details"] == msgspec.to_builtins(details)
    vendor = messages([USER, {**thought, "encrypted_content": "gAAA"}, {"role": "assistant", "content": "x"}])
    assert vendor[1]["reasoning_details"] == [
        {"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "format": "openai-responses-v1"}
    ]


def test_a_thought_that_nothing_followed_is_left_out() -> None:
    assert messages([{"type": "reasoning", "id": "r", "summary": []}, USER]) == [USER]


def test_thoughts_survive_the_way_through_a_client() -> None:
    details = [
        ReasoningDetail("reasoning.text", text="a", signature="s1", index=0),
        ReasoningDetail("reasoning.encrypted", data="xx", index=1),
    ]
    sealed = pack(details)
    assert sealed is not None
    assert unpack(sealed, "rs_1") == details
    assert pack([ReasoningDetail("reasoning.text", text="nothing to give back")]) is None
    assert unpack(sealed[:-5] + "#", "rs_1") == [], "damaged"
    own = [ReasoningDetail("reasoning.encrypted", data="gAAA", id="rs_9", format="openai-responses-v1")]
    assert pack(own) == "gAAA"


def test_a_refusal_stays_a_refusal() -> None:
    [_, said] = messages([USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}])
    assert (said["content"], said["refusal"]) == (None, "No.")


def test_parameters_have_their_names_in_chat() -> None:
    chat = lowered(
        tools=[{**TOOL, "description": "d", "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}, "verbosity": "low"},
        reasoning={"effort": "high"},
        max_output_tokens=99,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        parallel_tool_calls=False,
        user="u",
        prompt_cache_key="k",
        service_tier="flex",
        stream=True,
    )  # fmt: skip
    tree = msgspec.json.decode(chat.body)
    assert tree["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}
    ]  # fmt: skip
    assert tree["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert tree["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert (tree["reasoning_effort"], tree["verbosity"], tree["max_completion_tokens"]) == ("high", "low", 99)
    assert (tree["logprobs"], tree["top_logprobs"], tree["service_tier"]) == (True, 2, "flex")
    assert (tree["parallel_tool_calls"], tree["user"], tree["prompt_cache_key"]) == (False, "u", "k")
    assert chat.needs == {}
    assert not {"store", "metadata", "input"} & tree.keys()


def test_allowed_tools_are_said_in_chats_way() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    tree = msgspec.json.decode(lowered(tools=[TOOL], tool_choice=choice).body)
    assert tree["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
    }


@pytest.mark.parametrize(
    ("given", "fields", "param"),
    [
        ("a", {"tools": [TOOL, {"type": "web_search"}]}, "tools[1]"),
        ("a", {"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0]"),
        ("a", {"truncation": "auto"}, "truncation"),
        ("a", {"context_management": [{"type": "compaction"}]}, "context_management"),
        ("a", {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tools[0]"),
        ([USER, {"type": "web_search_call", "id": "ws"}], {}, "input[1]"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}], {}, "input[0].content[0].file_id"),
    ],
)  # fmt: skip
def test_what_only_a_vendor_can_do_is_needed_of_the_backend(given: Any, fields: Any, param: str) -> None:
    assert lowered(given, **fields).needs == {"responses_native": param}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([output("never")], "input[0].call_id"),
        ([USER, call("a"), USER], "input"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
        ([{"id": "msg_1"}], "input[0]"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]"),
        (
            [USER, {"role": "user", "content": [{"type": "input_text", "text": 1}]}],
            "input[1].content[0].text",
        ),
        ([{"type": "reasoning", "summary": "x"}], "input[0].summary"),
        ([{"type": "reasoning", "summary": []}], "input"),
        ([{"type": ["message"]}], "input[0].type"),
    ],
)
def test_what_is_wrong_is_told_by_its_path(given: Any, param: str) -> None:
    with pytest.raises(Invalid) as caught:
        lower(asked(given))
    assert caught.value.param == param
    assert type(caught.value) is not Unsupported


def test_input_is_kept_with_ids_and_in_full() -> None:
    kept = numbered(
        [{"role": "assistant", "content": "a"}, {**call("c"), "id": "fc_9"}, output("c")], "resp_77"
    )
    assert kept[0] == {
        "type": "message",
        "id": "msg_77i0",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
    }
    assert (kept[1]["id"], kept[1]["status"], kept[2]["id"]) == ("fc_9", "completed", "fco_77i2")
    assert numbered("hi", "resp_1")[0]["content"] == [{"type": "input_text", "text": "hi"}]
