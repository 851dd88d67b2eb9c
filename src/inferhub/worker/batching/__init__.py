"""Batches that fill themselves: calls that came while the engine was busy are computed together.

`choose` decides, `fit` predicts, `cap` limits, `patience` may wait: all pure. `batcher` acts; the engine of a
`BatchBackend` makes one.
"""
