"""Where the weights of the measured models are."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.measure import CannotMeasureError

NAME = "smollm2-135m"


def find_weights(name: str = NAME) -> Path:
    """The file or folder that `inferhub models pull` fetched."""
    from inferhub.core.errors import InferHubError
    from inferhub.registry.weights import Weights
    from inferhub.settings import load_settings

    try:
        settings = load_settings({}, env=os.environ, cwd=Path.cwd()).settings
        return Weights(settings.cache_dir).resolve(name)
    except InferHubError as error:
        raise CannotMeasureError(error.message) from error
