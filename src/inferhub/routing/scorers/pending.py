"""`pending`: how soon an endpoint is done, the call itself included, beside the busiest of the candidates.

In seconds, so that a quick machine with a long queue and a slow one with a short queue compare.
"""

from __future__ import annotations


def term(pending_s: float, most_s: float) -> float:
    return 1 - pending_s / most_s if most_s > 0 else 1.0
