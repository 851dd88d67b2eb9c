"""Reads the places settings come from into one shape, `Given`. Called by `loader` only.

Each reader notes what it cannot use in `problems` instead of raising, so that all are told at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferhub.settings.model import LISTS, SECRETS, Settings
from inferhub.settings.nearest import did_you_mean

PREFIX = "INFERHUB_"
MAX_FILE_BYTES = 1024 * 1024

# Variables of other conventions that mean one of our settings, and the value they mean.
_CONVENTIONS = {"PORT": "port", "LOG_LEVEL": "log_level", "NO_COLOR": "color"}

_FIELDS = tuple(Settings.model_fields)
_SECRET_FILES = {f"{name}_file": name for name in SECRETS}


@dataclass(frozen=True, slots=True)
class Given:
    """One value somebody set."""

    name: str
    value: Any
    origin: str
    """For people: `inferhub.toml:3`, `env INFERHUB_PORT`, `flag --port`."""
    folder: Path
    """What a relative path in `value` is relative to."""


def read_text(path: Path, problems: list[str]) -> str | None:
    """The file's text, or None after noting why not."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}.")
        return None
    if len(raw) > MAX_FILE_BYTES:
        problems.append(f"{path}: larger than {MAX_FILE_BYTES} bytes.")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 at byte {error.start}.")
        return None


def read_toml(path: Path, shown: str, problems: list[str]) -> list[Given]:
    """Settings of an `inferhub.toml`: flat names, no tables."""
    text = read_text(path, problems)
    if text is None:
        return []
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{shown}: not valid TOML: {error}.")
        return []
    given = []
    for name, value in values.items():
        origin = f"{shown}:{_line_of(name, text)}"
        if name == "config":
            problems.append(f"{origin}: 'config' can only be set by --config or {PREFIX}CONFIG.")
        elif name in _FIELDS or name in _SECRET_FILES:
            given.append(Given(name, value, origin, path.parent))
        else:
            hint = did_you_mean(name, _FIELDS)
            problems.append(f"{origin}: unknown setting {name!r}.{hint}")
    return given


def _line_of(name: str, text: str) -> int:
    # tomllib keeps no positions; a top-level name stands at the start of its line.
    pattern = re.compile(rf"^\s*\[*\s*[\"']?{re.escape(name)}[\"']?\s*[].=]", re.MULTILINE)
    match = pattern.search(text)
    return text.count("\n", 0, match.end()) + 1 if match else 1


_DOTENV_LINE = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*
    (?: '(?P<literal>[^']*)' | "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<plain>[^\n]*?) )
    [ \t]*(?:(?<=[ \t'"=])\#[^\n]*)?(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_IGNORED_LINE = re.compile(r"[ \t]*(?:\#[^\n]*)?(?:\n|\Z)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def read_dotenv(path: Path, problems: list[str]) -> dict[str, tuple[str, int]]:
    """Name → (value, line) of a `.env` file: `NAME=value`, quotes, `export` and comments."""
    text = read_text(path, problems)
    found: dict[str, tuple[str, int]] = {}
    text = (text or "").replace("\r\n", "\n")
    position = 0
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        if match := _DOTENV_LINE.match(text, position):
            found[match["name"]] = (_dotenv_value(match), line)
        elif not (match := _IGNORED_LINE.match(text, position)):
            # The line is not repeated: it may hold half of a secret.
            problems.append(f"{path.name}:{line}: not NAME=VALUE.")
            break
        position = match.end()
    return found


def _dotenv_value(match: re.Match[str]) -> str:
    if match["literal"] is not None:
        return match["literal"]
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match["quoted"], flags=re.DOTALL)
    return match["plain"]


def read_variables(
    variables: Mapping[str, tuple[str, str]], folder: Path, problems: list[str]
) -> Iterator[Given]:
    """Settings among variables given as name → (value, origin). An empty value counts as not set."""
    conventional = [name for name in _CONVENTIONS if name in variables]
    own = sorted(name for name in variables if name.startswith(PREFIX))
    for variable in conventional + own:  # our own names later: they win
        value, origin = variables[variable]
        if value == "":
            continue
        if variable == "NO_COLOR":
            yield Given("color", "never", origin, folder)
            continue
        name = _CONVENTIONS.get(variable) or variable.removeprefix(PREFIX).lower()
        if variable != variable.upper() or (name not in _FIELDS and name not in _SECRET_FILES):
            names = [PREFIX + field.upper() for field in _FIELDS]
            problems.append(f"{origin}: unknown setting {variable!r}.{did_you_mean(variable, names)}")
            continue
        yield Given(name, from_text(name, value), origin, folder)


def from_text(name: str, text: str) -> Any:
    """Text as the value pydantic expects; only lists need help."""
    if name in LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def read_flags(flags: Mapping[str, Any], cwd: Path, problems: list[str]) -> Iterator[Given]:
    """Settings of the command line. None and an empty list mean that the flag was not given."""
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value in ([], ()):
            continue
        if name not in _FIELDS and name not in _SECRET_FILES:
            names = ["--" + field.replace("_", "-") for field in _FIELDS]
            problems.append(f"unknown flag {flag}.{did_you_mean(flag, names)}")
            continue
        if name in LISTS and not isinstance(value, str):  # repeated, and each perhaps several
            value = ",".join(value)  # noqa: PLW2901
        is_text = isinstance(value, str)
        yield Given(name, from_text(name, value) if is_text else value, f"flag {flag}", cwd)


def resolve_secret_files(given: list[Given], problems: list[str]) -> list[Given]:
    """Replace each `NAME_file` by the content of the file it names."""
    resolved = []
    for item in given:
        if item.name not in _SECRET_FILES:
            resolved.append(item)
            continue
        if not isinstance(item.value, str):
            problems.append(f"{item.origin}: {item.name} must be the path of a file.")
            continue
        name = _SECRET_FILES[item.name]
        if any(other.name == name and _place(other) == _place(item) for other in given):
            problems.append(f"{item.origin}: {name} is given both directly and as a file; keep one.")
            continue
        text = read_text(item.folder / Path(item.value).expanduser(), problems)
        if text is not None:
            resolved.append(Given(name, text.strip(), item.origin, item.folder))
    return resolved


def _place(item: Given) -> str:
    return re.split(r"[: ]", item.origin, maxsplit=1)[0]
