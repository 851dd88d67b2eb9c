"""What is asked of every vendor that hears, speaks or paints, for the conformance matrix.

`conformance` runs it beside its other questions. A vendor has another model for each of these, so each is
asked for by a name of its own; judged is what comes back, and what the strict upstream was sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import aiohttp

from inferhub.media import sniff
from inferhub.testing.conformance_checks import Judged, Verdict
from inferhub.testing.upstream_player import Record
from inferhub.testing.upstream_process import records_of, trace_of
from inferhub.testing.upstream_sounds import picture, sound

_OWN = frozenset({"gemini", "anthropic"})
_MODELS = {
    "transcription": {"mistral": "voxtral-mini-latest", "gemini": "gemini-2.5-flash", "azure": "whisper"},
    "speech": {"groq": "canopylabs/orpheus-v1-english", "gemini": "gemini-2.5-flash-preview-tts"},
    "image": {
        "inferhub": "dall-e-2",
        "openai": "gpt-image-1",
        "azure": "dall-e-3",
        "together": "black-forest-labs/FLUX.1-schnell",
        "xai": "grok-2-image",
        "gemini": "gemini-2.5-flash-image",
    },
}
_VOICES = {"inferhub": "alloy"}
"""Where the upstream itself would choose one, which its double does not."""
_USUAL = {"transcription": "whisper-1", "speech": "tts-1", "image": "gpt-image-1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaCheck:
    name: str
    modality: str
    path: str
    fields: Mapping[str, str]
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """Where it has some, the request is a form."""
    holds: Callable[[bytes], bool]
    streams: ClassVar[bool] = False


def _has_text(body: bytes) -> bool:
    return bool(json.loads(body)["text"].strip())


def _has_segments(body: bytes) -> bool:
    return len(json.loads(body)["segments"]) > 0


def _has_picture(body: bytes) -> bool:
    return sniff(base64.b64decode(json.loads(body)["data"][0]["b64_json"])) == "image/png"


_SOUND = {"file": ("speech.wav", sound("wav", 1000))}
_PICTURE = {"image": ("picture.png", picture(16, 16))}
_PROMPT = {"prompt": "script:n=2\nA circle.", "response_format": "b64_json"}
MEDIA_CHECKS = (
    MediaCheck(
        name="transcription", modality="transcription", path="/v1/audio/transcriptions",
        fields={"prompt": "script:n=2"}, files=_SOUND, holds=_has_text,
    ),
    MediaCheck(
        name="its times", modality="transcription", path="/v1/audio/transcriptions",
        fields={"prompt": "script:n=2", "response_format": "verbose_json"}, files=_SOUND, holds=_has_segments,
    ),
    MediaCheck(
        name="translation", modality="transcription", path="/v1/audio/translations",
        fields={"prompt": "script:n=2"}, files=_SOUND, holds=_has_text,
    ),
    MediaCheck(
        name="speech", modality="speech", path="/v1/audio/speech",
        fields={"input": "script:n=2\nSay it.", "response_format": "mp3"},
        holds=lambda body: sniff(body) == "audio/mpeg",
    ),
    MediaCheck(
        name="images", modality="image", path="/v1/images/generations", fields=_PROMPT, holds=_has_picture
    ),
    MediaCheck(
        name="image edits", modality="image", path="/v1/images/edits", fields=_PROMPT, files=_PICTURE,
        holds=_has_picture,
    ),
)  # fmt: skip


def media_models(url: str, vendors: Sequence[str], offered: Callable[[str, str], bool]) -> list[str]:
    """Lines of a spec: a model for each vendor and modality that it has."""
    lines = []
    for vendor in vendors:
        for modality, named in _MODELS.items():
            if not offered(vendor, modality):
                continue
            model = named.get(vendor, _USUAL[modality])
            more = "" if vendor in _OWN else f", vendor: {vendor}, modalities: [{modality}]"
            backend = vendor if vendor in _OWN else "openai_compatible"
            options = f'{{base_url: "{url}", api_key: k, upstream_model: {model}{more}}}'
            lines.append(f"  - {{name: {vendor}-{modality}, backend: {backend}, options: {options}}}")
    return lines


async def ask_media(
    session: aiohttp.ClientSession, hub_url: str, vendor: str, check: MediaCheck
) -> tuple[int, bytes]:
    """(status, body)."""
    fields = {**check.fields, "model": f"{vendor}-{check.modality}"}
    if check.modality == "speech" and vendor in _VOICES:
        fields["voice"] = _VOICES[vendor]
    headers = {"traceparent": trace_of(f"{vendor}/{check.name}"), "x-inferhub-cache": "off"}
    sent: dict[str, Any] = {"json": fields}
    if check.files:
        form = aiohttp.FormData(fields)
        for name, (filename, data) in check.files.items():
            form.add_field(name, data, filename=filename)
        sent = {"data": form}
    async with session.post(hub_url + check.path, headers=headers, **sent) as answer:
        return answer.status, await answer.read()


def judge_media(
    vendor: str, check: MediaCheck, answer: tuple[int, bytes], log: Sequence[Record], *, is_like_openai: bool
) -> Judged:
    status, body = answer
    records = records_of(f"{vendor}/{check.name}", log)
    wrong = [violation for record in records for violation in record.violations]
    if not is_like_openai:
        # The others publish that they are like OpenAI, and have fields and words beside OpenAI's.
        wrong = [
            v for v in wrong if "unknown field" not in v and "not allowed" not in v and "is not" not in v
        ]
    if status == 200 and records and not wrong and check.holds(body):
        is_own = records[-1].dialect == "openai_media"
        return Judged(Verdict.YES if is_own else Verdict.TRANSLATED, "")
    error: dict[str, Any] = json.loads(body).get("error", {}) if status >= 400 else {}
    if status == 404 or "does not answer" in str(error.get("message")):
        return Judged(Verdict.NOT_OFFERED, "")
    if status == 400 and not records and error.get("code") == "unsupported_parameter":
        return Judged(Verdict.REFUSED, "")
    return Judged(Verdict.BROKEN, f"{status} {body[:300]!r}, {wrong}")


async def run_media(
    hub_url: str, key: str, vendors: Sequence[str]
) -> Mapping[tuple[str, str], tuple[int, bytes]]:
    """(vendor, check) → what came back."""
    limit = asyncio.Semaphore(8)

    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:

        async def one(vendor: str, check: MediaCheck) -> tuple[int, bytes]:
            async with limit:
                return await ask_media(session, hub_url, vendor, check)

        cells = [(vendor, check) for vendor in vendors for check in MEDIA_CHECKS]
        answers = await asyncio.gather(*(one(vendor, check) for vendor, check in cells))
    return {(vendor, check.name): answer for (vendor, check), answer in zip(cells, answers, strict=True)}
