"""Know a fax whose UUID comes in other letters.

Where a ledger holds two spellings as two faxes, both rows stay, and none is added. Of those that
wait to be fetched one stays at most, so that the fax is delivered once.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UUID = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
_FAXES = ("id", "user", "fax_id", "fax_key", "state", "next_attempt_at", "last_listed_at")
faxes = sa.table("faxes", *map(sa.column, (*_FAXES, "dismissed_at", "dismiss_reason")))
users = sa.table("users", *map(sa.column, ("id", "pending", "quarantined", "dismissed")))
key = sa.func.lower(faxes.c.fax_id).label("key")
has_capitals = sa.and_(faxes.c.fax_id != key, faxes.c.fax_id.regexp_match(_UUID))


def upgrade() -> None:
    op.add_column("faxes", sa.Column("fax_key", sa.String))
    # Of two spellings that both have capitals the first one has the key.
    first = sa.select(sa.func.min(faxes.c.id)).where(has_capitals).group_by(faxes.c.user, key)
    op.execute(faxes.update().where(faxes.c.id.in_(first)).values(fax_key=key))
    for user, of_one in _doubles():
        _leave_one(user, of_one)
    has_one = sa.text("fax_key IS NOT NULL")
    op.create_index(
        "uq_faxes_fax_key_user", "faxes", ["fax_key", "user"],
        unique=True, sqlite_where=has_one, postgresql_where=has_one,
    )  # fmt: skip


def _doubles() -> list[tuple[int, str]]:
    spelled = sa.select(faxes.c.user, key).where(has_capitals)
    lower = sa.select(faxes.c.user, faxes.c.fax_id).where(
        sa.tuple_(faxes.c.user, faxes.c.fax_id).in_(spelled)
    )
    every = spelled.union_all(lower).subquery()
    twice = sa.select(every.c.user, every.c.key).group_by(every.c.user, every.c.key)
    found = op.get_bind().execute(twice.having(sa.func.count() > 1))
    return [(user, of_one) for user, of_one in found]


def _leave_one(user: int, of_one: str) -> None:
    """Dismiss what waits of this fax, but for the first one where none is stored."""
    mine = sa.and_(faxes.c.user == user, sa.or_(faxes.c.fax_id == of_one, key == of_one))
    wanted = sa.select(faxes.c.id, faxes.c.fax_id, faxes.c.state).where(mine)
    rows = op.get_bind().execute(wanted.order_by(faxes.c.id)).all()
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
        op.execute(users.update().where(users.c.id == user).values(moved))
