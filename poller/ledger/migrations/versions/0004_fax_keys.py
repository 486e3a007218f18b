"""Recognize a fax whose UUID comes in other letters.

If a ledger has two spellings as two faxes, both rows stay, and no row is added. At most one of
those that wait stays waiting, so that the fax is delivered once.
"""

from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UUID = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z"
_FAXES = ("id", "user", "fax_id", "fax_key", "state", "next_attempt_at", "last_listed_at")
faxes = sa.table("faxes", *map(sa.column, (*_FAXES, "dismissed_at", "dismiss_reason")))
users = sa.table("users", *map(sa.column, ("id", "pending", "quarantined", "dismissed")))
key = sa.func.lower(faxes.c.fax_id).label("key")
has_capitals = sa.and_(faxes.c.fax_id != key, faxes.c.fax_id.regexp_match(_UUID))


def upgrade() -> None:
    op.add_column("faxes", sa.Column("fax_key", sa.String))
    # If two spellings both have capitals, the first one gets the key.
    first = sa.select(sa.func.min(faxes.c.id)).where(has_capitals).group_by(faxes.c.user, key)
    op.execute(faxes.update().where(faxes.c.id.in_(first)).values(fax_key=key))
    for of_one in _doubles():
        _leave_one(of_one)
    has_one = sa.text("fax_key IS NOT NULL")
    op.create_index(
        "uq_faxes_fax_key_user", "faxes", ["fax_key", "user"],
        unique=True, sqlite_where=has_one, postgresql_where=has_one,
    )  # fmt: skip


def _doubles() -> list[list[sa.Row[Any]]]:
    """Find faxes with several spellings, in one query, as it reads the whole table."""
    of = (faxes.c.user, faxes.c.fax_id, faxes.c.state)
    spelled = sa.select(faxes.c.id, key, *of).where(has_capitals)
    lower = sa.select(faxes.c.id, faxes.c.fax_id.label("key"), *of).where(
        sa.tuple_(faxes.c.user, faxes.c.fax_id).in_(
            sa.select(faxes.c.user, key).where(has_capitals)
        )
    )
    every = spelled.union_all(lower).cte()
    keys = (every.c.user, every.c.key)
    twice = sa.select(*keys).group_by(*keys).having(sa.func.count() > 1).subquery()
    wanted = sa.select(every).join(
        twice, sa.and_(every.c.user == twice.c.user, every.c.key == twice.c.key)
    )
    rows = op.get_bind().execute(wanted.order_by(*keys, every.c.id)).all()
    return [list(same) for _, same in groupby(rows, lambda row: (row.user, row.key))]


def _leave_one(rows: list[sa.Row[Any]]) -> None:
    """Dismiss the waiting spellings of a fax, except the first one if none is stored."""
    waiting = [row for row in rows if row.state in ("pending", "quarantined")]
    stored = [row for row in rows if row.state == "stored"]
    kept, *_ = stored or waiting or rows
    for row in waiting:
        if row is kept:
            continue
        op.execute(
            faxes.update()
            .where(faxes.c.id == row.id)
            .values(
                state="dismissed",
                next_attempt_at=None,
                dismissed_at=faxes.c.last_listed_at,
                dismiss_reason=f"it is fax {kept.fax_id} in another spelling",
            )
        )
        moved = {row.state: users.c[row.state] - 1, "dismissed": users.c.dismissed + 1}
        op.execute(users.update().where(users.c.id == row.user).values(moved))
