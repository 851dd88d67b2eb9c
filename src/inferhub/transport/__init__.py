"""F2: how a worker is reached. Same calls, same errors and same cancellation, near or far."""

import os

# Read by gRPC when it starts. uvloop forks to start a process, and gRPC's fork handlers would then stop
# and revive its threads under live connections. We only ever start new programs, never a forked Python.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Its notes, such as that a peer hung up, would stand as bare lines between ours; its errors may.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
