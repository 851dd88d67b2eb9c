"""The door to the registry: pull weights by name, and resolve names to files that were proved right.

Used by the CLI (`models`, `doctor`) and by assembly, before a backend loads. Never loads a model itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from inferhub.core.errors import SetupError, WeightsCorrupt, WeightsMissing
from inferhub.registry import integrity
from inferhub.registry.download import Limits
from inferhub.registry.index import Entry, Index, WeightFile, shipped_folder, shipped_index
from inferhub.registry.integrity import State
from inferhub.registry.progress import OnProgress, silent
from inferhub.registry.pull import Puller, mirror_base
from inferhub.registry.userfile import checked_path, looks_like_path

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class WeightsStatus:
    """One row of `inferhub models`' list of weights."""

    name: str
    about: str
    licence: str
    size_bytes: int
    state: State
    path: Path
    """Where it is, or will be."""
    files: tuple[WeightFile, ...]
    shipped: bool = False
    """Part of this package: always here, never pulled."""


class Weights:
    """The weights of one cache folder.

    Apart from `pull`, methods block while a changed file is hashed: about 0.1 s per 100 MB.
    """

    def __init__(
        self,
        cache_dir: Path,
        mirror: str | None = None,
        *,
        index: Index | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.cache_dir = cache_dir.expanduser().absolute()
        self._mirror = mirror_base(mirror) if mirror else None
        self._index = shipped_index() if index is None else index
        self._limits = limits or Limits()

    @property
    def defaults(self) -> tuple[str, ...]:
        """What is pulled where no name is given."""
        return tuple(name for name, entry in sorted(self._index.weights.items()) if entry.default)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._index.weights))

    async def pull(self, names: Iterable[str], on_progress: OnProgress = silent) -> None:
        """Fetch what is missing, replace what is corrupt, leave the rest. Goes on where a stopped pull was.

        Raises `SetupError` for an unknown name, no source or no space, and `WeightsCorrupt` when a source
        has other content than is pinned.
        """
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            self._entry(name)
        puller = Puller(self.cache_dir, self._index, self._mirror, on_progress, self._limits)
        for name in wanted:
            if not self._entry(name).shipped:
                await puller.pull(name)

    def resolve(self, name_or_path: str) -> Path:
        """What a backend loads: the file, or the folder of weights made of several files.

        Raises `WeightsMissing` or `WeightsCorrupt`, with the remedy, and `SetupError` for an unknown name.
        """
        if name_or_path not in self._index.weights and looks_like_path(name_or_path):
            return checked_path(name_or_path)
        state = self.state(name_or_path)
        remedy = f"run `inferhub models pull {name_or_path}`, or without a name for all"
        if self._entry(name_or_path).shipped:
            remedy = "they are part of InferHub, so install it again"
        if state is State.MISSING:
            raise WeightsMissing(f"Weights {name_or_path!r} are not on this machine yet: {remedy}.")
        if state is State.CORRUPT:
            raise WeightsCorrupt(
                f"Weights {name_or_path!r} in {self._folder(name_or_path)} do not have the content they must "
                f"have and are not loaded: {remedy}."
            )
        return self._path(name_or_path)

    def state(self, name: str) -> State:
        """Hashes only what changed since it was last hashed."""
        return self._check(name, always_hash=False)

    def verify(self, name: str) -> State:
        """Hashes every byte, whatever was remembered."""
        return self._check(name, always_hash=True)

    def listing(self) -> tuple[WeightsStatus, ...]:
        """All that can be pulled, with what is here."""
        return tuple(
            WeightsStatus(
                name,
                entry.about,
                entry.licence,
                entry.size_bytes,
                self.state(name),
                self._path(name),
                entry.files,
                entry.shipped,
            )
            for name, entry in sorted(self._index.weights.items())
        )

    def _check(self, name: str, *, always_hash: bool) -> State:
        folder, files = self._folder(name), self._entry(name).files
        stamps = self.cache_dir / "weights" / name  # a package's own folder may be read-only, or under git
        states = {integrity.check(folder / f.name, f, always_hash=always_hash, stamps=stamps) for f in files}
        return next((s for s in (State.CORRUPT, State.MISSING) if s in states), State.PRESENT)

    def _folder(self, name: str) -> Path:
        return shipped_folder(name) if self._entry(name).shipped else self.cache_dir / "weights" / name

    def _path(self, name: str) -> Path:
        files = self._index.weights[name].files
        return self._folder(name) / files[0].name if len(files) == 1 else self._folder(name)

    def _entry(self, name: str) -> Entry:
        entry = self._index.weights.get(name)
        if entry is not None:
            return entry
        if not _NAME.fullmatch(name):
            raise SetupError(
                f"{name[:80]!r} is no weights name: small letters, digits, `.`, `_` and `-`.", param="weights"
            )
        near = difflib.get_close_matches(name, self.names, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise SetupError(
            f"Unknown weights {name!r}; there are: {', '.join(self.names)}.{guess} "
            "Your own file is named by its path, such as ./model.gguf.",
            param="weights",
        )
