"""Printed text and where it is: PP-OCR, which comes with the package `rapidocr`. Called by `finders`.

It reads Latin letters with their accents, digits, Chinese and Japanese. Other scripts it takes for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from inferhub.backends.scene.pixels import Rgb

_FIND, _READ = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
_LEAST_SCORE = 0.6
_LEAST_SCORE_OF_A_SIGN = 0.95
"""A lonely sign is more often an eye or a rim than a letter."""
_LARGEST_SIGN = 0.3
"""Of the picture's area."""
_SAME_ROW = 0.5
"""Of the lower line's height."""


class Line(NamedTuple):
    text: str
    score: float
    box: tuple[float, float, float, float]


def missing() -> str | None:
    """What has to be installed before a `Reader` can be made. Imports nothing heavy."""
    package = find_spec("rapidocr")
    places = (package.submodule_search_locations or []) if package is not None else []
    folder = Path(places[0]) / "models" if places else None
    if folder is None or not all((folder / name).is_file() for name in (_FIND, _READ)):
        return "rapidocr"
    return None


class Reader:
    """One set of networks, for one call at a time."""

    def __init__(self, threads: int) -> None:
        """Slow: imports the engine."""
        import rapidocr

        folder = Path(rapidocr.__file__).parent / "models"
        engine: Any = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,
                # Named, because it would fetch what it does not find under a name of its own.
                "Det.model_path": str(folder / _FIND),
                "Rec.model_path": str(folder / _READ),
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        self._engine = engine
        # Its networks are made on first use; they are wanted now, with a way to stop them.
        self._networks = [
            _Stoppable(engine._load_det_model()),
            _Stoppable(engine._load_rec_model()),
        ]

    def read(self, pixels: Rgb, switch: Any) -> list[Line]:
        for network in self._networks:
            network.switch = switch
        answer = self._engine(np.ascontiguousarray(pixels[:, :, ::-1]))
        if getattr(answer, "boxes", None) is None or getattr(answer, "txts", None) is None:
            return []
        lines = [
            Line(text.strip(), float(score), _upright(corners))
            for text, score, corners in zip(answer.txts, answer.scores, answer.boxes, strict=True)
        ]
        height, width = pixels.shape[:2]
        return in_order([line for line in lines if is_text(line, width * height)])


class _Stoppable:
    """Takes the place of a step's network, and runs it with the switch of the present call."""

    def __init__(self, step: Any) -> None:
        self._session = step.session.session
        self._input = self._session.get_inputs()[0].name
        self.switch: Any = None
        step.session = self

    def __call__(self, batch: Any) -> Any:
        return self._session.run(None, {self._input: batch}, run_options=self.switch)[0]


def is_text(line: Line, picture_area: float) -> bool:
    if not line.text or line.score < _LEAST_SCORE:
        return False
    if len(line.text) > 1:
        return True
    left, top, right, bottom = line.box
    is_huge = (right - left) * (bottom - top) > _LARGEST_SIGN * picture_area
    return line.score >= _LEAST_SCORE_OF_A_SIGN and not is_huge


def in_order(lines: Sequence[Line]) -> list[Line]:
    """As people read: rows from top to bottom, in each from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda each: each.box[1] + each.box[3]):
        row = rows[-1] if rows else None
        if row is not None and _is_beside(row[-1], line):
            row.append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda each: each.box[0])]


def _is_beside(one: Line, other: Line) -> bool:
    shared = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    lower = min(one.box[3] - one.box[1], other.box[3] - other.box[1])
    return shared > _SAME_ROW * lower


def _upright(corners: Any) -> tuple[float, float, float, float]:
    xs, ys = corners[:, 0], corners[:, 1]
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
