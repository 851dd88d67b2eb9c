"""The semantic cache: what passes for the same question, and that nobody else's answer ever does."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.echo import Echo
from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Started
from inferhub.core.errors import UpstreamFailed
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.usage import Usage
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.pipeline.cache import Cache, Semantic
from inferhub.pipeline.cache import semantic as module
from inferhub.pipeline.cache.lexical import differ, gist
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.onion import build
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.testing.calls import TESTER, Collector, make_call

ROOT = Path(__file__).parents[2]
# `benchmarks` is run from the repository's root and never installed.
sys.path.insert(0, str(ROOT))

from benchmarks.semantic_pairs import KINDS, halves  # noqa: E402

# --- the guard ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is this safe?", "Is this not safe?"),
        ("Does it work?", "Doesn't it work?"),
        ("Cook it for 3 minutes", "Cook it for 4 minutes"),
        ("Cook it for three minutes", "Cook it for four minutes"),
        ("What are 1,000 dollars worth?", "What are 1.000 dollars worth?"),
        ("Who met Anna in Oslo?", "Who met Anna in Lima?"),
        ("Fly from Oslo to Lima", "Fly from Lima to Oslo"),
        ("Is Oslo near Lima?", "Is Lima near Oslo?"),
        ("What are 5 miles in feet?", "What are 5 feet in miles?"),
        ("What are 5 miles in feet?", "What are 5 miles in metres?"),
        ("When was it built?", "Where was it built?"),
        ("How do I enable it?", "How do I disable it?"),
        ("Which one is the cheapest?", "Which one is the most expensive?"),
        ("Is it legal here?", "Is it illegal here?"),
        ("How do I train a dog?", "How do I train a cat?"),
        ("How do I sort a list?", "How do I sort a list by length?"),
        ("Is 2 + 2 right?", "Is 2 - 2 right?"),
        ("Use NATO rules", "Use FIFA rules"),
        ("Mit Zucker?", "Mit Salz?"),
    ],
)
def test_a_word_that_changes_the_answer_is_seen(one: str, other: str) -> None:
    assert differ(gist(one), gist(other))
    assert differ(gist(other), gist(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of Peru?", "Tell me the capital of Peru"),
        ("What is the capital of Peru?", "what is the capital of Peru"),
        ("How many people live in Peru?", "How many inhabitants does Peru have?"),
        ("What is the sum of 4 and 5?", "What do you get by adding 4 and 5?"),
        ("What are 1,000 dollars in euros?", "What are 1000 dollars in euros?"),
        ("Is Anna's house big?", "Is the house of Anna big?"),
        ("Boris lives where?", "Where does Boris live?"),
        ("Isn't it late?", "Is it not late?"),
    ],
)
def test_another_wording_is_let_through(one: str, other: str) -> None:
    assert not differ(gist(one), gist(other))
    assert not differ(gist(other), gist(one))


@pytest.mark.parametrize(
    "text", ["", " ", "?", "9" * 5000, "'" * 5000, "A." * 2000, "\ud83d\ude00 ß İ", "don’t"]
)
def test_any_text_has_a_gist(text: str) -> None:
    assert not differ(gist(text), gist(text))


# --- the pairs ---------------------------------------------------------------------------------------


def test_the_pairs_are_many_always_the_same_and_split_by_template() -> None:
    calibration, judgement = halves()
    assert (calibration, judgement) == halves()
    assert len(calibration) + len(judgement) >= 1000
    for half in (calibration, judgement):
        assert {pair.kind for pair in half} == set(KINDS)
        assert all(pair.first != pair.second for pair in half)
    texts = [
        {text for pair in half for text in (pair.first, pair.second)} for half in (calibration, judgement)
    ]
    assert not texts[0] & texts[1]


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "explanation" / "cache.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks" / "results" / "semantic.json").read_text(encoding="utf-8"))
    figures = {figure["name"]: figure["value"] for figure in result["figures"]}
    for name in ("with the guard", "without"):
        false_hits, found = (
            figures[f"false hits on the other half, {name}"],
            figures[f"paraphrases found, {name}"],
        )
        threshold = figures[f"calibrated threshold, {name}"]
        assert f"| {threshold:.3g} | {false_hits:.1f} % | {found:.0f} % |" in page, name
    false_hits = figures["false hits at the threshold in force"]
    found = figures["paraphrases found at the threshold in force"]
    assert f"| **0.95** | **{false_hits:.1f} %** | **{found:.0f} %** |" in page


# --- the ring ----------------------------------------------------------------------------------------


class Hub:
    """An echo, and an embedding that only counts words, so that any order of them is the same."""

    def __init__(self, **options: Any) -> None:
        self.computed = self.embedded = 0
        self.fails = self.hangs = False
        self.now_s = 1000.0
        self.version = "m#1"
        self._options = options

    async def start(self) -> None:
        self.echo = Echo(ModelSpec("m", "echo"), None)
        await self.echo.load()
        self.semantic = Semantic(
            self._embed, "e", threshold=0.9, timeout_s=0.2, clock=lambda: self.now_s, **self._options
        )
        self.store = TieredAnswers(MemoryAnswers(2**24), None)
        ring = Cache(self.store, self.directory, ttl_s=60, semantic=self.semantic)
        self.handler = build([ring], Dispatch(self.directory))

    def directory(self) -> Directory:
        status = ModelStatus(ModelSpec(self.version, "echo"), self.echo.capabilities, "cpu")
        return Directory({"m": (Endpoint("w1", status, self._infer),)})

    async def _infer(self, call: Call, emit: Emit) -> None:
        self.computed += 1
        async for item in self.echo.run(call):
            await emit(item)

    async def _embed(self, call: Call, emit: Emit) -> None:
        self.embedded += 1
        assert (call.model, call.modality, call.request.model) == ("e", "embedding", "e")
        assert json.loads(call.body) == {"model": "e", "input": call.request.input}
        if self.fails:
            raise UpstreamFailed
        if self.hangs:
            await asyncio.Event().wait()
        counts = [0.0] * 64
        for word in re.findall(r"\w+", call.request.input.casefold()):
            counts[sum(map(ord, word)) % 64] += 1.0
        await emit(Started("e", "w"))
        await emit(Delta(EmbeddingDelta(0, struct.pack("<64f", *counts))))
        await emit(Finished(Usage(1)))

    async def ask(
        self, text: Any, *, wish: Any = "semantic", tenant: str = "ten_a", before: Any = (), **params: Any
    ) -> tuple[str, str]:
        messages = [*before, {"role": "user", "content": text}]
        call = make_call("chat", "m", messages=messages, **params)
        emit = Collector()
        await self.handler(replace(call, cache=wish, principal=replace(TESTER, tenant_id=tenant)), emit)
        return told(emit.chunks)


def told(chunks: list[Chunk]) -> tuple[str, str]:
    assert isinstance(chunks[0], Started)
    assert isinstance(chunks[-1], Finished)
    return chunks[0].cache, "".join(
        chunk.payload.content or "" for chunk in chunks if isinstance(chunk, Delta)
    )


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    yield hub
    await hub.store.close()


ASKED = "how do plants grow tall in spring"
REWORDED = "in spring how do plants grow tall"


async def test_the_same_in_other_words_gets_the_answer(hub: Hub) -> None:
    assert await hub.ask(ASKED) == ("miss", ASKED)
    assert await hub.ask(REWORDED) == ("hit", ASKED)
    assert await hub.ask([{"type": "text", "text": REWORDED}]) == ("hit", ASKED)
    assert hub.computed == 1
    # In the very same words no vector is needed.
    embedded = hub.embedded
    assert await hub.ask(ASKED) == ("hit", ASKED)
    assert hub.embedded == embedded


async def test_only_those_who_ask_for_it_get_it(hub: Hub) -> None:
    await hub.ask(ASKED)
    for wish in ("on", "auto", "off"):
        assert (await hub.ask(REWORDED, wish=wish, temperature=0))[1] == REWORDED
    embedded = hub.embedded
    await hub.ask("something else", wish="on")
    assert hub.embedded == embedded


async def test_all_but_the_last_message_has_to_be_exactly_alike(hub: Hub) -> None:
    system = {"role": "system", "content": "You are a gardener."}
    await hub.ask(ASKED, before=[system], temperature=0.5)
    others: list[dict[str, Any]] = [
        {"before": [], "temperature": 0.5},
        {"before": [{**system, "content": "You are a physicist."}], "temperature": 0.5},
        {
            "before": [system, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "temperature": 0.5,
        },
        {"before": [system], "temperature": 0.6},
        {"before": [system], "temperature": 0.5, "max_tokens": 50},
        {"before": [system], "temperature": 0.5, "tenant": "ten_b"},
    ]
    for other in others:
        assert (await hub.ask(REWORDED, **other))[0] == "miss", other
    assert await hub.ask("spring in how do plants grow tall", before=[system], temperature=0.5) == (
        "hit",
        ASKED,
    )
    hub.version = "m#2"
    assert (await hub.ask(REWORDED, before=[system], temperature=0.5))[0] == "miss"


async def test_the_guard_stands_before_a_similar_vector(hub: Hub) -> None:
    await hub.ask("how do plants not grow tall in spring 2020 and in summer and in autumn and in winter")
    again = "how do plants grow tall in spring 2020 and in summer and in autumn and in winter"
    assert await hub.ask(again) == ("miss", again)


async def test_an_answer_that_is_gone_is_computed_again(hub: Hub) -> None:
    await hub.ask(ASKED)
    hub.now_s += 61
    assert (await hub.ask(REWORDED))[0] == "miss"
    # Forgotten by the store before its time.
    await hub.ask("what does a whale eat")
    await hub.store._memory.close()
    assert (await hub.ask("a whale does eat what"))[0] == "miss"


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_without_an_embedding_the_call_goes_on(hub: Hub, fault: str) -> None:
    setattr(hub, fault, True)
    assert await hub.ask(ASKED) == ("miss", ASKED)
    assert await hub.ask(ASKED) == ("hit", ASKED)
    assert await hub.ask(REWORDED) == ("miss", REWORDED)


async def test_what_is_no_question_in_text_is_only_kept_exactly(hub: Hub) -> None:
    tool = {"role": "assistant", "content": "hello"}
    call = make_call("chat", "m", messages=[{"role": "user", "content": "x"}, tool])
    emit = Collector()
    await hub.handler(replace(call, cache="semantic"), emit)
    await hub.ask("word " * 1000)
    assert hub.embedded == 0
    assert (await hub.ask("word " * 1000))[0] == "hit"


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_PARTITION", 20)
    hub = Hub(max_bytes=100_000)
    await hub.start()
    for number in range(60):
        await hub.ask(f"tell me of question {number}", temperature=0.1)
    assert len(hub.semantic._partitions) == 1
    assert (await hub.ask("question 59 tell me of", temperature=0.1))[0] == "hit"
    assert (await hub.ask("question 1 tell me of", temperature=0.1))[0] == "miss"
    for number in range(60):
        await hub.ask("question", seed=number)
    assert hub.semantic.size_bytes <= 100_000
    assert 1 < len(hub.semantic._partitions) < 60
    assert hub.semantic.size_bytes == sum(p.size_bytes for p in hub.semantic._partitions.values())
    await hub.store.close()
