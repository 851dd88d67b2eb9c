"""F5: HTTP in, `Handler` out. Knows no backend, no engine and no worker's address."""
