"""What every backend promises, as checks that run over any backend × declared capability.

Public, for plug-in authors: load a backend and run `checks_for(capability)` over it. Each check
names the fault of `testing.broken` that it must catch; the suite runs that too.
"""

# Imported for their checks, which they add to the list.
from inferhub.testing.contract import batches as batches
from inferhub.testing.contract import media as media
from inferhub.testing.contract import others as others
from inferhub.testing.contract import text as text
from inferhub.testing.contract.frame import CHECKS, Check, Result, checks_for, finish

__all__ = ["CHECKS", "Check", "Result", "checks_for", "finish"]
