"""The networks of one model, each opened when a picture first needs it, and one picture's way through them.

Everything here runs in the backend's one thread, and stops at the next step, or within one, once its switch
is thrown. Called by `backend`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferhub.backends.scene import colors, ocr, shapes
from inferhub.backends.scene.describe import describe
from inferhub.backends.scene.labels import Classifier
from inferhub.backends.scene.objects import Detector, Found, tidy
from inferhub.core.errors import SetupError
from inferhub.modalities.vision import Feature, Label, SeenObject, TextLine, VisionDelta

if TYPE_CHECKING:
    from inferhub.backends.scene.pixels import Rgb

_LEAST_OBJECT = 0.42
_LEAST_LABEL = 0.05
_MOST_LABELS = 5
_FATAL_ONLY = 4


class Stopped(Exception):
    """The switch was thrown between two steps."""


class Finders:
    """Made for one loaded model. Not for two threads at once."""

    def __init__(self, objects: Path | None, labels: Path | None, *, reads: bool, threads: int) -> None:
        """Folders with a network and the names of its kinds; None for what is not looked for."""
        self._threads = threads
        self._reads = reads
        self._objects = objects and _Weights.in_folder(objects)
        self._labels = labels and _Weights.in_folder(labels)
        self._reader: ocr.Reader | None = None
        self._detector: Detector | None = None
        self._classifier: Classifier | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """Of things that may be found."""
        return frozenset(self._objects.names if self._objects else ()) | frozenset(shapes.NAMES)

    def look(self, pixels: Rgb, wanted: Collection[Feature], least: float | None, switch: Any) -> VisionDelta:
        height, width = pixels.shape[:2]
        facts = VisionDelta(width, height)
        chances = {}
        # A label speaks for an object, so objects ask for labels too.
        if self._labels and ({"labels", "objects"} & set(wanted)):
            classifier = self._open_classifier(self._labels)
            chances = dict(classifier.look(pixels, switch))
            facts.labels = _labels(chances, least)
            _check(switch)
        if self._objects and "objects" in wanted:
            found = self._open_detector(self._objects).find(pixels, switch)
            support = self._classifier.support(chances) if self._classifier else {}
            seen: list[Found | shapes.Shape] = [
                *tidy(found, support, least or _LEAST_OBJECT),
                *shapes.find(pixels),
            ]
            facts.objects = [
                SeenObject(
                    each.name, round(each.score, 3), _rounded(each.box), colors.color_in(pixels, each.box)
                )
                for each in seen
            ]
            _check(switch)
        if "colors" in wanted:
            facts.colors = colors.palette(pixels)
            _check(switch)
        if self._reads and "text" in wanted:
            lines = self._open_reader().read(pixels, switch)
            facts.text = [TextLine(line.text, round(line.score, 3), _rounded(line.box)) for line in lines]
        return facts

    def _open_classifier(self, weights: _Weights) -> Classifier:
        if self._classifier is None:
            self._classifier = Classifier(weights.open(self._threads), weights.names)
        return self._classifier

    def _open_detector(self, weights: _Weights) -> Detector:
        if self._detector is None:
            self._detector = Detector(weights.open(self._threads), weights.names)
        return self._detector

    def _open_reader(self) -> ocr.Reader:
        if self._reader is None:
            self._reader = ocr.Reader(self._threads)
        return self._reader


class _Weights(msgspec.Struct, frozen=True):
    network: Path
    names: tuple[str, ...]

    @classmethod
    def in_folder(cls, folder: Path) -> _Weights:
        """Raises `SetupError` where it is not one network and one list of names."""
        networks, names = sorted(folder.glob("*.onnx")), sorted(folder.glob("*-names.json"))
        if len(networks) != 1 or len(names) != 1:
            raise SetupError(f"{folder} must hold one '*.onnx' and one '*-names.json'.", param="options")
        try:
            return cls(networks[0], msgspec.json.decode(names[0].read_bytes(), type=tuple[str, ...]))
        except (OSError, msgspec.DecodeError) as error:
            raise SetupError(f"{names[0]} is not a readable list of names.", param="options") from error

    def open(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between two calls slow down everything else on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL_ONLY  # a stopped run is not an error
        return onnxruntime.InferenceSession(str(self.network), options, providers=["CPUExecutionProvider"])


def described(facts: VisionDelta) -> VisionDelta:
    return msgspec.structs.replace(facts, description=describe(facts))


def _labels(chances: dict[str, float], least: float | None) -> list[Label]:
    named = list(chances.items())[:_MOST_LABELS]
    return [Label(name, round(chance, 3)) for name, chance in named if chance >= (least or _LEAST_LABEL)]


def _rounded(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(edge, 1) for edge in box)
    return left, top, right, bottom


def _check(switch: Any) -> None:
    if switch.terminate:
        raise Stopped
