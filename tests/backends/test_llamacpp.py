"""Chat and completions of the llama.cpp backend, with its real engine and real weights."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.core.call import Call
from inferhub.core.errors import ContextOverflow, Invalid
from inferhub.core.models import ModelSpec
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(text: str = "Say hello.", **params: Any) -> Call:
    return make_call(
        "chat", messages=[{"role": "user", "content": text}], **{"temperature": 0, "max_tokens": 8} | params
    )


def complete(prompt: Any = "Once upon a time", **params: Any) -> Call:
    return make_call("completion", prompt=prompt, **{"temperature": 0, "max_tokens": 4} | params)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(smollm2_path: Path) -> AsyncIterator[LlamaCpp]:
    """With so little context that its end is near."""
    backend = LlamaCpp(ModelSpec("small", "llamacpp", slots=1, options={"context_tokens": 256}), smollm2_path)
    await backend.load()
    yield backend
    await backend.unload()


# --- chat --------------------------------------------------------------------------------------


async def test_n_answers_share_one_prompt_in_the_usage(llama: LlamaCpp) -> None:
    one = await finish(llama, chat(max_tokens=5))
    three = await finish(llama, chat(max_tokens=5, n=3, seed=1, temperature=1.5))
    assert three.usage.input_tokens == one.usage.input_tokens
    assert three.usage.output_tokens == 15
    assert len({three.text(index) for index in range(3)}) > 1


async def test_a_repeated_prompt_is_cached_and_says_so(llama: LlamaCpp) -> None:
    text = "Tell me of the lighthouse. " * 30
    await finish(llama, chat(text))
    again = (await finish(llama, chat(text))).usage
    assert again.input_tokens // 2 < again.cached_tokens <= again.input_tokens


async def test_contract_035_logprobs_spell_the_content(llama: LlamaCpp) -> None:
    call = chat("Repeat this: 😀 é 🌱 漢字", max_tokens=20, logprobs=True, top_logprobs=3)
    result = await finish(llama, call)
    tokens = [token for delta in result.payloads for token in delta.logprobs or ()]
    assert "".join(token.token for token in tokens) == result.text()
    assert b"".join(bytes(token.bytes) for token in tokens) == result.text().encode()
    assert all(len(token.top_logprobs) == 3 for token in tokens)


async def test_logprobs_without_top_have_no_alternatives(llama: LlamaCpp) -> None:
    result = await finish(llama, chat(logprobs=True))
    tokens = [token for delta in result.payloads for token in delta.logprobs or ()]
    assert tokens
    assert all(token.top_logprobs == [] for token in tokens)


async def test_logit_bias_bans_a_token(llama: LlamaCpp) -> None:
    logprobs = await finish(llama, complete(max_tokens=1))
    assert logprobs.text() == ","
    banned = await finish(llama, complete(max_tokens=1, logit_bias={"28": -100}))  # 28 is the comma
    assert banned.text() != ","


@pytest.mark.parametrize("token", ["49152", "-1", "comma", "1.5", "²"])
async def test_logit_bias_of_no_token_is_refused(llama: LlamaCpp, token: str) -> None:
    with pytest.raises(Invalid) as caught:
        await finish(llama, chat(logit_bias={token: 1}))
    assert caught.value.param == "logit_bias"
    assert token in caught.value.message


@pytest.mark.parametrize("seed", [-1, 0, 2**32 - 1, 2**63 - 1])
async def test_any_seed_repeats(llama: LlamaCpp, seed: int) -> None:
    call = chat(seed=seed, temperature=1.2, max_tokens=6)
    assert (await finish(llama, call)).text() == (await finish(llama, call)).text()


async def test_unknown_fields_never_reach_the_engine(llama: LlamaCpp) -> None:
    plain = (await finish(llama, chat())).text()
    call = chat(
        grammar='root ::= "yes"', chat_template_kwargs={"x": 1}, n_predict=1, id_slot=77, samplers=[], n_probs=5,
        json_schema={"const": 1}, api_base="http://localhost:1", lora=[{"id": 0}], ignore_eos=True,
    )  # fmt: skip
    assert (await finish(llama, call)).text() == plain


async def test_contract_048_roles_and_parts_reach_the_template(llama: LlamaCpp) -> None:
    def messages(system: str, content: Any) -> list[dict[str, Any]]:
        return [{"role": system, "content": "Be brief."}, {"role": "user", "content": content}]

    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    calls = [
        make_call("chat", messages=messages("system", "Say hello."), temperature=0, max_tokens=8),
        make_call("chat", messages=messages("developer", parts), temperature=0, max_tokens=8),
    ]
    first, second = [await finish(llama, call) for call in calls]
    assert (first.text(), first.usage.input_tokens) == (second.text(), second.usage.input_tokens)


async def test_max_completion_tokens_wins(llama: LlamaCpp) -> None:
    assert (await finish(llama, chat(max_tokens=9, max_completion_tokens=3))).usage.output_tokens == 3


async def test_a_call_that_does_not_stream_answers_alike(llama: LlamaCpp) -> None:
    streamed = await finish(llama, chat(stream=True))
    whole = await finish(llama, chat(stream=False))
    assert whole.text() == streamed.text()


# --- completions -------------------------------------------------------------------------------


async def test_completions_are_ordered_by_prompt_then_answer(llama: LlamaCpp) -> None:
    prompts = ["The capital of France is", "Two plus two is"]
    alone = [(await finish(llama, complete(prompt))) for prompt in prompts]
    result = await finish(llama, complete(prompts, n=2))
    assert [result.text(i) for i in range(4)] == [
        alone[0].text(),
        alone[0].text(),
        alone[1].text(),
        alone[1].text(),
    ]
    assert result.usage.input_tokens == sum(a.usage.input_tokens for a in alone)
    assert result.usage.output_tokens == 16


async def test_token_prompts_equal_their_text(llama: LlamaCpp) -> None:
    by_text = await finish(llama, complete("I'm"))
    by_token = await finish(llama, complete([57, 5248]))
    many = await finish(llama, complete([[57, 5248], [57, 5248]]))
    assert by_text.text() == by_token.text() == many.text(1)
    assert by_token.usage.input_tokens == 2


@pytest.mark.parametrize("prompt", [[57, 49152], [-1], [[57], [10**12]]])
async def test_tokens_that_do_not_exist_are_refused(llama: LlamaCpp, prompt: Any) -> None:
    with pytest.raises(Invalid) as caught:
        await finish(llama, complete(prompt))
    assert caught.value.param == "prompt"
    assert "49151" in caught.value.message


async def test_completion_logprobs_have_openais_old_shape(llama: LlamaCpp) -> None:
    for count in (0, 2):
        result = await finish(llama, complete(logprobs=count, max_tokens=3))
        found = [p.logprobs for p in result.payloads if p.logprobs]
        tokens = [token for logprobs in found for token in logprobs.tokens]
        offsets = [offset for logprobs in found for offset in logprobs.text_offset]
        assert "".join(tokens) == result.text()
        assert offsets == [0, len(tokens[0]), len(tokens[0]) + len(tokens[1])]
        assert all(value <= 0 for logprobs in found for value in logprobs.token_logprobs)
        tops = [top for logprobs in found for top in logprobs.top_logprobs or ()]
        assert [len(top) for top in tops] == ([2, 2, 2] if count else [])


async def test_no_tokens_asked_none_given(llama: LlamaCpp) -> None:
    result = await finish(llama, complete(max_tokens=0))
    assert result.text() == ""
    assert result.usage.output_tokens == 0
    assert result.usage.input_tokens > 0
    assert result.finish_reasons() == {0: ["length"]}


async def test_sixteen_tokens_unless_asked(llama: LlamaCpp) -> None:
    call = make_call("completion", prompt="Count: 1, 2, 3,", temperature=0, max_tokens=None)
    assert (await finish(llama, call)).usage.output_tokens == 16


async def test_too_many_answers_are_refused(llama: LlamaCpp) -> None:
    with pytest.raises(Invalid, match="at most 128") as caught:
        await finish(llama, complete(["a"] * 65, n=2))
    assert caught.value.param == "prompt"


# --- the context -------------------------------------------------------------------------------


async def test_an_overlong_prompt_names_both_lengths(small: LlamaCpp) -> None:
    with pytest.raises(ContextOverflow) as caught:
        await finish(small, chat("sea " * 300))
    assert caught.value.param == "messages"
    assert re.search(r"'messages' has 3\d\d tokens; the context of this model is 256", caught.value.message)
    with pytest.raises(ContextOverflow) as caught:
        await finish(small, complete(["sea", "sea " * 300]))
    assert caught.value.param == "prompt"
    assert re.search(r"'prompt\[1\]' has 30\d tokens.* 256 tokens", caught.value.message)


async def test_the_end_of_the_context_is_a_length(small: LlamaCpp) -> None:
    result = await finish(small, complete("1, 2, 3,", max_tokens=100_000, temperature=0.5, seed=1))
    assert result.finish_reasons()[0] == ["length"]
    assert 250 <= result.usage.input_tokens + result.usage.output_tokens <= 257


async def test_a_call_of_another_kind_is_refused(llama: LlamaCpp) -> None:
    with pytest.raises(Invalid, match="'embedding'"):
        await finish(llama, make_call("embedding", input="x"))
