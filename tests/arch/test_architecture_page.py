"""ARCHITECTURE.md is true: every path it names exists, and every room of the code is named."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
# Paths stand in back quotes and contain a slash or a file ending.
NAMED = sorted(
    {m for m in re.findall(r"`([\w./-]+)`", PAGE) if "/" in m or m.endswith((".py", ".md", ".toml"))}
)
SOURCE = ROOT / "src" / "inferhub"


def test_every_named_path_exists() -> None:
    assert len(NAMED) > 20
    missing = [name for name in NAMED if not any((base / name).exists() for base in (ROOT, SOURCE))]
    assert not missing


def test_every_room_is_named() -> None:
    """Each package, and each folder of one."""
    packages = {p.parent.relative_to(SOURCE) for p in SOURCE.rglob("__init__.py")}
    rooms = {str(p) for p in packages if 1 <= len(p.parts) <= 2 and not p.name.startswith("_")}
    assert {"routing", "gateway/dialects"} <= rooms
    unnamed = [room for room in sorted(rooms) if f"`{room}/" not in PAGE]
    assert not unnamed


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(p.name[:4]) for p in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
