"""Chat about pictures with a model that cannot see: another model looks, this one speaks.

A ring inside `media`, which has checked the pictures, and around the attempts. Where no endpoint of the
asked model sees, and a model for `vision` is served, each picture becomes text. What that model answered by
rules is what the client is told, in the chat model's words only if they say the same.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.call import Media as File
from inferhub.core.errors import InternalError, Invalid
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.media import sniff
from inferhub.modalities.chat import ChatDelta, ChatRequest, TextPart
from inferhub.modalities.vision import Reply, VisionDelta, VisionRequest
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.facts import certain, facts_of, last_question, says
from inferhub.pipeline.media import Media
from inferhub.pipeline.media_parts import Path, Place, places_of, with_urls

_SEES = "vision"
"""A feature of chat, and the modality of who looks."""
_LOOKS = ("description", "objects", "question")
"""What a model for vision must offer to look for another one."""
_CANNOT_FETCH = Capability("chat")


@dataclass(slots=True)
class _Seen:
    """What was found out about the pictures of one call."""

    texts: dict[Path, object] = field(default_factory=dict)
    """What takes a picture's place in the request."""
    reply: Reply | None = None
    images: int = 0
    pixels: int = 0

    def add(self, place: Place, facts: VisionDelta, usage: Usage, title: str) -> None:
        # Behind a part of the path is the picture's URL; the whole part is replaced.
        self.texts[place.path[:4]] = TextPart(facts_of(facts, title))
        self.images += usage.images
        self.pixels += usage.pixels

    def bill(self, usage: Usage) -> Usage:
        return replace(usage, images=usage.images + self.images, pixels=usage.pixels + self.pixels)


class Describe:
    """One per gateway process; keeps nothing between calls."""

    def __init__(self, directory: Callable[[], Directory], media: Media) -> None:
        self._directory = directory
        self._media = media

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        looker = self._looker(call)
        if looker is None:
            return await inner(call, emit)
        if self._media.concerns(call):
            call = await self._media.inline(call, _CANNOT_FETCH)
        # Looking takes a while, and the head of a stream does not wait for it.
        await emit(Started(self._directory().primary(call.model), "", described_by=looker))
        seen = await self._look(call, looker, inner)
        request, body = with_urls(call.request, call.body, seen.texts)
        # No upstream may see this under the name of a call that still has its pictures.
        asked = replace(call, request=request, body=body, native=None, key=f"{call.key}-said")
        reply = seen.reply
        if reply is None or not _is_plain(call.request):
            return await inner(asked, _told(emit, looker, seen))
        request, body = with_urls(request, body, _reminded(request, reply))
        return await _phrased(replace(asked, request=request, body=body), emit, inner, (looker, seen, reply))

    def _looker(self, call: Call) -> str | None:
        """The model that looks; None where nothing has to be looked at, or nobody can."""
        request = call.request
        if type(request) is not ChatRequest or not any(p.kind == "image" for p in places_of(request)):
            return None
        if call.native is not None and call.native.needs:
            # Asks for what a translation cannot ask for.
            return None
        directory = self._directory()
        found = [
            endpoint.model.capability("chat")
            for model in directory.models_of(call.model)
            for endpoint in directory.endpoints.get(model, ())
        ]
        speaks = [capability for capability in found if capability is not None]
        if not speaks or any(_SEES in capability.features for capability in speaks):
            return None
        return directory.first_for(_SEES, _LOOKS, call.principal.may_call)

    async def _look(self, call: Call, looker: str, inner: Handler) -> _Seen:
        """One picture after the other. The question is about the last message that has pictures."""
        pictures = [place for place in places_of(call.request) if place.kind == "image"]
        question = last_question(call.request)
        seen = _Seen()
        latest = [place for place in pictures if place.path[1] == pictures[-1].path[1]]
        for number, place in enumerate(pictures, 1):
            is_asked = question is not None and place in latest
            title = "Picture" if len(pictures) == 1 else f"Picture {number}"
            facts, usage = await self._ask(call, looker, place, question if is_asked else None, inner)
            seen.add(place, facts, usage, title)
            if is_asked and len(latest) == 1 and certain(facts.reply):
                seen.reply = facts.reply
        return seen

    async def _ask(
        self, call: Call, looker: str, place: Place, question: str | None, inner: Handler
    ) -> tuple[VisionDelta, Usage]:
        data = base64.b64decode(place.url.partition(",")[2])
        request = VisionRequest(model=looker, question=question)
        found: list[VisionDelta] = []
        usage = Usage()

        async def collect(chunk: Chunk) -> None:
            nonlocal usage
            if isinstance(chunk, Delta):
                found.append(chunk.payload)
            elif isinstance(chunk, Finished):
                usage = chunk.usage

        wanted = replace(
            call,
            modality=_SEES,
            model=looker,
            request=request,
            body=msgspec.json.encode(request),
            media=(File("image", data, sniff(data) or ""),),
            key=f"{call.key}-{'-'.join(map(str, place.path[1:4:2]))}",
            native=None,
            stream=False,
            unknown_params=(),
        )
        try:
            await inner(wanted, collect)
        except Invalid as error:
            raise Invalid(
                f"'{place.param}': {error.message}", param=place.param, code=error.wire_code
            ) from error
        if len(found) != 1:
            raise InternalError("A vision model ended without saying what it sees.")
        return found[0], usage


def _is_plain(request: ChatRequest) -> bool:
    """Whether one text is wanted, that may be put into other words."""
    return (
        request.messages[-1].role == "user"
        and (request.n or 1) == 1
        and not (request.tools or request.functions or request.logprobs or request.audio)
        and request.response_format is None
    )


def _reminded(request: ChatRequest, reply: Reply) -> dict[Path, object]:
    """The last message with the answer below the question."""
    at = len(request.messages) - 1
    content = request.messages[at].content
    note = TextPart(f"\n(Known for certain: {reply.text} Answer with this, in one sentence.)")
    parts = content if isinstance(content, list) else [TextPart(content or "")]
    return {("messages", at, "content"): [*parts, note]}


def _told(emit: Emit, looker: str, seen: _Seen) -> Emit:
    """Passes an answer on as it comes."""

    async def tell(chunk: Chunk) -> None:
        if type(chunk) is Started:
            chunk = replace(chunk, described_by=looker)
        elif type(chunk) is Finished:
            chunk = replace(chunk, usage=seen.bill(chunk.usage))
        await emit(chunk)

    return tell


async def _phrased(call: Call, emit: Emit, inner: Handler, known: tuple[str, _Seen, Reply]) -> None:
    """Holds the chat model's answer until it is whole, and gives the rules' own where that says otherwise."""
    looker, seen, reply = known
    held: list[Chunk] = []

    async def hold(chunk: Chunk) -> None:
        held.append(chunk)

    await inner(call, hold)
    said = "".join(
        chunk.payload.content or ""
        for chunk in held
        if isinstance(chunk, Delta) and isinstance(chunk.payload, ChatDelta)
    )
    tell = _told(emit, looker, seen)
    for chunk in held if says(said, reply, last_question(call.request) or "") else _instead(held, reply):
        await tell(chunk)


def _instead(held: Sequence[Chunk], reply: Reply) -> Sequence[Chunk]:
    begin = [chunk for chunk in held if isinstance(chunk, Started)]
    end = [Finished(chunk.usage, chunk.cost_usd) for chunk in held if isinstance(chunk, Finished)]
    return [*begin, Delta(ChatDelta(content=reply.text)), Delta(ChatDelta(finish_reason="stop")), *end]
