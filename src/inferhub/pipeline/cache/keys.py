"""What makes two requests the same. Pure; called by `ring` and `embeddings`.

Same: the order of names, white space, escapes, how a null is left out, and fields that change no answer.
Everything else differs, down to how a number is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec

from inferhub.core.call import Call
from inferhub.modalities import modalities

_SCHEME = 1
"""Changes with every change of what a key covers, so that older entries are never met."""

_NEUTRAL = frozenset(
    {
        "model",  # its version is in the key
        "stream",
        "stream_options",
        "stream_format",
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "encoding_format",  # of what the gateway writes; the vector is the same
    }
)

# A float keeps its spelling: 0.1 and 0.10000000000000001 are one number here, and may be two elsewhere.
_decode = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode())).decode
_encode = msgspec.json.Encoder(order="sorted").encode


class Question(NamedTuple):
    """A call that may be cached, with who would answer it."""

    call: Call
    model: str
    version: str
    """The deployment's name, which changes with everything that is set about the model."""
    fields: dict[str, Any]
    """Of the request, as `fields_of` gives them."""


@cache
def _known(modality: str) -> frozenset[str]:
    return frozenset(modalities()[modality].request.__struct_fields__)


def fields_of(call: Call) -> dict[str, Any]:
    """The request's fields that can change its answer. Names that we do not know always can."""
    known = _known(call.modality)
    return {
        name: value
        for name, value in _decode(call.body).items()
        if name not in known or (value is not None and name not in _NEUTRAL)
    }


def exact_key(question: Question) -> bytes:
    """32 bytes that no other tenant, model version or request has; files count by their content."""
    call = question.call
    files = [(file.field, hashlib.sha256(file.data).hexdigest()) for file in call.media]
    said = [_SCHEME, call.modality, *_whose(question), question.fields, *files]
    return hashlib.sha256(_encode(said)).digest()


def item_keys(question: Question, items: Sequence[str | list[int]]) -> list[bytes]:
    """One key for each input of an embedding call, whatever else is in that call."""
    rest = {name: value for name, value in question.fields.items() if name != "input"}
    prefix = _encode([_SCHEME, "embedding item", *_whose(question), rest])
    return [hashlib.sha256(prefix + _encode(item)).digest() for item in items]


def partition_key(question: Question) -> bytes:
    """What has to be exactly alike for two last messages to be compared: all but the text of the last one."""
    *earlier, last = question.fields["messages"]
    silent = {name: value for name, value in last.items() if name != "content"}
    rest = {**question.fields, "messages": [*earlier, silent]}
    return hashlib.sha256(_encode([_SCHEME, "semantic", *_whose(question), rest])).digest()


def _whose(question: Question) -> tuple[str, str]:
    return question.call.principal.tenant_id, question.version
