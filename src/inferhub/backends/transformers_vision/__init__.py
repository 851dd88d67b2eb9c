"""Vision-language models in a folder as `transformers` saves it: pictures and a conversation in, text out.

`folder` judges the folder before anything in it is loaded, `asking` puts a conversation into its form,
`speaking` runs the model in a thread, `backend` is the rest. Only safetensors are read, never code.
"""

from __future__ import annotations

from inferhub.backends.transformers_vision.backend import TransformersVision

BACKEND = TransformersVision

__all__ = ["BACKEND"]
