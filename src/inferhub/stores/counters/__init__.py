"""How much of each limit is used: `base` is the question, one file each the answers."""
