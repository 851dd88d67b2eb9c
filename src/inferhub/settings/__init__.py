"""F1: how this process runs (`Settings`) and what the platform should be (`settings.spec`).

Called by assembly and the CLI. The only room that looks at environment variables or settings files;
it opens no socket and no database.
"""

from __future__ import annotations

from inferhub.settings.loader import Loaded, load_settings
from inferhub.settings.model import Settings

__all__ = ["Loaded", "Settings", "load_settings"]
