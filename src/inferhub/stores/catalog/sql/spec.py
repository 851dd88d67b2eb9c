"""The applied spec, the revision that pollers watch, and the check of the pepper."""

from __future__ import annotations

import hmac

from sqlalchemy import select, update

from inferhub.core.audit import Act
from inferhub.core.clock import unix_s
from inferhub.core.errors import Conflict, SetupError
from inferhub.stores.catalog.base import StoredSpec
from inferhub.stores.catalog.checks import check_spec
from inferhub.stores.catalog.sql.session import Session, add
from inferhub.stores.catalog.tables import specs, state


class Spec(Session):
    async def spec(self) -> StoredSpec | None:
        found = await self._rows(select(specs))
        return StoredSpec(found[0].text, found[0].revision, found[0].applied_at) if found else None

    async def replace_spec(self, text: str, expected_revision: int, act: Act) -> StoredSpec:
        check_spec(text)
        new = StoredSpec(text, expected_revision + 1, unix_s())
        row = {"revision": new.revision, "text": new.text, "applied_at": new.applied_at}
        async with self._write(act) as connection:
            found = (await connection.execute(select(specs.c.revision))).scalar_one_or_none() or 0
            taken = Conflict(
                f"The spec is at revision {found}, not {expected_revision}: somebody applied another "
                "one meanwhile. Look at the difference, then apply again."
            )
            if found == expected_revision == 0:
                await add(connection, specs, {"id": 1, **row}, taken)
            else:
                # The condition stands in the statement too: an older InferHub does not queue with us.
                is_expected = specs.c.revision == expected_revision
                changed = await connection.execute(update(specs).where(is_expected).values(row))
                if changed.rowcount != 1:
                    raise taken
        return new

    async def revision(self) -> int:
        (row,) = await self._rows(select(state.c.revision))
        return int(row.revision)

    async def check_pepper(self, pepper: bytes) -> None:
        # Four bytes tell two peppers apart and are no help in guessing one.
        check = hmac.digest(pepper, b"inferhub pepper check", "sha256")[:4]
        if await self._pepper_check() is None:
            async with self._write(None) as connection:
                unset = state.c.pepper_check.is_(None)
                await connection.execute(update(state).where(unset).values(pepper_check=check))
        if await self._pepper_check() != check:
            raise SetupError(
                "The pepper is not the one that the API keys of this catalog were made under, so none of "
                "them would be accepted. Restore the file 'pepper' in data_dir or set INFERHUB_PEPPER as "
                "before; to give up all keys, move the catalog away.",
                param="pepper",
            )

    async def _pepper_check(self) -> bytes | None:
        (row,) = await self._rows(select(state.c.pepper_check))
        check: bytes | None = row.pepper_check
        return check
