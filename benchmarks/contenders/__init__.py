"""The processes that are measured or measured against; each module says how to start one."""
