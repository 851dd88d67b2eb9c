"""What a backend that writes text promises, and what all of them promise together."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

from inferhub.backends.base import Backend
from inferhub.core.call import Call
from inferhub.core.errors import ContextOverflow
from inferhub.core.models import Capability
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import make_call
from inferhub.testing.contract import frame
from inferhub.testing.contract.frame import ALL, TEXT, Result, ask, check, finish, run_of


@check(*ALL, fault="no_finished")
async def ends_with_finished(backend: Backend, capability: Capability) -> None:
    await finish(backend, _any_call(capability))


@check(*ALL, fault="chunk_after_finished")
async def says_nothing_after_finished(backend: Backend, capability: Capability) -> None:
    await finish(backend, _any_call(capability))


def _any_call(capability: Capability) -> Call:
    if capability.modality in TEXT:
        return ask(capability.modality)
    return make_call(capability.modality)


@check(*TEXT, fault="no_finish_reason")
async def finishes_its_choice(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, ask(capability.modality))).finish_reasons()
    assert set(reasons) == {0}
    assert len(reasons[0]) >= 1, reasons


@check(*TEXT, fault="two_finish_reasons")
async def finishes_its_choice_once(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, ask(capability.modality))).finish_reasons()
    assert all(len(found) == 1 for found in reasons.values()), reasons


@check(*TEXT, fault="text_after_finish_reason")
async def finish_reason_is_last(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, ask(capability.modality))
    assert result.payloads[-1].finish_reason, "the choice went on after its finish_reason"


@check(*TEXT, "embedding", "moderation", "rerank", fault="zero_usage")
async def counts_usage(backend: Backend, capability: Capability) -> None:
    usage = (await finish(backend, _any_call(capability))).usage
    # What a verdict costs is told by nobody: OpenAI counts nothing in such an answer.
    counted = ("reported", "estimated") if capability.modality == "moderation" else ("reported",)
    assert usage.source in counted
    assert usage.input_tokens > 0
    if capability.modality in TEXT:
        assert usage.output_tokens > 0


@check(*TEXT, fault="ignores_max_tokens")
async def stops_at_max_tokens(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, ask(capability.modality, max_tokens=3))
    assert result.usage.output_tokens <= 3, result.usage
    assert result.finish_reasons()[0] == ["length"]


@check(*TEXT, fault="ignores_stop")
async def stops_at_a_stop_text(backend: Backend, capability: Capability) -> None:
    whole = (await finish(backend, ask(capability.modality))).text()
    words = whole.split()
    assert len(words) > 2, f"too short an answer to try a stop text: {whole!r}"
    ending = words[len(words) // 2]
    result = await finish(backend, ask(capability.modality, stop=[ending]))
    assert ending not in result.text()
    assert result.finish_reasons()[0] == ["stop"]


@check(*TEXT, fault="one_piece", feature="stream")
async def streams_in_pieces(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, ask(capability.modality, "one two three four five six"))
    assert len([p for p in result.payloads if not p.finish_reason]) >= 3


@check(*TEXT, fault="broken_utf8")
async def keeps_characters_whole(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, ask(capability.modality, "Repeat: 🌊 наступил день 👩‍👩‍👧 é"))
    for payload in result.payloads:
        piece = (payload.content if isinstance(payload, ChatDelta) else payload.text) or ""
        assert "\ufffd" not in piece
        piece.encode()  # a lone surrogate cannot be encoded


@check(*TEXT, fault="ignores_close")
async def frees_its_slot_when_closed(backend: Backend, capability: Capability) -> None:
    """More calls than slots are begun and left; the next one still gets through."""
    async with asyncio.timeout(frame.PATIENCE_S):
        for _ in range(backend.spec.slots + 1):
            async with aclosing(run_of(backend, ask(capability.modality, max_tokens=512))) as chunks:
                await anext(chunks)
        await finish(backend, ask(capability.modality))


@check(*TEXT, "embedding", fault="mixes_calls")
async def keeps_concurrent_calls_apart(backend: Backend, capability: Capability) -> None:
    texts = ["sea " * length for length in (1, 5, 9)]

    def call(text: str) -> Call:
        if capability.modality == "embedding":
            return make_call("embedding", input=text)
        return ask(capability.modality, text, max_tokens=4)

    alone = [(await finish(backend, call(text))).usage.input_tokens for text in texts]
    together = await asyncio.gather(*(finish(backend, call(text)) for text in texts))
    assert [result.usage.input_tokens for result in together] == alone
    assert len(set(alone)) == len(texts)


@check(*TEXT, "embedding", fault="foreign_exception")
async def refuses_what_does_not_fit(backend: Backend, capability: Capability) -> None:
    if capability.context_tokens is None:
        return
    text = "sea " * (capability.context_tokens + 8)
    call = (
        make_call("embedding", input=text)
        if capability.modality == "embedding"
        else ask(capability.modality, text)
    )
    try:
        await finish(backend, call)
    except ContextOverflow as error:
        assert str(capability.context_tokens) in error.message, error.message
    else:
        raise AssertionError("a prompt longer than the context was accepted")


@check(*TEXT, fault="ignores_n", feature="n")
async def answers_n_times(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, ask(capability.modality, n=3))).finish_reasons()
    assert set(reasons) == {0, 1, 2}
    assert all(len(found) == 1 for found in reasons.values())


@check(*TEXT, fault="ignores_seed", feature="seed")
async def repeats_with_the_same_seed(backend: Backend, capability: Capability) -> None:
    def call() -> Call:
        return ask(capability.modality, seed=7, temperature=1.0)

    assert (await finish(backend, call())).text() == (await finish(backend, call())).text()


@check("completion", fault="ignores_second_prompt", feature="many_prompts")
async def completes_every_prompt(backend: Backend, capability: Capability) -> None:
    call = make_call("completion", prompt=["the sea", "a mountain"], max_tokens=4)
    assert set((await finish(backend, call)).finish_reasons()) == {0, 1}


@check(*TEXT, fault="ignores_resume", feature="prefill")
async def goes_on_where_it_stopped(backend: Backend, capability: Capability) -> None:
    """Nothing twice, nothing lost; the limit of such a call is that of the rest."""
    call = ask(capability.modality, "Count: one two three four five six")
    whole = await finish(backend, call)
    pieces = [p for p in whole.payloads if not p.finish_reason]
    begun = Result(pieces[: len(pieces) // 2], whole.usage).text()
    assert begun, "too short an answer to be cut"
    rest = await finish(backend, replace(call, resume=begun))
    assert rest.text().split()[:2] == whole.text()[len(begun) :].split()[:2], (begun, rest.text())
    assert len(rest.finish_reasons()[0]) == 1


# --- chat --------------------------------------------------------------------------------------


@check("chat", fault="not_json", feature="json_object")
async def answers_json_when_asked(backend: Backend, capability: Capability) -> None:
    call = ask("chat", "Give me JSON.", response_format={"type": "json_object"}, max_tokens=200)
    result = await finish(backend, call)
    if result.finish_reasons()[0] == ["stop"]:
        assert isinstance(json.loads(result.text()), dict)


_SCHEMA = {
    "type": "object",
    "properties": {"sea": {"type": "string", "enum": ["calm", "rough"]}, "depth_m": {"type": "integer"}},
    "required": ["sea", "depth_m"],
    "additionalProperties": False,
}


@check("chat", fault="not_json", feature="json_schema")
async def answers_within_a_schema(backend: Backend, capability: Capability) -> None:
    from jsonschema import validate

    schema = {"type": "json_schema", "json_schema": {"name": "sea", "schema": _SCHEMA, "strict": True}}
    result = await finish(backend, ask("chat", "How is the sea?", response_format=schema, max_tokens=200))
    assert result.finish_reasons()[0] == ["stop"], result.text()
    validate(json.loads(result.text()), _SCHEMA)


_TOOL = {
    "type": "function",
    "function": {
        "name": "look_at_sea",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "maxLength": 30}},
            "required": ["text"],
        },
    },
}


@check("chat", fault="broken_tool_arguments", feature="tools")
async def calls_a_tool(backend: Backend, capability: Capability) -> None:
    call = ask("chat", "Look!", tools=[_TOOL], tool_choice="required", max_tokens=400)
    result = await finish(backend, call)
    deltas = [d for p in result.payloads for d in p.tool_calls or ()]
    assert deltas, "no tool was called"
    first = deltas[0]
    assert (first.index, first.type) == (0, "function")
    assert first.id
    assert first.function.name == "look_at_sea"
    assert all(d.id is None and d.function.name is None for d in deltas[1:] if d.index == 0)
    arguments = "".join(d.function.arguments or "" for d in deltas if d.index == 0)
    assert isinstance(json.loads(arguments), dict)
    assert result.finish_reasons()[0] == ["tool_calls"]


@check("chat", fault="wrong_logprobs", feature="logprobs")
async def logprobs_spell_the_answer(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, ask("chat", logprobs=True))
    tokens = [t for p in result.payloads for t in p.logprobs or ()]
    assert "".join(t.token for t in tokens) == result.text()
    assert b"".join(bytes(t.bytes or ()) for t in tokens).decode() == result.text()
    assert all(t.logprob <= 0 for t in tokens)
