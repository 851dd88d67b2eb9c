"""OpenAI's edits of pictures: `POST /v1/images/edits`, a form with pictures, a mask and a prompt."""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.image import EDIT_FILES, MODALITY, ImageRequest, ImageResponse, check
from inferhub.modalities.image.request import Task


def translating(task: Task) -> Any:
    """How a request of an address becomes one that says what is to be done."""

    def translate(asked: ImageRequest, body: bytes) -> Translated:
        told: dict[str, Any] = {**msgspec.json.decode(body), "task": task}
        return Translated(msgspec.structs.replace(asked, task=task), msgspec.json.encode(told))

    return translate


def checking(task: Task) -> Any:
    """The modality's own check, of a request that does not say yet what is to be done."""

    def check_as(asked: ImageRequest) -> None:
        check(msgspec.structs.replace(asked, task=task))

    return check_as


def writing(task: Task) -> Any:
    """The modality's events, under the names that belong to `task`."""

    def write(asked: ImageRequest, envelope: Any) -> Any:
        assert MODALITY.writer is not None  # noqa: S101 - it streams
        return MODALITY.writer(msgspec.structs.replace(asked, task=task), envelope)

    return write


DIALECT = Dialect(
    name="openai_image_edits",
    path="/v1/images/edits",
    summary="Change pictures: by a prompt, into a style, or to a larger size",
    modality=MODALITY,
    request=ImageRequest,
    response=ImageResponse,
    check=checking("edit"),
    translate=translating("edit"),
    fold=MODALITY.fold,
    writer=writing("edit"),
    id_prefix="image-",
    example={"prompt": "A red circle"},
    files=EDIT_FILES,
)
