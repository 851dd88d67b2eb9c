"""Pictures over HTTP: what can be seen on one, and new ones."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from inferhub.client.session import Part, Session, decode, without_none
from inferhub.core.errors import UpstreamFailed
from inferhub.modalities.image import ImageRequest
from inferhub.modalities.vision import VisionRequest


class File(NamedTuple):
    """A picture of the caller's."""

    data: bytes
    name: str = "image"


class _Image(msgspec.Struct):
    b64_json: str | None = None


class _Images(msgspec.Struct):
    data: list[_Image]


class Pictures:
    """Part of `Client`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def look(self, picture: File, request: VisionRequest) -> bytes:
        """What is on it, and the answer to `request.question`, as the JSON of `POST /v1/vision/analyze`."""
        fields = [
            Part(name, str(value))
            for name, value in without_none(request).items()
            if name in _ASKED and value
        ]
        fields += [Part("features[]", feature) for feature in request.features or ()]
        form = [Part("image", picture.data, picture.name), *fields]
        return await self._session.body("POST", "/v1/vision/analyze", form=form)

    async def make(self, request: ImageRequest) -> list[bytes]:
        """New pictures from `request.prompt`: whole files."""
        asked = {name: value for name, value in without_none(request).items() if name not in _OURS}
        body = msgspec.json.encode({**asked, **self._form_of_answer(request)})
        return _files(await self._session.body("POST", "/v1/images/generations", body))

    async def edit(
        self, pictures: Sequence[File], request: ImageRequest, mask: File | None = None
    ) -> list[bytes]:
        """Pictures made of pictures: whole files."""
        form = [
            Part("image[]" if len(pictures) > 1 else "image", picture.data, picture.name)
            for picture in pictures
        ]
        if mask is not None:
            form.append(Part("mask", mask.data, mask.name))
        asked = {**without_none(request), **self._form_of_answer(request)}
        for name, value in asked.items():
            if name not in _OURS and value != "":
                text = str(value)
                form.append(Part(name, text.lower() if isinstance(value, bool) else text))
        return _files(await self._session.body("POST", "/v1/images/edits", form=form))

    @staticmethod
    def _form_of_answer(request: ImageRequest) -> dict[str, str]:
        """OpenAI's newer models refuse to be told what they do anyway."""
        return {} if request.model.startswith("gpt-image") else {"response_format": "b64_json"}


_ASKED = frozenset({"model", "question", "min_score"})
_OURS = frozenset({"task", "response_format", "stream"})


def _files(body: bytes) -> list[bytes]:
    found = [image.b64_json for image in decode(body, _Images).data]
    if not found or None in found:
        raise UpstreamFailed("The server's answer has no pictures.")
    return [base64.b64decode(text or "") for text in found]
