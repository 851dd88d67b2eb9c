"""F0: pure nouns. Standard library and msgspec only, no I/O; everything above may import it."""
