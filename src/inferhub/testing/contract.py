"""What every backend promises, as checks that run over any backend × declared capability.

Public, for plug-in authors: load a backend and run `checks_for(capability)` over it. Each check
names the fault of `testing.broken` that it must catch; the suite runs that too.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import BackendRefused, ContextOverflow, Unsupported
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.testing.calls import make_call

PATIENCE_S = 60.0
"""Only a hang is longer than this; no check measures speed."""

Run = Callable[[Backend, Capability], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    modalities: frozenset[str]
    feature: str | None
    """Runs only where the capability declares it."""
    fault: str
    """The behaviour of `BrokenEcho` that must make this check fail."""
    run: Run


CHECKS: list[Check] = []
_TEXT = ("chat", "completion")


def _check(*modalities: str, fault: str, feature: str | None = None) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        CHECKS.append(Check(run.__name__, frozenset(modalities), feature, fault, run))
        return run

    return register


def checks_for(capability: Capability) -> list[Check]:
    return [
        check
        for check in CHECKS
        if capability.modality in check.modalities
        and (check.feature is None or check.feature in capability.features)
    ]


# --- running a call ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    payloads: Sequence[Any]
    usage: Usage

    def text(self, index: int = 0) -> str:
        pieces = [p for p in self.payloads if p.index == index]
        return "".join((p.content if isinstance(p, ChatDelta) else p.text) or "" for p in pieces)

    def finish_reasons(self) -> dict[int, list[str]]:
        reasons: dict[int, list[str]] = {}
        for payload in self.payloads:
            reasons.setdefault(payload.index, [])
            if payload.finish_reason:
                reasons[payload.index].append(payload.finish_reason)
        return reasons


async def finish(backend: Backend, call: Call) -> Result:
    """Run to the end, asserting the frame that every answer has."""
    payloads: list[Any] = []
    ends: list[Finished] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(_run(backend, call)) as chunks:
        async for chunk in chunks:
            assert not ends, "a chunk came after Finished"
            if isinstance(chunk, Delta):
                payloads.append(chunk.payload)
            else:
                ends.append(chunk)
    assert len(ends) == 1, "the answer ended without Finished"
    return Result(payloads, ends[0].usage)


def _run(backend: Backend, call: Call) -> Any:
    return backend.run(call)


def _ask(modality: str, text: str = "Tell me about the sea.", **params: Any) -> Call:
    """Greedy and short, so that engines answer alike and soon."""
    params = {"max_tokens": 24, "temperature": 0, "stream": True, **params}
    if modality == "chat":
        return make_call("chat", messages=[{"role": "user", "content": text}], **params)
    return make_call("completion", prompt=text, **params)


# --- text --------------------------------------------------------------------------------------


@_check(*_TEXT, "embedding", fault="no_finished")
async def ends_with_finished(backend: Backend, capability: Capability) -> None:
    await finish(backend, _any_call(capability))


@_check(*_TEXT, "embedding", fault="chunk_after_finished")
async def says_nothing_after_finished(backend: Backend, capability: Capability) -> None:
    await finish(backend, _any_call(capability))


def _any_call(capability: Capability) -> Call:
    if capability.modality == "embedding":
        return make_call("embedding", input="the sea")
    return _ask(capability.modality)


@_check(*_TEXT, fault="no_finish_reason")
async def finishes_its_choice(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, _ask(capability.modality))).finish_reasons()
    assert set(reasons) == {0}
    assert len(reasons[0]) >= 1, reasons


@_check(*_TEXT, fault="two_finish_reasons")
async def finishes_its_choice_once(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, _ask(capability.modality))).finish_reasons()
    assert all(len(found) == 1 for found in reasons.values()), reasons


@_check(*_TEXT, fault="text_after_finish_reason")
async def finish_reason_is_last(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _ask(capability.modality))
    assert result.payloads[-1].finish_reason, "the choice went on after its finish_reason"


@_check(*_TEXT, "embedding", fault="zero_usage")
async def counts_usage(backend: Backend, capability: Capability) -> None:
    usage = (await finish(backend, _any_call(capability))).usage
    assert usage.source == "reported"
    assert usage.input_tokens > 0
    if capability.modality in _TEXT:
        assert usage.output_tokens > 0


@_check(*_TEXT, fault="ignores_max_tokens")
async def stops_at_max_tokens(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _ask(capability.modality, max_tokens=3))
    assert result.usage.output_tokens <= 3, result.usage
    assert result.finish_reasons()[0] == ["length"]


@_check(*_TEXT, fault="ignores_stop")
async def stops_at_a_stop_text(backend: Backend, capability: Capability) -> None:
    whole = (await finish(backend, _ask(capability.modality))).text()
    words = whole.split()
    assert len(words) > 2, f"too short an answer to try a stop text: {whole!r}"
    ending = words[len(words) // 2]
    result = await finish(backend, _ask(capability.modality, stop=[ending]))
    assert ending not in result.text()
    assert result.finish_reasons()[0] == ["stop"]


@_check(*_TEXT, fault="one_piece", feature="stream")
async def streams_in_pieces(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _ask(capability.modality, "one two three four five six"))
    assert len([p for p in result.payloads if not p.finish_reason]) >= 3


@_check(*_TEXT, fault="broken_utf8")
async def keeps_characters_whole(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _ask(capability.modality, "Repeat: 🌊 наступил день 👩‍👩‍👧 é"))
    for payload in result.payloads:
        piece = (payload.content if isinstance(payload, ChatDelta) else payload.text) or ""
        assert "\ufffd" not in piece
        piece.encode()  # a lone surrogate cannot be encoded


@_check(*_TEXT, fault="ignores_close")
async def frees_its_slot_when_closed(backend: Backend, capability: Capability) -> None:
    """More calls than slots are begun and left; the next one still gets through."""
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(backend.spec.slots + 1):
            async with aclosing(_run(backend, _ask(capability.modality, max_tokens=512))) as chunks:
                await anext(chunks)
        await finish(backend, _ask(capability.modality))


@_check(*_TEXT, "embedding", fault="mixes_calls")
async def keeps_concurrent_calls_apart(backend: Backend, capability: Capability) -> None:
    texts = ["sea " * length for length in (1, 5, 9)]

    def call(text: str) -> Call:
        if capability.modality == "embedding":
            return make_call("embedding", input=text)
        return _ask(capability.modality, text, max_tokens=4)

    alone = [(await finish(backend, call(text))).usage.input_tokens for text in texts]
    together = await asyncio.gather(*(finish(backend, call(text)) for text in texts))
    assert [result.usage.input_tokens for result in together] == alone
    assert len(set(alone)) == len(texts)


@_check(*_TEXT, "embedding", fault="foreign_exception")
async def refuses_what_does_not_fit(backend: Backend, capability: Capability) -> None:
    if capability.context_tokens is None:
        return
    text = "sea " * (capability.context_tokens + 8)
    call = (
        make_call("embedding", input=text)
        if capability.modality == "embedding"
        else _ask(capability.modality, text)
    )
    try:
        await finish(backend, call)
    except ContextOverflow as error:
        assert str(capability.context_tokens) in error.message, error.message
    else:
        raise AssertionError("a prompt longer than the context was accepted")


@_check(*_TEXT, fault="ignores_n", feature="n")
async def answers_n_times(backend: Backend, capability: Capability) -> None:
    reasons = (await finish(backend, _ask(capability.modality, n=3))).finish_reasons()
    assert set(reasons) == {0, 1, 2}
    assert all(len(found) == 1 for found in reasons.values())


@_check(*_TEXT, fault="ignores_seed", feature="seed")
async def repeats_with_the_same_seed(backend: Backend, capability: Capability) -> None:
    def call() -> Call:
        return _ask(capability.modality, seed=7, temperature=1.0)

    assert (await finish(backend, call())).text() == (await finish(backend, call())).text()


@_check("completion", fault="ignores_second_prompt", feature="many_prompts")
async def completes_every_prompt(backend: Backend, capability: Capability) -> None:
    call = make_call("completion", prompt=["the sea", "a mountain"], max_tokens=4)
    assert set((await finish(backend, call)).finish_reasons()) == {0, 1}


# --- chat --------------------------------------------------------------------------------------


@_check("chat", fault="not_json", feature="json_object")
async def answers_json_when_asked(backend: Backend, capability: Capability) -> None:
    call = _ask("chat", "Give me JSON.", response_format={"type": "json_object"}, max_tokens=200)
    result = await finish(backend, call)
    if result.finish_reasons()[0] == ["stop"]:
        assert isinstance(json.loads(result.text()), dict)


_SCHEMA = {
    "type": "object",
    "properties": {"sea": {"type": "string", "enum": ["calm", "rough"]}, "depth_m": {"type": "integer"}},
    "required": ["sea", "depth_m"],
    "additionalProperties": False,
}


@_check("chat", fault="not_json", feature="json_schema")
async def answers_within_a_schema(backend: Backend, capability: Capability) -> None:
    from jsonschema import validate

    schema = {"type": "json_schema", "json_schema": {"name": "sea", "schema": _SCHEMA, "strict": True}}
    result = await finish(backend, _ask("chat", "How is the sea?", response_format=schema, max_tokens=200))
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


@_check("chat", fault="broken_tool_arguments", feature="tools")
async def calls_a_tool(backend: Backend, capability: Capability) -> None:
    call = _ask("chat", "Look!", tools=[_TOOL], tool_choice="required", max_tokens=400)
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


@_check("chat", fault="wrong_logprobs", feature="logprobs")
async def logprobs_spell_the_answer(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _ask("chat", logprobs=True))
    tokens = [t for p in result.payloads for t in p.logprobs or ()]
    assert "".join(t.token for t in tokens) == result.text()
    assert b"".join(bytes(t.bytes or ()) for t in tokens).decode() == result.text()
    assert all(t.logprob <= 0 for t in tokens)


# --- embeddings --------------------------------------------------------------------------------


def _vector(delta: EmbeddingDelta) -> tuple[float, ...]:
    return struct.unpack(f"<{len(delta.vector) // 4}f", delta.vector)


@_check("embedding", fault="wrong_dimensions")
async def vectors_have_their_length(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("embedding", input=["the sea", "a mountain"]))
    for delta in result.payloads:
        vector = _vector(delta)
        if capability.dimensions is not None:
            assert len(vector) == capability.dimensions
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3)


@_check("embedding", fault="missing_vector")
async def every_input_has_its_vector(backend: Backend, capability: Capability) -> None:
    texts = [f"{number} ships at sea" for number in range(40)]
    result = await finish(backend, make_call("embedding", input=texts))
    assert sorted(delta.index for delta in result.payloads) == list(range(40))


@_check("embedding", fault="wrong_order")
async def a_batch_equals_single_inputs(backend: Backend, capability: Capability) -> None:
    """Within what dynamic quantisation allows: a batch-mate may move a vector by a hair."""
    texts = ["the sea", "a mountain railway in winter", "seven"]
    batch = await finish(backend, make_call("embedding", input=texts))
    by_index = {delta.index: _vector(delta) for delta in batch.payloads}
    for index, text in enumerate(texts):
        alone = await finish(backend, make_call("embedding", input=text))
        similarity = sum(a * b for a, b in zip(_vector(alone.payloads[0]), by_index[index], strict=True))
        assert similarity > 0.97, (text, similarity)


@_check("embedding", fault="ignores_dimensions", feature="dimensions")
async def refuses_dimensions_it_cannot_make(backend: Backend, capability: Capability) -> None:
    plain = await finish(backend, make_call("embedding", input="the sea"))
    native = len(_vector(plain.payloads[0]))
    try:
        await finish(backend, make_call("embedding", input="the sea", dimensions=native - 1))
    except (Unsupported, BackendRefused) as error:
        assert str(native) in error.message
    else:
        raise AssertionError("a length that the model cannot make was accepted")


@_check("embedding", fault="ignores_token_inputs", feature="token_inputs")
async def reads_token_ids(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("embedding", input=[[1000, 1001, 1002], [2000]]))
    assert sorted(delta.index for delta in result.payloads) == [0, 1]
    assert _vector(result.payloads[0]) != _vector(result.payloads[1])
