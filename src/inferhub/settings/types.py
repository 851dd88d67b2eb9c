"""Types that several groups of settings share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


def _check_address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if not match or int(match[1]) > 65535:
        raise ValueError("not HOST:PORT")
    return value


Address = Annotated[str, AfterValidator(_check_address), Field(json_schema_extra={"allowed": "HOST:PORT"})]
EgressEntry = Annotated[
    str, Field(min_length=1, max_length=300, json_schema_extra={"allowed": "HOST[:PORT] or NETWORK/BITS"})
]
ModalityName = Annotated[
    str, Field(min_length=1, max_length=40, json_schema_extra={"allowed": "the name of a modality"})
]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
SecondsOrZero = Annotated[float, Field(ge=0, le=86_400)]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=4096)]
