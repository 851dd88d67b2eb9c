"""What a chat model that cannot see may say of a picture, and whose words are sent in the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Native, Started
from inferhub.core.errors import Invalid, UpstreamFailed
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.tenancy import Principal, Role
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.vision import Reply, SeenObject, TextLine, VisionDelta
from inferhub.pipeline.describe import Describe
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.facts import facts_of, last_question, says
from inferhub.pipeline.media import Media
from inferhub.testing.calls import Collector, make_call

PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
LOOKS = frozenset({"description", "objects", "question", "text"})
COUNT = Reply("There are two cups on the picture.", "2", "count", 0.9)
TOTAL = Reply("The total is $1,249.50.", "$1,249.50", "text", 0.8)
NO = Reply("No. I do not see a dog.", "no", "yes_no", 0.5)
COLOR = Reply("The cup is red.", "red", "color", 0.9)
THINGS = Reply("The picture shows a cat and a cup.", "cat, cup", "object", 0.9)


@pytest.mark.parametrize(
    ("reply", "said", "expected"),
    [
        (COUNT, "There are 2 cups.", True),
        (COUNT, "I see two cups on the picture.", True),
        (COUNT, "There are three cups.", False),
        (COUNT, "There are two cups and five plates.", False),
        (COUNT, "There are 2 cups, about 40% full.", False),
        (COUNT, "", False),
        (TOTAL, "The total is $1,249.50.", True),
        (TOTAL, "The total is $1,249.", False),
        (TOTAL, "The total is $1,249.50, with $200 of tax.", False),
        (TOTAL, "The total is $1,249.50, and I am sure that you will find this interesting.", False),
        (NO, "No, there is no dog.", True),
        (NO, "There may be a dog, no?", False),
        (NO, "Yes. I see a dog.", False),
        (COLOR, "The cup is red.", True),
        (COLOR, "The cup has a lovely colour.", False),
        (THINGS, "I see a cat and a cup.", True),
        (THINGS, "I see a cat.", False),
    ],
)
def test_what_says_the_same(reply: Reply, said: str, expected: bool) -> None:
    assert says(said, reply, "How many cups, what total, is there a dog, what colour is the cup?") is expected


def test_facts_in_words() -> None:
    facts = VisionDelta(
        300, 300, text=[TextLine("STOP", 0.9, (0, 0, 9, 9))], objects=[SeenObject("cup", 0.9, (0, 0, 10, 10), "red")],
        description="The picture shows a red cup.",
    )  # fmt: skip
    assert facts_of(facts, "Picture 2") == (
        "[Picture 2, 300 x 300 pixels, as another model sees it: The picture shows a red cup.\n"
        "Things: red cup at the top left.\nText on it:\nSTOP]"
    )


def asking(text: str = "How many cups?", pictures: int = 1, **params: Any) -> Call:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": PNG}}] * pictures
    return make_call("chat", "blind", messages=[{"role": "user", "content": parts}], **params)


def test_the_question_is_the_last_users_and_bounded() -> None:
    assert last_question(asking("What?").request) == "What?"
    assert last_question(asking("").request) is None
    assert len(last_question(asking("x" * 100_000).request) or "") == 4000


class Hub:
    """The inner handler: a model that looks, and one that speaks."""

    def __init__(self, said: str = "There are 2 cups.", reply: Reply | None = COUNT) -> None:
        self.said = said
        self.facts = VisionDelta(1, 1, description="Two cups.", reply=reply)
        self.calls: list[Call] = []
        self.failure: Exception | None = None

    async def __call__(self, call: Call, emit: Emit) -> None:
        self.calls.append(call)
        if call.modality == "vision":
            if self.failure is not None:
                raise self.failure
            await emit(Started("scene", "w"))
            await emit(Delta(self.facts))
            return await emit(Finished(Usage(images=1, pixels=640)))
        await emit(Started("blind", "w"))
        for word in self.said.split(" "):
            await emit(Delta(ChatDelta(content=f"{word} ")))
        await emit(Delta(ChatDelta(finish_reason="stop")))
        return await emit(Finished(Usage(10, 5)))


def directory(*, sees: bool = False, has_scene: bool = True) -> Directory:
    def endpoint(name: str, capability: Capability) -> Endpoint:
        status = ModelStatus(ModelSpec(name, "echo"), (capability,), "cpu")
        return Endpoint("w", status, infer=None)  # type: ignore[arg-type]

    found = {"blind": (endpoint("blind", Capability("chat", frozenset({"vision"} if sees else ()))),)}
    if has_scene:
        found["scene"] = (endpoint("scene", Capability("vision", LOOKS)),)
    return Directory(found)


def ring(**kind: bool) -> Describe:
    snapshot = directory(**kind)
    return Describe(lambda: snapshot, Media(None, None))  # type: ignore[arg-type]


async def answered(call: Call, hub: Hub, **kind: bool) -> list[Chunk]:
    got = Collector()
    await ring(**kind)(call, got, hub)
    return got.chunks


def text_of(chunks: list[Chunk]) -> str:
    return "".join(c.payload.content or "" for c in chunks if isinstance(c, Delta)).strip()


async def test_the_models_words_where_they_say_the_same() -> None:
    hub = Hub()
    chunks = await answered(asking(), hub)
    assert text_of(chunks) == "There are 2 cups."
    assert [c.described_by for c in chunks if isinstance(c, Started)] == ["scene", "scene"]
    assert chunks[-1] == Finished(Usage(10, 5, images=1, pixels=640))
    looked, spoke = hub.calls
    assert (looked.modality, looked.model, looked.request.question) == ("vision", "scene", "How many cups?")
    assert looked.media[0].kind == "image/png"
    assert b"base64" not in spoke.body
    assert b"There are two cups on the picture." in spoke.body
    assert len({asking().key, looked.key, spoke.key}) == 3


async def test_the_rules_words_where_they_do_not() -> None:
    chunks = await answered(asking(), Hub("Oh what a lovely day."))
    assert text_of(chunks) == "There are two cups on the picture."
    assert chunks[-2] == Delta(ChatDelta(finish_reason="stop"))
    assert chunks[-1] == Finished(Usage(10, 5, images=1, pixels=640))


@pytest.mark.parametrize(
    "call",
    [
        asking("Write a poem."),
        asking(pictures=2),
        asking(n=2),
        asking(response_format={"type": "json_object"}),
        asking(tools=[{"type": "function", "function": {"name": "f"}}]),
    ],
)
async def test_the_models_words_wherever_no_single_answer_is_wanted(call: Call) -> None:
    is_poem = last_question(call.request) == "Write a poem."
    hub = Hub("Roses are red", Reply("", "", "unknown", 0) if is_poem else COUNT)
    chunks = await answered(call, hub)
    assert text_of(chunks) == "Roses are red"
    assert b"Known for certain" not in hub.calls[-1].body
    pictures = len([c for c in hub.calls if c.modality == "vision"])
    assert isinstance(chunks[-1], Finished)
    assert chunks[-1].usage.images == pictures


@pytest.mark.parametrize("kind", [{"sees": True}, {"has_scene": False}])
async def test_left_alone_where_somebody_sees_or_nobody_can(kind: dict[str, bool]) -> None:
    hub, call = Hub(), asking()
    await answered(call, hub, **kind)
    assert hub.calls == [call]


async def test_a_call_without_pictures_and_one_in_other_words_are_left_alone() -> None:
    for call in (
        asking(pictures=0),
        replace(asking(), native=Native("anthropic_messages", b"{}", {"citations": "citations"})),
    ):
        hub = Hub()
        await answered(call, hub)
        assert hub.calls == [call]


async def test_only_a_model_that_the_caller_may_call_looks() -> None:
    principal = Principal("ih_some", Role.ADMIN, models=frozenset({"blind"}))
    hub, call = Hub(), replace(asking(), principal=principal)
    await answered(call, hub)
    assert hub.calls == [call]


async def test_another_dialect_is_translated_for_good() -> None:
    hub = Hub()
    await answered(replace(asking(), native=Native("anthropic_messages", b"{}")), hub)
    assert [call.native for call in hub.calls] == [None, None]


async def test_failures_name_the_picture() -> None:
    hub = Hub()
    hub.failure = Invalid("The picture is corrupt.", param="image", code="invalid_image")
    with pytest.raises(Invalid) as caught:
        await answered(asking(), hub)
    assert (caught.value.param, caught.value.wire_code) == (
        "messages[0].content[1].image_url.url",
        "invalid_image",
    )
    hub.failure = UpstreamFailed("The vision engine failed.")
    with pytest.raises(UpstreamFailed):
        await answered(asking(), hub)
