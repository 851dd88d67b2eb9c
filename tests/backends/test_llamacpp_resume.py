"""Answers that go on where another one stopped, and token counts, with the real engine and real weights."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.core.call import Call, Finished
from inferhub.core.errors import Unsupported
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEA = [{"role": "user", "content": "Tell me about the sea."}]
UNICODE = [{"role": "user", "content": "Repeat exactly: é ñ ü 漢字 🌊"}]
EMOJI = [{"role": "user", "content": "Repeat this: 😀 é 🌱 漢字 👩‍👩‍👧"}]
COUNT = [{"role": "user", "content": "Count: 1 2 3 4 5"}]
FRENCH = [{"role": "user", "content": "Écris en français: une phrase sur la mer."}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def chat(messages: Any = SEA, **params: Any) -> Call:
    return make_call("chat", messages=messages, **{"temperature": 0, "max_tokens": 24} | params)


def complete(prompt: Any = "Once upon a time", **params: Any) -> Call:
    return make_call("completion", prompt=prompt, **{"temperature": 0, "max_tokens": 24} | params)


def resumed(call: Call, begun: str, tokens: int) -> Call:
    """The call for the rest, with the rest of its limit."""
    left = msgspec.structs.replace(call.request, max_tokens=call.request.max_tokens - tokens)
    return replace(call, request=left, resume=begun)


def pieces(result: Any) -> list[str]:
    return [p.content if hasattr(p, "content") else p.text for p in result.payloads if not p.finish_reason]


DECISIVE = [chat(), chat(UNICODE), complete(), complete("1, 2, 3, 4,")]
"""Where the model's first choice is far ahead of its second at every token."""


@pytest.mark.parametrize("after", [1, 2, 3, 7, 13, 20, 23])
@pytest.mark.parametrize("call", DECISIVE, ids=["chat", "unicode", "completion", "numbers"])
async def test_an_answer_goes_on_exactly_where_it_stopped(llama: LlamaCpp, call: Call, after: int) -> None:
    whole = await finish(llama, call)
    begun = "".join(pieces(whole)[:after])
    rest = await finish(llama, resumed(call, begun, after))
    assert begun + rest.text() == whole.text()
    assert rest.finish_reasons() == whole.finish_reasons()
    assert rest.usage.input_tokens == whole.usage.input_tokens + after, "what was said is read once more"
    assert rest.usage.output_tokens == whole.usage.output_tokens - after


NOISE = 0.5
"""Logits, far more than the engine's rounding differs between a prompt and the tokens it made itself (0.15)."""


@pytest.mark.parametrize("after", [1, 4, 7])
@pytest.mark.parametrize("messages", [COUNT, FRENCH], ids=["count", "french"])
async def test_an_undecided_model_goes_on_with_what_was_nearly_its_choice(
    llama: LlamaCpp, messages: Any, after: int
) -> None:
    """A broken boundary would show as a token that was nowhere near."""
    call = chat(messages, logprobs=True, top_logprobs=5)
    whole = [t for p in (await finish(llama, call)).payloads for t in p.logprobs or ()]
    begun = "".join(token.token for token in whole[:after])
    result = await finish(llama, replace(call, resume=begun))
    rest = [t for p in result.payloads for t in p.logprobs or ()]
    assert rest
    for was, now in zip(whole[after:], rest, strict=False):
        if now.token != was.token:
            near = {top.token: top.logprob for top in was.top_logprobs}
            assert was.logprob - near[now.token] < NOISE, (was, now)
            break


async def test_token_prompts_go_on_too(llama: LlamaCpp) -> None:
    call = complete([4, 5, 6])
    whole = await finish(llama, call)
    begun = "".join(pieces(whole)[:7])
    assert begun + (await finish(llama, resumed(call, begun, 7))).text() == whole.text()


async def test_an_answer_without_a_limit_ends_as_it_would(llama: LlamaCpp) -> None:
    call = chat([{"role": "user", "content": "Say the word yes and nothing else."}], max_tokens=None)
    whole = await finish(llama, call)
    assert whole.finish_reasons() == {0: ["stop"]}
    begun = pieces(whole)[0]
    rest = await finish(llama, replace(call, resume=begun))
    assert (begun + rest.text(), rest.finish_reasons()) == (whole.text(), {0: ["stop"]})


async def test_tools_that_were_not_called_do_not_hinder(llama: LlamaCpp) -> None:
    call = chat(tools=[TOOL])
    whole = await finish(llama, call)
    assert whole.text(), "this model answers in words"
    begun = "".join(pieces(whole)[:5])
    assert begun + (await finish(llama, resumed(call, begun, 5))).text() == whole.text()


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (chat(n=2), "n"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(tools=[TOOL], tool_choice="required"), "tools"),
        (complete(["a", "b"]), "prompt"),
    ],
    ids=["n", "format", "tool", "prompts"],
)
async def test_what_cannot_be_resumed_is_refused(llama: LlamaCpp, call: Call, param: str) -> None:
    with pytest.raises(Unsupported) as refused:
        await finish(llama, replace(call, resume="Once"))
    assert refused.value.param == param


# --- token counts ------------------------------------------------------------------------------


async def counted(llama: LlamaCpp, **params: Any) -> int:
    items = [item async for item in llama.run(make_call("token_count", **params))]
    [delta, end] = items
    assert isinstance(end, Finished)
    assert end.usage.total_tokens == 0
    tokens: int = delta.payload.input_tokens  # type: ignore[union-attr]
    return tokens


@pytest.mark.parametrize(
    "params",
    [
        {"messages": SEA},
        {"messages": EMOJI},
        {"messages": [{"role": "system", "content": "Be brief."}, *SEA]},
        {"messages": SEA, "tools": [TOOL]},
    ],
    ids=["short", "unicode", "system", "tools"],
)
async def test_a_count_is_what_the_chat_is_billed(llama: LlamaCpp, params: dict[str, Any]) -> None:
    billed = await finish(llama, chat(**params, max_tokens=1))
    assert await counted(llama, **params) == billed.usage.input_tokens


async def test_a_prompt_beyond_the_context_is_counted_too(llama: LlamaCpp) -> None:
    assert await counted(llama, messages=[{"role": "user", "content": "sea " * 9000}]) > 9000


async def test_counts_leave_their_slots_free(llama: LlamaCpp) -> None:
    counts = await asyncio.gather(*(counted(llama, messages=SEA) for _ in range(20)))
    assert set(counts) == {counts[0]}
    assert (await finish(llama, chat(max_tokens=2))).usage.output_tokens == 2
