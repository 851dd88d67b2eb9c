"""YAML text → plain values, with the line and column of each. Called by `spec.load` only.

Safe by construction: no tags, no objects; size, depth and number of values are capped. Scalars follow
YAML 1.2, so `no` and `on` are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from inferhub.core.errors import SetupError

MAX_BYTES = 512 * 1024
MAX_DEPTH = 32
MAX_VALUES = 50_000

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text. Two trees of one form: what was written, and what it means."""

    written: Any
    """References such as `${NAME}` as they stand; this one may be shown."""
    expanded: Any
    """References replaced; may hold secrets."""
    marks: Mapping[Path, str]
    """Path of a value → `line:column`; a key's own position is under its path too."""


def read(text: str, expand: Callable[[str], str], problems: list[tuple[Path, str]], source: str) -> Document:
    """Parse `text`, expanding strings with `expand` (which raises `ValueError` with the reason).

    Raises `SetupError` where nothing can be parsed; notes everything else in `problems`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SetupError(f"{source}: larger than {MAX_BYTES} bytes.")
    veil = _Veil(text, source)
    try:
        _check_events(veil.text, source)
        node = yaml.compose(veil.text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise SetupError(f"{source}{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        reason = str(getattr(error, "reason", "unreadable characters"))
        raise SetupError(f"{source}: not valid YAML: {reason}.") from error
    walker = _Walker(veil, expand, problems, source)
    written, expanded = walker.walk(node, ()) if node is not None else (None, None)
    return Document(written, expanded, walker.marks)


def _check_events(text: str, source: str) -> None:
    """Refuse deep nesting before composing, which recurses once per level, and every tag."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{source}:{event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise SetupError(f"{where}: nested deeper than {MAX_DEPTH} levels.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise SetupError(f"{where}: tags such as {str(tag)[:60]!r} are not supported.")


class _Veil:
    """Hides `${…}` from YAML, where braces end a plain value inside `{…}`.

    Each reference becomes as many private-use characters, so that columns stay right.
    """

    # No quotes (\x22 is `"`): an unclosed reference must not swallow the end of its string.
    _REFERENCE = re.compile(r"\$?\$\{[^{}'\x22\n]*\}")
    _START, _FILL, _FIRST = 0xE000, 0xE001, 0xE100
    _MAX = 0xF8FF - _FIRST
    _HIDDEN = re.compile("\ue000([\ue100-\uf8ff])\ue001+")

    def __init__(self, text: str, source: str) -> None:
        if re.search("[\ue000-\uf8ff]", text):
            raise SetupError(f"{source}: contains private-use characters (U+E000 to U+F8FF).")
        self._found: list[str] = []
        self.text = self._REFERENCE.sub(self._hide, text)
        if len(self._found) > self._MAX:
            raise SetupError(f"{source}: more than {self._MAX} references.")

    def _hide(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        index = min(len(self._found) - 1, self._MAX)
        return chr(self._START) + chr(self._FIRST + index) + chr(self._FILL) * (len(match[0]) - 2)

    def lift(self, text: str) -> str:
        return self._HIDDEN.sub(lambda m: self._found[ord(m[1]) - self._FIRST], text)


_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


class _Walker:
    """Nodes → values. Counts as it goes, because aliases can make a small text huge."""

    def __init__(
        self, veil: _Veil, expand: Callable[[str], str], problems: list[tuple[Path, str]], source: str
    ) -> None:
        self._veil = veil
        self._expand = expand
        self._problems = problems
        self._source = source
        self._count = 0
        self.marks: dict[Path, str] = {}

    def walk(self, node: yaml.Node, path: Path) -> tuple[Any, Any]:
        """(as written, as expanded)"""
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise SetupError(f"{self._source}: more than {MAX_VALUES} values, aliases counted in.")
        mark = f"{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        self.marks.setdefault(path, mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            pairs = [self.walk(item, (*path, i)) for i, item in enumerate(node.value)]
            return [written for written, _ in pairs], [expanded for _, expanded in pairs]
        return self._scalar(cast("yaml.ScalarNode", node), path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> tuple[Any, Any]:
        written: dict[str, Any] = {}
        expanded: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                self.marks[(*path, "?")] = where
                self._problems.append(((*path, "?"), "a key must be text"))
                continue
            key = self._veil.lift(key_node.value)
            here = (*path, key)
            if key in written:
                first = self.marks[here]
                self.marks[(*here, "again")] = where
                self._problems.append(((*here, "again"), f"duplicate key {key!r}, first at {first}"))
                continue
            self.marks[here] = where
            if key == "<<" and key_node.style is None:
                self._problems.append((here, "merge keys (`<<`) are not supported; repeat the values"))
                continue
            written[key], expanded[key] = self.walk(value_node, here)
        return written, expanded

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> tuple[Any, Any]:
        text = self._veil.lift(node.value)
        if node.style is None:
            value = _plain(text)
            if not isinstance(value, str):
                return value, value
        try:
            return text, self._expand(text)
        except ValueError as error:
            self._problems.append((path, str(error)))
            return text, text


def _plain(text: str) -> Any:
    """An unquoted scalar by the YAML 1.2 core schema."""
    folded = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if folded in _WORDS:
        return _WORDS[folded]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
