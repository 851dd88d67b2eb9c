"""The bounded way into one model: a few calls run, more wait in a fair order, the rest are refused.

`lane` hands out the slots, `order` says whose turn it is, `fair` is one band of that order, `rate` measures
how fast the model works. `loaded` enters the lane for every call. Nothing here knows a backend.
"""
