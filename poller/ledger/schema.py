"""The age of the tables: make new ones at the present revision, migrate older ones with alembic."""

from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from poller.errors import CannotStart, LedgerDamaged
from poller.ledger import meta
from poller.ledger.nodes import LIVE_FOR
from poller.ledger.tables import MICROSECOND, REVISION, metadata, nodes, now_us, of_us

OLDEST = REVISION  # of the tables that this program can work on
READS = "0011"  # the revision of the oldest program that may work on this program's tables

if TYPE_CHECKING:
    from alembic.config import Config

_VERSION = Table(  # alembic's own
    "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
)


def require_known(where: str, revision: str, *, may_migrate: bool) -> None:
    """Raise CannotStart for tables that this program does not know or may not change now."""
    if revision == REVISION:
        return
    if not _knows(revision):
        raise LedgerDamaged(
            f"the ledger {where} was written by a newer poller (revision {revision}); "
            "install that poller, or make a new ledger with `poller rebuild`"
        )
    if not may_migrate:
        raise CannotStart(
            f"the ledger {where} was written by an older poller; start the service once"
        )


def as_seen(revision: str, reads: str | None) -> str:
    """Return this program's own revision for newer tables that it may work on as well.

    So nodes can be upgraded one by one, and back. `reads` is what `keep_reads` kept.
    """
    may = revision > REVISION and reads is not None and reads <= REVISION
    return REVISION if may else revision


def keep_reads(connection: Connection) -> None:
    """Keep which programs may work on these tables: a migration that only adds changes nothing."""
    is_ours = _revision(connection) == REVISION
    if is_ours and meta.value(connection, "reads") != READS:
        meta.keep(connection, "reads", READS)


def migrate(connection: Connection) -> bool:
    """Bring the tables to the present inside the caller's transaction; return True if there were none.

    Look again here, because another process may have done so since the caller looked.
    """
    revision = _revision(connection)
    if revision is not None and revision >= REVISION:
        return False
    if revision is None:
        metadata.create_all(connection)
        _VERSION.create(connection, checkfirst=True)
        connection.execute(insert(_VERSION).values(version_num=REVISION))
        return True
    require_no_older_nodes(connection)
    from alembic import command  # noqa: PLC0415  (slow to load, and needed once in a lifetime)

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return False


def require_no_older_nodes(connection: Connection) -> None:
    """Raise CannotStart if a node is at work whose program could not work on the tables of READS.

    So a migration that only adds goes on beside older nodes, and one that takes something away (it
    raises READS) waits for their end.
    """
    if not inspect(connection).has_table(nodes.name):
        return
    lives = nodes.c.ended_at.is_(None) & (
        now_us() - of_us(nodes.c.seen_at) <= LIVE_FOR // MICROSECOND
    )
    found = select(nodes.c.name, nodes.c.version).where(lives, nodes.c.newest < READS)
    older = [f"{name} (poller {version})" for name, version in connection.execute(found)]
    if older:
        raise CannotStart(
            f"the ledger's tables are not changed while {' and '.join(older)} cannot work on the new "
            "ones: install this version there, or stop the service there"
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def _knows(revision: str) -> bool:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return any(script.revision == revision for script in scripts)


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "poller.ledger:migrations")
    return config
