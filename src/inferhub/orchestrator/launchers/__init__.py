"""Where workers come from that the orchestrator starts itself: one file is one place to start them in."""
