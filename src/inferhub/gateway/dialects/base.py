"""What a dialect is: an address, a request, and how both translate to a modality and back, as one record.

Read by `surface` (translate), `answer` (fold, writer) and `openapi`. Holds no state and opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import EVENT_STREAM, JSON, Envelope, FileField, Modality, StreamWriter


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the modality's own words."""

    request: Any
    body: bytes
    """JSON of `request`, with whatever else of the original means the same there."""
    ignored: tuple[str, ...] = ()
    """Top-level parameters of the original that have no counterpart and that can be left out."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Feature needed → the parameter that asks for it, beyond what `request` shows: what only a backend that
    speaks this dialect itself can do. Every other one refuses the call as `unsupported_parameter`."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask for a modality. Exposed as `DIALECT` by each module of this package."""

    name: str
    path: str
    """`POST` address on the gateway."""
    summary: str
    modality: Modality
    """What its calls become."""
    request: type[msgspec.Struct]
    response: type[msgspec.Struct]
    check: Callable[[Any], None]
    """Raises `Invalid`, with `param` as this dialect's clients know it."""
    translate: Callable[[Any, bytes], Translated] | None
    """(request, its JSON) → the modality's. Raises `Invalid` or `Unsupported`. None for its own dialect."""
    fold: Callable[[Any, Envelope, Sequence[Any], Usage], bytes]
    """(request of this dialect, envelope, the modality's deltas, usage) → the whole answer as JSON."""
    writer: Callable[[Any, Envelope], StreamWriter] | None
    """(request of this dialect, envelope) → the writer of a stream; None where there are no streams."""
    id_prefix: str
    """Of the answer's id, with its separator."""
    example: Mapping[str, Any]
    """A request that works on the reference backend, without `model`."""
    aliases: tuple[str, ...] = ()
    """Further addresses that mean the same."""
    is_dotted: bool = False
    """Whether its clients know a place as `messages.0.content`, not as `messages[0].content`."""
    is_stateful: bool = False
    """Whether a request may refer to earlier answers, which `gateway/responses` keeps."""
    files: Mapping[str, FileField] = field(default_factory=dict)
    """As `Modality.files`."""
    media_type: Callable[[Any, bool], str] | None = None
    """As `Modality.media_type`, of a request of this dialect."""

    def content_type(self, request: Any, *, is_stream: bool) -> str:
        """What the answer to `request` is."""
        if self.media_type is not None:
            return self.media_type(request, is_stream)
        return EVENT_STREAM if is_stream else JSON


_ID_PREFIXES = {"chat": "chatcmpl-", "completion": "cmpl-", "moderation": "modr-"}


def own_dialect(modality: Modality) -> Dialect:
    """The dialect in which a modality is defined: nothing is translated."""
    return Dialect(
        name=modality.name,
        path=modality.path,
        summary=modality.summary,
        modality=modality,
        request=modality.request,
        response=modality.response,
        check=modality.check,
        translate=None,
        fold=modality.fold,
        writer=modality.writer,
        id_prefix=_ID_PREFIXES.get(modality.name, f"{modality.name}-"),
        example=modality.example,
        aliases=modality.aliases,
        files=modality.files,
        media_type=modality.media_type,
    )
