"""The dialects that the scripted upstream speaks: one vendor per file, each exposing `DIALECT`.

Started as a process of its own by tests and benchmarks. `base` says what a dialect is.
"""
