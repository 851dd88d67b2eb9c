"""F3: which weights there are, how they come onto this machine, and proof that they are the right ones.

`weights.Weights` is the door; `weights.toml` lists what can be pulled. The CLI pulls, the worker's
assembly resolves. Nothing here loads a model or talks to a backend.
"""
