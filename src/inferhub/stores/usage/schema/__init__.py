"""The usage tables' numbered SQL files, one folder for each database. Read by the three stores at opening.

A file that was released is never changed; the next number changes what it made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inferhub.core.errors import SetupError

Dialect = Literal["sqlite", "postgres", "clickhouse"]


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    statements: tuple[str, ...]


def migrations(dialect: Dialect) -> tuple[Migration, ...]:
    """All of them, in order."""
    files = sorted((Path(__file__).parent / dialect).glob("*.sql"))
    return tuple(
        Migration(int(file.name[:4]), _statements(file.read_text(encoding="utf-8"))) for file in files
    )


def missing(dialect: Dialect, found: int, where: str) -> tuple[Migration, ...]:
    """What a database with schema `found` lacks. Raises `SetupError` for one of the future."""
    known = migrations(dialect)
    if found > known[-1].number:
        raise SetupError(
            f"The usage store {where} was made by a newer InferHub (schema {found}, this one knows "
            f"{known[-1].number}). Upgrade InferHub, or choose another usage_url.",
            param="usage_url",
        )
    return tuple(migration for migration in known if migration.number > found)


def _statements(text: str) -> tuple[str, ...]:
    # Our own files: no semicolon ends a line inside a statement.
    parts = re.split(r";\s*(?:\n|$)", re.sub(r"^--.*\n", "", text, flags=re.MULTILINE))
    return tuple(part.strip() for part in parts if part.strip())
