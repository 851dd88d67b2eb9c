"""OpenAI's variations of a picture: `POST /v1/images/variations`, a form with one picture and no prompt."""

from __future__ import annotations

from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.dialects.openai_image_edits import checking, translating, writing
from inferhub.modalities.image import MODALITY, VARIATION_FILES, ImageRequest, ImageResponse

DIALECT = Dialect(
    name="openai_image_variations",
    path="/v1/images/variations",
    summary="Make pictures that are like one",
    modality=MODALITY,
    request=ImageRequest,
    response=ImageResponse,
    check=checking("variation"),
    translate=translating("variation"),
    fold=MODALITY.fold,
    writer=writing("variation"),
    id_prefix="image-",
    example={},
    files=VARIATION_FILES,
)
