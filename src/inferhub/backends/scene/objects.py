"""Everyday things and where they are: NanoDet (COCO's 80 kinds), its answer decoded and tidied up.

`decode` and `tidy` are pure; `Detector` holds the loaded network. Called by `backend`, in its thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inferhub.backends.scene.pixels import resized

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inferhub.backends.scene.pixels import Rgb

_SIDE = 416
_MEAN = np.array([103.53, 116.28, 123.675], np.float32)
_STD = np.array([57.375, 57.12, 58.395], np.float32)
_STRIDES = (8, 16, 32)
_BINS = 11
"""A distance to an edge is the mean of so many steps, as likely as the network says."""
_LEAST_SCORE = 0.2
"""Below it nothing is looked at, not even where the labels speak for it."""
_SAME_KIND_OVERLAP = 0.5
_OTHER_KIND_OVERLAP = 0.7
"""Two kinds in the same place are one thing, taken for two."""
_MOST = 100


class Found(NamedTuple):
    name: str
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """One network, for one call at a time."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session = session
        self._names = names
        self._input = session.get_inputs()[0].name

    def find(self, pixels: Rgb, switch: Any) -> list[Found]:
        """Candidates, the likeliest first; `tidy` chooses among them."""
        small = resized(pixels, _SIDE, _SIDE)[:, :, ::-1]
        batch = ((small - _MEAN) / _STD).transpose(2, 0, 1)[None]
        outputs = self._session.run(None, {self._input: np.ascontiguousarray(batch)}, run_options=switch)
        scores, boxes = decode(outputs, len(self._names))
        return _candidates(scores, boxes, pixels, self._names)


def decode(
    outputs: Sequence[NDArray[np.float32]], kinds: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scores by place and kind, boxes by place in parts of the picture's sides)."""
    by_shape = {output.shape[1:]: output[0] for output in outputs}
    all_scores, all_boxes = [], []
    for stride in _STRIDES:
        cells = _SIDE // stride
        places = cells * cells
        all_scores.append(by_shape[places, kinds])
        edges = by_shape[places, 4 * _BINS].reshape(places, 4, _BINS)
        weights = np.exp(edges - edges.max(axis=-1, keepdims=True))
        distance = (weights / weights.sum(axis=-1, keepdims=True)) @ np.arange(_BINS, dtype=np.float32)
        row, column = np.divmod(np.arange(places), cells)
        centre = np.stack([column, row], axis=1).astype(np.float32) + 0.5
        corners = np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1)
        all_boxes.append(np.clip(corners * (stride / _SIDE), 0, 1))
    return np.concatenate(all_scores), np.concatenate(all_boxes)


def tidy(found: Sequence[Found], support: Mapping[str, float], least: float) -> list[Found]:
    """One entry for each thing: overlapping candidates of a kind are one, and so are two kinds in one place.

    `support` says what other evidence there is that a kind is on the picture, from 0 to 1.
    """
    kept: list[Found] = []
    for candidate in sorted(_supported(found, support), key=lambda f: -f.score):
        if candidate.score < least or len(kept) == _MOST:
            break
        if not any(overlap(candidate.box, other.box) > _limit(candidate, other) for other in kept):
            kept.append(candidate)
    return kept


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Of both boxes: what they share, as a part of what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(one) + _area(other) - shared)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _limit(one: Found, other: Found) -> float:
    return _SAME_KIND_OVERLAP if one.name == other.name else _OTHER_KIND_OVERLAP


def _supported(found: Sequence[Found], support: Mapping[str, float]) -> list[Found]:
    """That a kind is on the picture speaks for one thing of it, the likeliest: not for several of them.

    Both say so, so the chance that both are wrong is the product of the chances.
    """
    named: set[str] = set()
    weighed: list[Found] = []
    for candidate in sorted(found, key=lambda f: -f.score):
        other = 0.0 if candidate.name in named else support.get(candidate.name, 0.0)
        named.add(candidate.name)
        weighed.append(candidate._replace(score=1 - (1 - candidate.score) * (1 - other)))
    return weighed


def _candidates(
    scores: NDArray[np.float32], boxes: NDArray[np.float32], pixels: Rgb, names: Sequence[str]
) -> list[Found]:
    height, width = pixels.shape[:2]
    places, kinds = np.nonzero(scores >= _LEAST_SCORE)
    order = np.argsort(-scores[places, kinds])[: _MOST * 10]
    found: list[Found] = []
    for place, kind in zip(places[order], kinds[order], strict=True):
        left, top, right, bottom = (boxes[place] * (width, height, width, height)).tolist()
        found.append(Found(names[kind], float(scores[place, kind]), (left, top, right, bottom)))
    return found
