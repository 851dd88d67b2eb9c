"""Answers by key, for a while: `base` is the question, one file each the answers."""
