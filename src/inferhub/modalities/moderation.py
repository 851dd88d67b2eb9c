"""Moderation: texts and pictures in, one verdict each out, in the categories of OpenAI's document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.tokens import text_tokens

MAX_INPUTS = 256
DEFAULT_MODEL = "omni-moderation-latest"
"""What OpenAI's clients mean when they name no model. An operator gives this name to a model, by a route."""
IMAGE_TOKENS = 1500

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Every answer has all of them. One that the model does not judge applies to no input type."""

InputType = Literal["text", "image"]


class ModerationImageUrl(msgspec.Struct):
    url: str


class ModerationText(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ModerationImage(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ModerationImageUrl


ModerationPart = ModerationText | ModerationImage


class ModerationRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/moderations`."""

    input: str | list[str | ModerationText | ModerationImage]
    model: str | None = DEFAULT_MODEL

    def __post_init__(self) -> None:
        # A null means the same as no name at all.
        self.model = self.model or DEFAULT_MODEL


class ModerationDelta(msgspec.Struct):
    """The verdict on input `index`. A backend names the categories that its model judges, and no others."""

    index: int
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    """0 to 1."""
    category_applied_input_types: dict[str, list[InputType]] = {}
    """Which kinds of input a score comes from; text where a judged category is missing."""


class ModerationResult(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[InputType]]


class ModerationResponse(msgspec.Struct):
    """Answer of `POST /v1/moderations`."""

    id: str
    model: str
    results: list[ModerationResult]


def inputs(request: ModerationRequest) -> list[str | list[ModerationPart]]:
    """What gets a verdict each: every text of a list, or all parts of one list together."""
    given = request.input
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) == len(given):
        return list(texts)
    return [[item for item in given if not isinstance(item, str)]]


def _check(request: ModerationRequest) -> None:
    given = request.input
    if not given:
        code = "empty_array" if given == [] else "invalid_value"
        raise Invalid("'input' is empty; send at least one text or picture.", param="input", code=code)
    if isinstance(given, str):
        return
    if len(given) > MAX_INPUTS:
        raise Invalid(f"'input' has {len(given)} items; at most {MAX_INPUTS} are allowed.", param="input")
    if len({isinstance(item, str) for item in given}) > 1:
        raise Invalid(
            "'input' mixes strings and objects; send only one kind.", param="input", code="invalid_type"
        )
    for position, item in enumerate(given):
        where = f"input[{position}]"
        if item == "" or (isinstance(item, ModerationText) and not item.text):
            raise Invalid(f"'{where}' is empty.", param=where)


def _requires(request: ModerationRequest) -> Mapping[str, str]:
    if isinstance(request.input, list):
        for position, item in enumerate(request.input):
            if isinstance(item, ModerationImage):
                return {"vision": f"input[{position}]"}
    return {}


def _estimate(request: ModerationRequest, _body_bytes: int) -> Usage:
    given = [request.input] if isinstance(request.input, str) else request.input
    return Usage(sum(map(_tokens, given)), source="estimated")


def _tokens(item: str | ModerationPart) -> int:
    if isinstance(item, ModerationImage):
        return IMAGE_TOKENS
    return text_tokens(item if isinstance(item, str) else item.text)


def _fold(
    _request: ModerationRequest, envelope: Envelope, deltas: Sequence[ModerationDelta], _usage: Usage
) -> bytes:
    results = [_result(delta) for delta in sorted(deltas, key=lambda d: d.index)]
    return msgspec.json.encode(ModerationResponse(envelope.id, envelope.model, results))


def _result(delta: ModerationDelta) -> ModerationResult:
    names = (*CATEGORIES, *sorted(delta.categories.keys() - set(CATEGORIES)))
    applied = delta.category_applied_input_types
    judged: list[InputType] = ["text"]
    return ModerationResult(
        flagged=delta.flagged,
        categories={name: delta.categories.get(name, False) for name in names},
        category_scores={name: delta.category_scores.get(name, 0.0) for name in names},
        category_applied_input_types={
            name: applied.get(name, judged if name in delta.categories else []) for name in names
        },
    )


MODALITY = Modality(
    name="moderation",
    path="/v1/moderations",
    summary="Judge whether texts and pictures are harmful",
    request=ModerationRequest,
    delta=ModerationDelta,
    response=ModerationResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("vision", "remote_urls"),
    example={"input": "The quick brown fox"},
)
