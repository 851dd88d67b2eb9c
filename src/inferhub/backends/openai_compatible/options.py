"""The options of an OpenAI-compatible model, checked, and the facts of its vendor that they override.

Nothing here is ever taken from a request, and no message or representation holds a key.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from inferhub.backends.credentials import is_key
from inferhub.backends.openai_compatible import families
from inferhub.backends.remote import RemoteOptions, endpoint_base
from inferhub.backends.vendors import OutputLimit, Prefill, Vendor, vendor

Modality = Literal[
    "chat",
    "completion",
    "embedding",
    "image",
    "moderation",
    "rerank",
    "speech",
    "token_count",
    "transcription",
]
# The connection's own business, never an operator's.
_RESERVED_HEADERS = {"connection", "content-length", "content-type", "host", "transfer-encoding"}
# What is offered where nothing is known of a server and nothing is said of it.
_USUAL: tuple[Modality, ...] = ("chat", "completion", "embedding", "token_count")
_PATHS = {
    "chat": "chat/completions",
    "completion": "completions",
    "embedding": "embeddings",
    "moderation": "moderations",
    "rerank": "rerank",
    "responses": "responses",
    "transcription": "audio/transcriptions",
    "translation": "audio/translations",
    "speech": "audio/speech",
    "image": "images/generations",
    "image_edit": "images/edits",
    "image_variation": "images/variations",
}
_MEDIA = ("image", "speech", "transcription")


class OpenAICompatibleOptions(RemoteOptions, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What can be said of the upstream besides."""

    needs_key: ClassVar[bool] = False

    vendor: str | None = None
    """A row of `vendors.toml`, whose facts are the defaults of the rest."""
    headers: dict[str, str] = {}
    """Sent with every request; for upstreams that take their key elsewhere."""
    api_version: str | None = None
    """Azure's."""
    modalities: Annotated[tuple[Modality, ...], Meta(min_length=1)] | None = None
    output_limit: OutputLimit | None = None
    stream_options: bool | None = None
    remote_urls: bool | None = None
    prefill: Prefill | None = None
    responses: bool | None = None
    family: families.Name | None = None
    """What a model is that hears, speaks or paints, where its name does not say it; on Azure, for example."""
    voices: Annotated[tuple[str, ...], Meta(min_length=1, max_length=200)] | None = None
    """Of a model that speaks; the first one where the client names none."""

    def __post_init__(self) -> None:
        row = vendor(self.vendor)
        super().__post_init__()
        if self.base_url is None and row.base_url is None:
            raise ValueError("'base_url' is missing" if self.vendor is None else _needs_url(self.vendor))
        for name, value in self.headers.items():
            if name.lower() in _RESERVED_HEADERS or not _is_header_name(name):
                raise ValueError(f"'headers' may not set {name!r}")
            if not _is_header_value(value):
                raise ValueError(f"the value of header {name!r} has characters that headers cannot carry")
        if self.api_version is not None and not is_key(self.api_version):
            raise ValueError("'api_version' has characters that an address cannot carry")


def facts(options: OpenAICompatibleOptions, model: str = "") -> Vendor:
    """The vendor's row, with what the operator says otherwise. `model` is what the upstream calls it."""
    row = vendor(options.vendor)
    overrides: dict[str, Any] = {
        name: value
        for name in (
            *("output_limit", "stream_options", "remote_urls", "prefill", "responses", "api_version"),
            *("family", "voices"),
        )
        if (value := getattr(options, name)) is not None
    }
    if options.modalities is not None:
        overrides["modalities"] = tuple(dict.fromkeys(options.modalities))
    elif row.family is None:
        usual = _USUAL if options.vendor is None else row.modalities
        overrides["modalities"] = _by_name(families.kind_of(model, options.family), usual, row)
    if options.base_url is not None:
        base_url = options.base_url.rstrip("/")
        overrides["base_url"] = base_url
        if row.paths and base_url.endswith("/v1"):
            # Azure's newer address speaks plain OpenAI.
            overrides |= {"paths": {}, "api_version": options.api_version}
        elif row.paths:
            overrides["base_url"] = base_url.removesuffix("/openai")
        elif base_url != row.base_url:
            overrides["prefill_base_url"] = None
    return msgspec.structs.replace(row, **overrides)


def addresses(row: Vendor, model: str) -> dict[str, str]:
    """What is asked for under which address; `prefill` and the token counters beside the modalities."""
    assert row.base_url is not None  # noqa: S101 - the options were checked
    query = f"?api-version={quote(row.api_version, safe='')}" if row.api_version else ""
    found = {}
    for name, usual in _PATHS.items():
        own = row.paths.get(name)
        if own is not None:
            found[name] = f"{row.base_url}/{own.format(model=quote(model, safe=''))}{query}"
        else:
            found[name] = f"{endpoint_base(row.base_url)}/{usual}{query}"
    found["prefill"] = found["chat"]
    if row.prefill_base_url is not None:
        found["prefill"] = f"{row.prefill_base_url}/{_PATHS['chat']}"
    found["tokenize"] = f"{endpoint_base(row.base_url).removesuffix('/v1')}/tokenize"
    found["input_tokens"] = f"{found['chat']}/input_tokens"
    return found


def _by_name(kind: families.Kind | None, usual: tuple[str, ...], row: Vendor) -> tuple[str, ...]:
    """A vendor's models of language neither hear nor paint, and its other models do one thing only."""
    if kind is not None and (kind in row.modalities or row == Vendor()):
        return (kind,)
    return tuple(name for name in usual if name not in _MEDIA)


def _needs_url(name: str) -> str:
    return f"'base_url' is missing: of vendor {name!r} everybody has an own address"


def _is_header_name(name: str) -> bool:
    return bool(name) and name.isascii() and all(c.isalnum() or c in "-_" for c in name)


def _is_header_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()
