"""What backends promise that hear, speak, paint and see."""

from __future__ import annotations

from typing import Any

from inferhub.backends.base import Backend
from inferhub.core.call import Call, Media
from inferhub.core.models import Capability
from inferhub.media import inspect_image, sniff
from inferhub.testing.calls import make_call
from inferhub.testing.contract.frame import check, finish
from inferhub.testing.upstream_sounds import picture, sound

_KINDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
}
_SOUND = sound("wav", 1500)


def _recording(*, stream: bool = False) -> Call:
    media = (Media("file", _SOUND, "audio/wav", "speech.wav"),)
    return make_call("transcription", media=media, stream=stream)


@check("transcription", fault="text_lost_in_streams")
async def a_streamed_transcript_says_the_same(backend: Backend, capability: Capability) -> None:
    said = []
    for stream in (False, True):
        result = await finish(backend, _recording(stream=stream))
        said.append("".join(d.segment.text for d in result.payloads if d.segment is not None).strip())
    assert said[0] == said[1]


@check("transcription", fault="no_length")
async def counts_how_long_it_listened(backend: Backend, capability: Capability) -> None:
    usage = (await finish(backend, _recording())).usage
    assert 1000 <= usage.audio_ms <= 2000


@check("speech", fault="wrong_container")
async def speaks_the_format_asked_for(backend: Backend, capability: Capability) -> None:
    for format_, kind in _KINDS.items():
        result = await finish(backend, make_call("speech", response_format=format_))
        assert sniff(b"".join(delta.data for delta in result.payloads)) == kind
        assert result.usage.characters > 0
        assert result.usage.audio_ms > 0


@check("image", fault="wrong_size")
async def says_how_large_its_pictures_are(backend: Backend, capability: Capability) -> None:
    media = (Media("image", picture(48, 32), "image/png", "x.png"),)
    task = "generate" if "generate" in capability.features else "edit"
    # Some models know no words but the names of styles.
    params: dict[str, Any] = {"prompt": "A ship, fresco", "task": task, "output_format": "jpeg"}
    result = await finish(backend, make_call("image", media=media, **params))
    finished = [delta for delta in result.payloads if delta.kind == "image"]
    assert [delta.index for delta in finished] == [0]
    head = inspect_image(finished[0].data)
    assert (head.kind, head.width, head.height) == ("image/jpeg", finished[0].width, finished[0].height)
    assert (result.usage.images, result.usage.pixels) == (1, head.width * head.height)


@check("vision", fault="no_reply")
async def answers_about_the_picture_it_was_given(backend: Backend, capability: Capability) -> None:
    media = (Media("image", picture(64, 48), "image/png", "x.png"),)
    asked: dict[str, Any] = {}
    if "question" in capability.features:
        asked["question"] = "How many dogs are there?"
    result = await finish(backend, make_call("vision", media=media, **asked))
    [seen] = result.payloads
    assert (seen.width, seen.height) == (64, 48)
    assert (result.usage.images, result.usage.pixels) == (1, 64 * 48)
    assert not asked or (seen.reply.text and seen.reply.value)
