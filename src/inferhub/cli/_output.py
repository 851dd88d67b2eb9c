"""How verbs speak: tables for people, JSON for programs, colours and spinners only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    print(json.dumps(value, default=_plain, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; never cut, so that it can be piped."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def day(unix_s: int | None) -> str:
    """RFC 3339 in UTC, or `-`."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if unix_s is not None else "-"


def console(color: str = "auto", *, stderr: bool = False) -> Console:
    """Rich's console under our setting `color`; `never` also covers NO_COLOR."""
    from rich.console import Console

    return Console(
        stderr=stderr,
        no_color=color == "never",
        force_terminal=True if color == "always" else None,
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def working(sentence: str, *, silent: bool = False) -> Iterator[None]:
    """A spinner on stderr while something may take long; nothing where nobody watches."""
    if silent or not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(sentence):
        yield


def is_terminal() -> bool:
    return sys.stdout.isatty()
