"""The cache ring: answers again what was answered, for the same tenant, model version and request.

`ring` is the way of a call; `policy` says what may be kept, `keys` what is the same, `record` how an answer
is stored, `flights` who computes, `embeddings` the items of one call, `semantic` the same in other words.
"""

from __future__ import annotations

from inferhub.pipeline.cache.ring import Cache
from inferhub.pipeline.cache.semantic import Semantic

__all__ = ["Cache", "Semantic"]
