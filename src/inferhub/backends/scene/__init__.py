"""What can be seen on a picture, by small models on the CPU: text, objects, labels, colours, drawn shapes.

`backend` runs the `finders` (`ocr`, `objects`, `labels`, `colors`, `shapes`), `describe` puts what they found
into words, `answers` answers questions from it by rules. What no finder knows is not there.
"""

from __future__ import annotations

from inferhub.backends.scene.backend import Scene

BACKEND = Scene

__all__ = ["BACKEND"]
