"""The other pages for people: their links lead somewhere, their commands and specs are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from inferhub.cli import app
from inferhub.hosting import check_model
from inferhub.settings.spec import load_spec

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings
            }, link


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.name)
def test_specs_of_howtos_are_right(page: Path) -> None:
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "yaml":
            load_spec(
                block,
                env={"VENDOR_API_KEY": "sk-x", "GEMINI_API_KEY": "sk-x"},
                source=page.name,
                check_model=check_model,
            )


@pytest.mark.parametrize("page", [*HOWTOS, ROOT / "README.md"], ids=lambda page: page.name)
def test_commands_of_pages_exist_with_their_flags(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`(inferhub [^`]+)`", text)
    for line in lines:
        if line.strip().startswith("inferhub "):
            parse(shlex.split(line.strip(), comments=True)[1:])


def parse(arguments: list[str]) -> None:
    """As the command line would, without running anything. Raises what a wrong flag raises."""
    command, name = typer.main.get_command(app), "inferhub"
    context = command.make_context(name, list(arguments), resilient_parsing=True)
    while hasattr(command, "get_command") and arguments:
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
        is_group = hasattr(command, "get_command")
        context = command.make_context(name, list(arguments), parent=context, resilient_parsing=is_group)


def test_make_help_lists_what_contributors_are_told_to_run() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        told = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
        assert told, page
        assert told <= targets, page
