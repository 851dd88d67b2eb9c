"""The rows of `vendors.toml`: what is known about each vendor that speaks OpenAI's HTTP API.

Read by `openai_compatible` for the option `vendor`. Holds facts and no code of any vendor; a new vendor
is a table in that file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from inferhub.core.errors import SetupError
from inferhub.modalities import modalities
from inferhub.settings.nearest import did_you_mean

OutputLimit = Literal["both", "max_tokens", "max_completion_tokens"]
Prefill = Literal["none", "append", "prefix", "continue"]
FURTHER_PATHS = ("translation", "image_edit", "image_variation")
"""Addresses besides those of modalities: another task of the same one."""
TokenCounter = Literal["none", "tokenize", "input_tokens"]


class Vendor(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One row. Its defaults are what can be said of a server of which nothing is known."""

    base_url: str | None = None
    """Where it is; None where everybody has an own address."""
    key_variable: str | None = None
    """Environment variable of the key, which must then be there; None for servers that need no key."""
    key_header: str = "authorization"
    """How the key is sent; `authorization` means as a bearer token."""
    modalities: tuple[str, ...] = ("chat", "completion", "embedding", "moderation", "rerank", "token_count")
    paths: dict[str, str] = {}
    """Modality → address below `base_url`, where it is not OpenAI's. `{model}` stands for the model."""
    api_version: str | None = None
    """Sent as `?api-version=`."""
    lacks: dict[str, tuple[str, ...]] = {}
    """Modality → features that it does not have; asking for one is a 400 that names the parameter."""
    drops: tuple[str, ...] = ()
    """Parameters that are left out because it refuses their mere presence; only hints, and such as `lacks`
    lets pass only with a value that means nothing."""
    renames: dict[str, str] = {}
    output_limit: OutputLimit = "both"
    """The one name of the limit that it reads; `both` passes either."""
    stream_options: bool = True
    """Whether it understands `stream_options`; if not, usage must come unasked."""
    base64: bool = True
    """Whether it understands `encoding_format: base64` of embeddings."""
    remote_urls: bool = False
    """Whether it may fetch pictures itself. False lets InferHub fetch them, which a server in one's own
    network must not do for a stranger's address."""
    prefill: Prefill = "none"
    """How it is told to go on with a given text: as last message, with `prefix`, or as vLLM has it."""
    prefill_base_url: str | None = None
    """Where that has an address of its own."""
    responses: bool = False
    """Whether it answers `/responses` itself."""
    token_counter: TokenCounter = "none"  # noqa: S105 - no password
    """Where it counts the tokens of a chat: vLLM's `/tokenize` beside its `/v1`, or as InferHub does it.
    Without one they are estimated."""
    family: str | None = None
    """What all its models are that hear, speak or paint (`openai_compatible.families`); default: by name."""
    voices: tuple[str, ...] = ()
    """Of its models that speak; the first one where the client names none."""
    speech_formats: tuple[str, ...] = ()
    """Those it speaks in; in another one, InferHub writes what it said. Empty: all of OpenAI's."""
    image_format: Literal["b64_json", "base64", "none"] = "b64_json"
    """Which `response_format` encloses a picture; `none` where it has no such parameter."""
    image_size: Literal["size", "width_height", "none"] = "size"
    """How it is told the size of a picture."""
    form_drops: tuple[str, ...] = ()
    """Fields of forms that it refuses, and that the answer does not depend on."""
    extras: dict[str, tuple[str, ...]] = {}
    """Modality → fields beyond OpenAI's that it reads under the name that InferHub gives them."""
    message_extras: tuple[str, ...] = ()
    """Fields of messages that OpenAI does not have and that it reads."""
    message_drops: tuple[str, ...] = ()
    """Fields of messages that OpenAI has and that it refuses."""


@cache
def vendors() -> Mapping[str, Vendor]:
    """Every row by name. Raises `SetupError` for a row that is not sound."""
    text = Path(__file__).with_name("vendors.toml").read_text(encoding="utf-8")
    return {name: read_row(name, row) for name, row in tomllib.loads(text).items()}


def vendor(name: str | None) -> Vendor:
    """A row; the one that assumes nothing for None. Raises `ValueError` for an unknown name."""
    if name is None:
        return Vendor()
    rows = vendors()
    if name not in rows:
        raise ValueError(f"unknown vendor {name!r}.{did_you_mean(name, rows)} Vendors: {', '.join(rows)}")
    return rows[name]


def read_row(name: str, row: object) -> Vendor:
    """Raises `SetupError` naming what is wrong."""
    try:
        vendor = msgspec.convert(row, Vendor)
    except msgspec.ValidationError as error:
        raise SetupError(f"Vendor {name!r}: {error}.") from error
    known = modalities()
    for modality in (*vendor.modalities, *vendor.lacks, *vendor.paths, *vendor.extras):
        if modality not in known and not (modality in vendor.paths and modality in FURTHER_PATHS):
            raise SetupError(f"Vendor {name!r}: unknown modality {modality!r}.")
    for modality, features in vendor.lacks.items():
        for feature in features:
            if feature not in known[modality].features:
                raise SetupError(f"Vendor {name!r}: {modality} has no feature {feature!r}.")
    return vendor
