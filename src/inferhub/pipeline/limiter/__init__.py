"""Holds calls against the limits and budgets of their caller: reserve before, settle after, lose nothing.

    Limiter → Leased (blocks, spent without a store) → Failsafe (own counters while the store is gone) → store

The rings `admit` and `meter` speak to `Limiter`; the two in between are `Counters` in front of `Counters`.
"""

from __future__ import annotations

from inferhub.pipeline.limiter.book import QuotaBook
from inferhub.pipeline.limiter.failsafe import Failsafe
from inferhub.pipeline.limiter.leased import Leased
from inferhub.pipeline.limiter.limiter import Limiter

__all__ = ["Failsafe", "Leased", "Limiter", "QuotaBook"]
