"""`python -m inferhub`: the same as the `inferhub` command, found even after the folder was moved."""

from __future__ import annotations

from inferhub.cli import main

if __name__ == "__main__":
    main()
