"""Kokoro-82M in onnxruntime: many voices in nine languages, which can be blended.

The weights are one ONNX file; the voices are a second kind of weights, named by the option `voices`: 16 that
are part of InferHub, or all 54. A voice is a table with a row for each length of a phrase.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import check_options
from inferhub.backends.speaking.backend import SpeakingBackend, Switch
from inferhub.backends.speaking.phonemes import English, Readers, fitting
from inferhub.backends.speaking.plan import Plan
from inferhub.backends.speaking.voices import KOKORO_16, KOKORO_54, kokoro_voices
from inferhub.core.errors import SetupError, UpstreamFailed
from inferhub.core.models import Capability, ModelSpec, Voice
from inferhub.telemetry.resources import default_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TOKENS = 500
"""Of one phrase. The model takes 510 with the mark at each end; a voice has as many rows."""
_ROWS, _WIDTH = 510, 256
_FEATURES = frozenset({"stream", "blend", "emotion", "pitch", "gain", "sample_rate", "language"})
_FATAL_ONLY = 4
_SHIPPED = {"kokoro-voices": KOKORO_16, "kokoro-voices-all": KOKORO_54}


class KokoroOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit the weights that can be pulled by name."""

    voices: str = "kokoro-voices"
    """Weights of the voices: `kokoro-voices` (16), `kokoro-voices-all` (54), or a folder of `.bin` files."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class Kokoro(SpeakingBackend):
    """One Kokoro model with its voices."""

    Options = KokoroOptions
    needs_weights = True
    further_weights = ("voices",)
    can_blend = True
    languages = frozenset({"en", "es", "fr", "hi", "it", "ja", "pt", "zh"})

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        wanted = str(spec.options.get("voices", KokoroOptions().voices))
        names = _SHIPPED.get(wanted) or tuple(_names(Path(wanted)))
        return (Capability("speech", _FEATURES, voices=kokoro_voices(names)),)

    def open(self) -> None:
        options = cast("KokoroOptions", check_options(type(self), self.spec))
        try:
            import hibari
        except ImportError as error:
            raise SetupError(
                f"Model {self.spec.name!r} needs the package 'hibari-tts', which reads English for it: "
                "install 'inferhub[local]'.",
                param="backend",
            ) from error
        self._session = _open_session(self.weights, options.threads)
        self._tables = Tables(Path(options.voices))
        self._readers = Readers(English())
        self._alphabet: Mapping[str, int] = _alphabet(Path(hibari.__file__).parent)

    def close(self) -> None:
        del self._session, self._tables, self._readers

    def voices(self) -> Sequence[Voice]:
        return kokoro_voices(self._tables.names)

    def phrases(self, clause: str, plan: Plan) -> list[str]:
        return fitting(self._readers.phonemes(clause, plan.language), self._alphabet, MAX_TOKENS)

    def speak(self, phrase: str, plan: Plan, switch: Switch) -> NDArray[np.float32]:
        import numpy as np

        tokens = [self._alphabet[symbol] for symbol in phrase]
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self._tables.style(plan.blend, len(tokens))[None],
            "speed": np.ones(1, np.float32),
        }
        try:
            sound: NDArray[np.float32] = self._session.run(None, feed, run_options=switch.options)[0]
        except Exception as error:  # the engine's exceptions share no base class
            raise UpstreamFailed("The speech engine failed on this input.") from error
        return sound.reshape(-1)


class Tables:
    """The voices' tables, each read when it is first needed."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.names = tuple(_names(source))
        if not self.names:
            raise SetupError(
                f"{source} has no voices; name 'kokoro-voices', 'kokoro-voices-all' or a folder of them.",
                param="options",
            )
        self._tables: dict[str, NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    def style(self, blend: Mapping[str, float], length: int) -> NDArray[np.float32]:
        """The row for a phrase of so many tokens, of several voices by their shares."""
        import numpy as np

        style = np.zeros(_WIDTH, np.float32)
        for name, share in blend.items():
            style += np.float32(share) * self._table(name)[length]
        return style

    def _table(self, name: str) -> NDArray[np.float32]:
        with self._lock:
            table = self._tables.get(name)
            if table is None:
                table = self._tables[name] = self._read(name)
            return table

    def _read(self, name: str) -> NDArray[np.float32]:
        import numpy as np

        try:
            if self._source.is_dir():
                table = np.fromfile(self._source / f"{name}.bin", "<f4").reshape(-1, _WIDTH)
            else:
                with np.load(self._source, allow_pickle=False) as tables:
                    table = tables[name].astype(np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise SetupError(
                f"The voice {name!r} in {self._source} cannot be read.", param="options"
            ) from error
        if table.shape != (_ROWS, _WIDTH):
            raise SetupError(
                f"The voice {name!r} in {self._source} is not one of Kokoro-82M.", param="options"
            )
        return table


def _names(source: Path) -> list[str]:
    """Of the voices in a folder or an archive, the default one first."""
    if source.is_dir():
        found = {path.stem for path in source.glob("*.bin")}
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            found = {name.removesuffix(".npy") for name in archive.namelist()}
    else:
        return []
    order = {name: place for place, name in enumerate((*KOKORO_16, *KOKORO_54))}
    return sorted((n for n in found if _is_voice(n)), key=lambda n: (order.get(n, len(order)), n))


def _is_voice(name: str) -> bool:
    return len(name) > 3 and name[0] in "abefhijpz" and name[1] in "fm" and name[2] == "_"


def _alphabet(folder: Path) -> Mapping[str, int]:
    """Kokoro's, which hibari was made from and brings along."""
    path = folder / "assets" / "vocab.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError) as error:
        raise SetupError(f"{path} cannot be read; install 'hibari-tts' again.", param="backend") from error


def _open_session(path: Path | None, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    # Threads that spin between two calls slow down everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY  # a stopped run is not an error
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's exceptions share no base class
        raise SetupError(
            f"onnxruntime cannot load {path}. Fetch the weights again: `inferhub models pull kokoro-82m`.",
            param="weights",
        ) from error


BACKEND = Kokoro
