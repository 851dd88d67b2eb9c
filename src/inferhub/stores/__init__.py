"""F2: one folder is one question, one file in it one answer; a URL's scheme selects the answer.

Opened by assembly and the CLI. No store is on the request path: the gateway reads snapshots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from inferhub.core.errors import SetupError
from inferhub.settings.nearest import did_you_mean

if TYPE_CHECKING:
    from inferhub.stores.catalog.base import Catalog

# Imported on use: the database toolkit takes half a second that `inferhub --help` does not have.
_CATALOGS = {"sqlite": "inferhub.stores.catalog.sqlite"}


async def open_catalog(url: str) -> Catalog:
    """Open and, where needed, migrate the catalog behind `url`; close it with `await catalog.close()`.

    Raises `SetupError` (`CatalogCorrupt` for a damaged one) with the remedy.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _CATALOGS:
        raise SetupError(
            f"catalog_url starts with {scheme[:40]!r}, which is no catalog; "
            f"available: {', '.join(sorted(_CATALOGS))}.{did_you_mean(scheme, _CATALOGS)}",
            param="catalog_url",
        )
    catalog: Catalog = await import_module(_CATALOGS[scheme]).open_catalog(url)
    return catalog
