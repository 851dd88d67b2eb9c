"""When models are in memory: loaded by need or by wish, counted while in use, sent away by rule.

`evict` decides and is pure, `keeper` is the one place that waits for room, `managed` is one model's life.
"""
