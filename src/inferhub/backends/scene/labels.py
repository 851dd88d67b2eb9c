"""What a picture as a whole is of: EfficientNet-Lite0 (ImageNet's 1,000 kinds). Called by `backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inferhub.backends.scene.pixels import resized

if TYPE_CHECKING:
    from inferhub.backends.scene.pixels import Rgb

_SIDE = 224
_CROP = 0.875
"""Of the shorter side: what the network was tested on."""
_BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))
_GROUPS: Mapping[str, Sequence[int]] = {
    # COCO's kinds that ImageNet has by breed, species or make.
    "cat": range(281, 286),
    "dog": range(151, 269),
    "bird": _BIRDS,
    "bear": range(294, 298),
    "elephant": (385, 386),
    "zebra": (340,),
    "sheep": (348, 349),
    "cup": (504, 967, 968),
    "bus": (654, 779, 874),
    "car": (436, 468, 511, 609, 627, 656, 705, 751, 817),
    "truck": (555, 569, 675, 717, 864, 867),
    "train": (466, 547, 565, 705, 820),
    "airplane": (404, 895),
    "boat": (472, 484, 554, 576, 625, 780, 814, 833, 914),
    "bicycle": (444, 671),
    "motorcycle": (665, 670),
    "keyboard": (508, 878),
    "laptop": (620, 681),
    "mouse": (673,),
    "clock": (409, 530, 892),
    "pizza": (963,),
    "banana": (954,),
    "orange": (950,),
    "apple": (948,),
    "broccoli": (937,),
    "hot dog": (934,),
    "bottle": (440, 720, 737, 898, 907),
    "vase": (883,),
    "couch": (831,),
    "dining table": (532,),
    "toilet": (861,),
    "umbrella": (879,),
    "tie": (906,),
    "backpack": (414,),
    "traffic light": (920,),
    "parking meter": (704,),
    "teddy bear": (850,),
}


class Classifier:
    """One network, for one call at a time."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session = session
        self._names = names
        self._input = session.get_inputs()[0].name

    def look(self, pixels: Rgb, switch: Any) -> Mapping[str, float]:
        """Name → probability, the likeliest first."""
        batch = ((resized(_middle(pixels), _SIDE, _SIDE) - 127) / 128).transpose(2, 0, 1)[None]
        feed = {self._input: np.ascontiguousarray(batch, np.float32)}
        scores = self._session.run(None, feed, run_options=switch)[0][0]
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        order = np.argsort(-chances)
        found: dict[str, float] = {}
        for index in order:
            # Two of ImageNet's kinds have the same name, twice.
            found.setdefault(self._names[index], float(chances[index]))
        return found

    def support(self, chances: Mapping[str, float]) -> Mapping[str, float]:
        """A kind of COCO's → how likely the picture is of one, all its breeds and makes together."""
        return {
            kind: min(1.0, sum(chances.get(self._names[index], 0.0) for index in indices))
            for kind, indices in _GROUPS.items()
        }


def _middle(pixels: Rgb) -> Rgb:
    """A square."""
    height, width = pixels.shape[:2]
    side = max(1, round(min(height, width) * _CROP))
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
