"""The catalog in a relational database, in portable SQL: one module per noun over one session.

Opened by the file of its database (`sqlite`, `postgres`). Only bound parameters, never text put together.
"""

from __future__ import annotations

from inferhub.stores.catalog.sql.audit import AuditLog
from inferhub.stores.catalog.sql.keys import Keys
from inferhub.stores.catalog.sql.limits import Limits
from inferhub.stores.catalog.sql.spec import Spec
from inferhub.stores.catalog.sql.tenancy import Tenancy


class SqlCatalog(Tenancy, Keys, Limits, AuditLog, Spec):
    """A `Catalog`."""
