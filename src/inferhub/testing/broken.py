"""An echo that breaks one promise at a time, to prove that the contract suite would notice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from msgspec.structs import replace as replace_fields

from inferhub.backends.base import BatchBackend, BatchResult
from inferhub.backends.echo import Echo
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import InferHubError
from inferhub.core.models import Capability, ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, FunctionDelta, TokenLogprob, ToolCallDelta
from inferhub.modalities.completion import CompletionDelta
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.modalities.image import ImageDelta
from inferhub.modalities.moderation import ModerationDelta
from inferhub.modalities.rerank import RerankDelta
from inferhub.modalities.speech import SpeechDelta
from inferhub.modalities.token_count import TokenCount
from inferhub.modalities.vision import Reply

Items = list[Delta | Finished]


class BrokenEcho(BatchBackend):
    """`fault` is a name from `FAULTS`. Claims more features than it has, as broken backends do."""

    batches = frozenset({"embedding", "rerank"})
    capabilities: tuple[Capability, ...] = ()

    def __init__(self, fault: str) -> None:
        super().__init__(ModelSpec("broken", "echo", slots=2), None)
        self._fault = fault
        self._echo = Echo(self.spec, None)
        self._slots = asyncio.Semaphore(self.spec.slots)
        self._calls = 0

    async def load(self) -> None:
        await self._echo.load()
        self.capabilities = tuple(
            replace(c, features=c.features | {"json_schema", "token_inputs"}) for c in self._echo.capabilities
        )

    async def unload(self) -> None:
        await self._echo.unload()

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        if self._fault == "ignores_close":
            # Takes a slot and gives it back only to those who stay to the end.
            await self._slots.acquire()
        self._calls += 1
        items = await self._items(call)
        for item in FAULTS[self._fault](items, self._calls):
            await asyncio.sleep(0)
            yield item
        if self._fault == "ignores_close":
            self._slots.release()

    async def run_batch(self, calls: Sequence[Call]) -> Sequence[BatchResult]:
        answers: list[BatchResult] = []
        for call in calls:
            try:
                answers.append([item async for item in self.run(call)])
            except InferHubError as error:
                if self._fault == "one_fails_batch":
                    raise
                answers.append(error)
        return [*answers[1:], answers[0]] if self._fault == "mixes_batch" else answers

    async def _items(self, call: Call) -> Items:
        try:
            return [item async for item in self._echo.run(_deaf(call, self._fault))]
        except Exception as error:
            if self._fault == "foreign_exception":
                raise ZeroDivisionError from error
            raise


def _deaf(call: Call, fault: str) -> Call:
    """The call as heard by somebody who overlooks one parameter."""
    overlooked = {
        "ignores_max_tokens": {"max_tokens": None},
        "ignores_stop": {"stop": None},
        "ignores_n": {"n": None},
        "not_json": {"response_format": None},
        "ignores_dimensions": {"dimensions": None},
    }
    changes: dict[str, Any] = dict(overlooked.get(fault, {}))
    if fault == "ignores_resume":
        call = replace(call, resume="")
    if fault == "ignores_second_prompt":
        changes = {"prompt": "the sea"}
    if fault == "ignores_max_tokens" and call.modality == "completion":
        changes = {"max_tokens": 4096}
    known = {name: value for name, value in changes.items() if hasattr(call.request, name)}
    fields = {name: getattr(call.request, name) for name in call.request.__struct_fields__}
    return replace(call, request=type(call.request)(**{**fields, **known}))


def _payloads(change: Callable[[Any], Any]) -> Callable[[Items, int], Sequence[Delta | Finished]]:
    """A fault that alters each payload, or drops it by returning None."""

    def apply(items: Items, _: int) -> Items:
        changed: Items = []
        for item in items:
            if isinstance(item, Finished):
                changed.append(item)
            elif (payload := change(item.payload)) is not None:
                changed.append(Delta(payload))
        return changed

    return apply


def _without_finish(payload: Any) -> Any:
    return None if getattr(payload, "finish_reason", None) else payload


def _twice_finished(items: Items, _: int) -> Items:
    return [copy for item in items for copy in ([item, item] if _finish_of(item) else [item])]


def _talking_on(items: Items, _: int) -> Items:
    more = ChatDelta(content=" more") if _is_chat(items) else CompletionDelta(text=" more")
    return [*items[:-1], Delta(more), items[-1]]


def _in_one_piece(items: Items, _: int) -> Items:
    texts = [i for i in items if isinstance(i, Delta) and not _finish_of(i)]
    ends = [i for i in items if i not in texts]
    joined = "".join((t.payload.content if _is_chat(items) else t.payload.text) or "" for t in texts)
    return [Delta(ChatDelta(content=joined) if _is_chat(items) else CompletionDelta(text=joined)), *ends]


def _cut_characters(payload: Any) -> Any:
    if isinstance(payload, ChatDelta) and payload.content:
        return ChatDelta(payload.index, content=payload.content.encode()[:-1].decode(errors="replace"))
    if isinstance(payload, CompletionDelta) and payload.text:
        return CompletionDelta(payload.index, payload.text.encode()[:-1].decode(errors="replace"))
    return payload


def _at_random(payload: Any) -> Any:
    word = f" {random.random()}"  # noqa: S311 - noise, not a secret
    if isinstance(payload, ChatDelta) and payload.content:
        return ChatDelta(payload.index, content=word)
    if isinstance(payload, CompletionDelta) and payload.text:
        return CompletionDelta(payload.index, word)
    return payload


def _half_arguments(payload: Any) -> Any:
    if isinstance(payload, ChatDelta) and payload.tool_calls and payload.tool_calls[0].id is None:
        return ChatDelta(tool_calls=[ToolCallDelta(0, function=FunctionDelta(arguments='{"text": '))])
    return payload


def _shifted_logprobs(payload: Any) -> Any:
    if isinstance(payload, ChatDelta) and payload.logprobs:
        return ChatDelta(payload.index, payload.content, logprobs=[TokenLogprob("?", -1.0, [63])])
    return payload


def _shortened(payload: Any) -> Any:
    return (
        EmbeddingDelta(payload.index, payload.vector[:-4]) if isinstance(payload, EmbeddingDelta) else payload
    )


def _reversed(items: Items, _: int) -> Items:
    count = len(items) - 1
    return [
        Delta(EmbeddingDelta(count - 1 - i.payload.index, i.payload.vector)) if isinstance(i, Delta) else i
        for i in items
    ]


def _beyond_one(payload: Any) -> Any:
    if isinstance(payload, ModerationDelta):
        scores = {name: score + 1 for name, score in payload.category_scores.items()}
        return replace_fields(payload, category_scores=scores)
    return RerankDelta(payload.index, payload.relevance_score + 1)


def _opposite(payload: Any) -> Any:
    return RerankDelta(payload.index, 1 - payload.relevance_score)


def _one_more(payload: Any) -> Any:
    return TokenCount(payload.input_tokens + 1) if isinstance(payload, TokenCount) else payload


def _losing_streams(items: Items, calls: int) -> Items:
    """Every second call loses its last piece."""
    return items if calls % 2 else [*items[:-2], items[-1]]


def _mislabelled(payload: Any) -> Any:
    return SpeechDelta(b"\0" + payload.data) if isinstance(payload, SpeechDelta) else payload


def _resized(payload: Any) -> Any:
    return replace_fields(payload, width=payload.width + 1) if isinstance(payload, ImageDelta) else payload


def _is_chat(items: Items) -> bool:
    return isinstance(items[0], Delta) and isinstance(items[0].payload, ChatDelta)


def _finish_of(item: Delta | Finished) -> str | None:
    return getattr(item.payload, "finish_reason", None) if isinstance(item, Delta) else None


def _untouched(items: Items, _: int) -> Items:
    return items


FAULTS: dict[str, Callable[[Items, int], Sequence[Delta | Finished]]] = {
    "no_finished": lambda items, _: items[:-1],
    "chunk_after_finished": lambda items, _: [*items, items[0]],
    "no_finish_reason": _payloads(_without_finish),
    "two_finish_reasons": _twice_finished,
    "text_after_finish_reason": _talking_on,
    "zero_usage": lambda items, _: [*items[:-1], Finished(Usage())],
    "ignores_max_tokens": _untouched,
    "ignores_stop": _untouched,
    "one_piece": _in_one_piece,
    "broken_utf8": _payloads(_cut_characters),
    "ignores_close": _untouched,
    "mixes_calls": lambda items, calls: [*items[:-1], Finished(Usage(calls, calls))],
    "mixes_batch": _untouched,
    "one_fails_batch": _untouched,
    "foreign_exception": _untouched,
    "ignores_n": _untouched,
    "ignores_seed": _payloads(_at_random),
    "ignores_second_prompt": _untouched,
    "not_json": _untouched,
    "broken_tool_arguments": _payloads(_half_arguments),
    "wrong_logprobs": _payloads(_shifted_logprobs),
    "wrong_dimensions": _payloads(_shortened),
    "missing_vector": lambda items, _: [items[0], *items[2:]],
    "wrong_order": _reversed,
    "ignores_dimensions": _untouched,
    "ignores_token_inputs": _untouched,
    "ignores_resume": _untouched,
    "missing_result": lambda items, _: items[1:],
    "wrong_scores": _payloads(_beyond_one),
    "reversed_scores": _payloads(_opposite),
    "wrong_count": _payloads(_one_more),
    "text_lost_in_streams": _losing_streams,
    "no_length": lambda items, _: [*items[:-1], Finished(Usage())],
    "wrong_container": _payloads(_mislabelled),
    "wrong_size": _payloads(_resized),
    "no_reply": _payloads(lambda p: replace_fields(p, reply=Reply("", "", "unknown", 0.0))),
    "billed_count": lambda items, _: [*items[:-1], Finished(Usage(4))],
}
"""Fault → what it does to the items of a correct answer; the rest happens in `_deaf`, `run`, `run_batch`."""
