"""Any server that speaks OpenAI's HTTP API: a vendor, vLLM, llama-server, another InferHub.

`options` says where it is, `requests` writes what it is sent, `lane` and `whole` read the answer; `backend`
is the engine that the worker's host loads.
"""

from __future__ import annotations

from inferhub.backends.openai_compatible.backend import OpenAICompatible
from inferhub.backends.openai_compatible.options import OpenAICompatibleOptions

__all__ = ["BACKEND", "OpenAICompatible", "OpenAICompatibleOptions"]

BACKEND = OpenAICompatible
