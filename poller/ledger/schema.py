"""Which age the tables are of, and bringing them to the present with alembic."""

from typing import TYPE_CHECKING

from sqlalchemy import Connection, String, column, inspect, select, table

from poller.errors import CannotStart, LedgerDamaged
from poller.ledger.tables import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

_VERSION = table("alembic_version")


def require_known(where: str, revision: str, *, may_migrate: bool) -> None:
    """Raise CannotStart for tables that this program does not know, or may not change now."""
    if revision == REVISION:
        return
    if not _knows(revision):
        raise LedgerDamaged(
            f"the ledger {where} was written by a newer poller (revision {revision}); "
            "install that version, or make a new ledger with `poller rebuild`"
        )
    if not may_migrate:
        raise CannotStart(f"the ledger {where} is of an older poller; start the service once")


def migrate(connection: Connection) -> bool:
    """Bring the tables to the present inside the caller's transaction; True when there were none.

    Another process may have done so since the file was looked at, so it is asked again here.
    """
    revision = _revision(connection)
    if revision == REVISION:
        return False
    from alembic import command  # noqa: PLC0415  (slow to load, and needed once in a lifetime)

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return revision is None


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(select(column("version_num", String)).select_from(_VERSION))


def _knows(revision: str) -> bool:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return any(script.revision == revision for script in scripts)


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "poller.ledger:migrations")
    return config
