"""What InferHub costs, measured against the floor of the same run. `make bench` runs `python -m benchmarks`.

Client, gateway and upstream are separate processes. Nothing here is a test: a missed target is
printed and the exit code stays 0. Nothing in `src/` imports this package.
"""
